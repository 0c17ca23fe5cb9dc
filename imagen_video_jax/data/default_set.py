"""The embedded default data set, made once in the user cache: motion_shapes files and their MiniLM embeddings."""

import contextlib
import dataclasses
import multiprocessing
import pathlib
import sys
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

from imagen_video_jax import storage
from imagen_video_jax.data.embed_captions import embed_data
from imagen_video_jax.data.manifests import MANIFEST
from imagen_video_jax.data.motion_shapes import VERSION, write_motion_shapes
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.embedding_cache import user_folder

# clips and images of the training and of the validation part; frames, height, width of a clip at 24 fps
SETS = {
    "tiny": {"train": (48, 24), "validation": (8, 4), "size": (32, 48, 80)},
    "mini": {"train": (1024, 512), "validation": (64, 32), "size": (64, 96, 160)},
}
SEEDS = {"train": 0, "validation": 1}


@dataclasses.dataclass(frozen=True)
class DefaultSet:
    """Folders of captioned files, and the cache of their captions' embeddings."""

    train: pathlib.Path
    validation: pathlib.Path
    embeddings: pathlib.Path


def default_set(name: str) -> DefaultSet:
    """Makes what is missing of the set `name`; a second process waits for the first."""
    root = _root(name)
    encoder = TextEncoder.minilm()
    made = DefaultSet(root / "train", root / "validation", user_folder(encoder))
    with _lock(storage.writable_folder(root)):
        if not (root / "complete").exists():
            for split in ("train", "validation"):
                _render(root, name, split)
            (root / "complete").touch()
        # The cache is shared by all data sets, so any part of it may be gone while the files are there.
        embed_data([str(made.train), str(made.validation)], made.embeddings, encoder)
    return made


def rendered(name: str, split: str) -> pathlib.Path:
    """The files of one split of the set `name`, without embeddings, made where they are missing."""
    if name not in SETS:
        raise UserError(f"motion_shapes:{name}: the sets are {', '.join(SETS)}")
    root = _root(name)
    with _lock(storage.writable_folder(root)):
        if not (root / split / MANIFEST).exists():
            _render(root, name, split)
    return root / split


def _root(name: str) -> pathlib.Path:
    return storage.user_cache() / "motion_shapes" / f"{name}-v{VERSION}-{SETS[name]['train'][0]}"


def _render(root: pathlib.Path, name: str, split: str) -> None:
    clips, images = SETS[name][split]
    frames, height, width = SETS[name]["size"]
    with progress_of(f"rendering {split}") as progress:
        write_motion_shapes(
            root / split,
            clips=clips,
            images=images,
            seed=SEEDS[split],
            split=split,
            frames=frames,
            height=height,
            width=width,
            progress=lambda done, total: progress("", done, total),
        )


@contextlib.contextmanager
def _lock(root: pathlib.Path) -> Iterator[None]:
    """Holds `root`, after saying that it waits where another process has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(storage.directory_lock(root))
        except UserError:
            if multiprocessing.parent_process() is not None:
                # A worker that runs the script of its parent again would wait for the lock that the parent holds.
                raise UserError(
                    f"{root} is being made; if by this script, it needs `if __name__ == '__main__':` around its work"
                ) from None
            print(f"waiting for another process that makes {root}", file=sys.stderr, flush=True)
            stack.enter_context(storage.directory_lock(root, wait=True))
        yield


class progress_of:
    """A bar with rate and remaining time, on a terminal: a context that gives a function of (what, done, total)."""

    def __init__(self, text: str):
        console = rich.console.Console(stderr=True)
        self._text = text
        self._bar = rich.progress.Progress(console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(text, total=None)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._bar.start()
        return lambda what, done, total: self._bar.update(
            self._task, description=what or self._text, completed=done, total=total
        )

    def __exit__(self, *_) -> None:
        self._bar.stop()
