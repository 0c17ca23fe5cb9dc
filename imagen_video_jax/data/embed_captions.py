"""Filling an embedding cache from a data set, and prompts from a file into one .npz."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.progress

from imagen_video_jax import storage
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.embedding_cache import embed_captions


def embed_data(folders: Sequence[str], cache: pathlib.Path, encoder: TextEncoder) -> int:
    """Embeds every caption of the data folders that the cache lacks; returns how many that were.

    Says on stderr how many captions were longer than the encoder takes, with one of them.
    """
    captions = [caption for folder in folders for caption in open_source(folder).captions]
    console = rich.console.Console(stderr=True)
    cut: list[tuple[str, str]] = []
    with rich.progress.Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding captions", total=None)
        count = embed_captions(
            cache,
            captions,
            encoder,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_cut=lambda caption, lost: cut.append((caption, lost)),
        )
    if cut:
        console.print(f"{len(cut)} captions were cut to {encoder.max_length} tokens, e.g. {_described(*cut[0])}")
    return count


def embed_prompts_to_npz(prompts: Sequence[str], encoder: TextEncoder, path: pathlib.Path) -> None:
    """Writes `embeddings` (N, L, D) float32 and `mask` (N, L); says on stdout what was cut off."""
    for prompt, lost in encoder.tokenize(prompts).lost:
        print(f"cut to {encoder.max_length} tokens: {_described(prompt, lost)}")
    text_BLD, mask_BL = encoder(prompts)
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=text_BLD, mask=mask_BL)
    storage.writable_folder(path.parent)
    storage.write_bytes(path, buffer.getvalue())


def _described(prompt: str, lost: str) -> str:
    return f"{prompt[:40]!r}..., lost {lost[:60]!r}"
