"""`TextEncoder`: prompts -> text_BLD, mask_BL; jitted, in length buckets."""

import hashlib
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from imagen_video_jax import functional, storage
from imagen_video_jax.text import minilm_encoder
from imagen_video_jax.text.tokenizer import Tokens, WordPieceTokenizer

# Token counts that a program is compiled for: short prompts are not padded to the maximum.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class TextEncoder:
    """A frozen text encoder.

    Attributes:
      name, width, max_length: of the encoder.
      fingerprint: sha256 over name, weights, tokenizer and maximum length: what an embedding depends on.
    """

    def __init__(self, *, name: str, apply: Callable, params, tokenizer, width: int, max_length: int, fingerprint: str):
        self.name, self.width, self.max_length, self.fingerprint = name, width, max_length, fingerprint
        self._params, self._tokenizer = params, tokenizer
        self._apply = jax.jit(apply)

    @classmethod
    def minilm(cls, max_length: int = 64) -> "TextEncoder":
        """The embedded default, 384 wide."""
        folder = minilm_encoder.model_folder()
        files = [folder / "model.safetensors", folder / "tokenizer.json"]
        network = functional.split(lambda rngs: minilm_encoder.MiniLMEncoder())
        return cls(
            name="minilm",
            apply=network.apply,
            params=jax.tree.map(jax.numpy.asarray, minilm_encoder.load_params(files[0])),
            tokenizer=WordPieceTokenizer(files[1]),
            width=minilm_encoder.MiniLMConfig().width,
            max_length=max_length,
            fingerprint=fingerprint_of("minilm", files, max_length),
        )

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        return self._tokenizer(prompts, self.max_length)

    def __call__(
        self, prompts: Sequence[str], *, batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeds prompts: (text_BLD float32, mask_BL), L the longest prompt's length; zeros at padding.

        Args: progress is called with the number of prompts done.
        """
        tokens = self.tokenize(prompts)
        lengths_B = tokens.mask_BL.sum(1)
        out = np.zeros((*tokens.ids_BL.shape, self.width), np.float32)
        # Prompts of like length go together; batches are padded to one size, so few programs are compiled.
        order, done = np.argsort(lengths_B, kind="stable"), 0
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            bucket = next((b for b in BUCKETS if b >= lengths_B[rows].max()), int(lengths_B[rows].max()))
            size = batch_size if len(order) > 8 else 8
            ids, mask = np.zeros((size, bucket), np.int32), np.zeros((size, bucket), bool)
            mask[:, 0] = True  # padding rows need one valid key
            length = min(bucket, tokens.ids_BL.shape[1])
            ids[: len(rows), :length] = tokens.ids_BL[rows, :length]
            mask[: len(rows), :length] = tokens.mask_BL[rows, :length]
            states = np.asarray(self._apply(self._params, ids, mask))[: len(rows), :length]
            out[rows, :length] = states * mask[: len(rows), :length, None]
            done += len(rows)
            if progress is not None:
                progress(done)
        return out, tokens.mask_BL


def fingerprint_of(name: str, files: Sequence[pathlib.Path], max_length: int) -> str:
    """sha256 over the encoder's name, the content of its files and the maximum length.

    A file's own hash is remembered in the user cache by path, size and modification time: weights can be gigabytes.
    """
    digest = hashlib.sha256(f"{name} {max_length}".encode())
    for file in files:
        digest.update(_remembered_hash(file).encode())
    return digest.hexdigest()


def _remembered_hash(file: pathlib.Path) -> str:
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    note = storage.user_cache() / "file_hashes" / key
    if note.is_file():
        return note.read_text()
    value = storage.sha256_file(file)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(note, value)
    except OSError:
        pass  # a cache that cannot be written only costs the next start a few seconds
    return value
