"""Checkpoints of a running training, kept by hard links while a sweep needs them: training deletes old ones."""

import os
import pathlib
import shutil

from imagen_video_jax import checkpoint, storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError
from imagen_video_jax.evaluation.sweep import Trained, committed


def wanted(names: tuple[str, ...], folder: pathlib.Path) -> list[int]:
    """Steps that "all", "newest" or numbers stand for, now."""
    there = checkpoint.committed_steps(folder)
    chosen = [int(name) for name in names if name.isdecimal()]
    if "all" in names:
        chosen += there
    if "newest" in names:
        chosen += there[-1:]
    return sorted(set(chosen))


def held(names: tuple[str, ...], pins: pathlib.Path) -> list[Trained]:
    """What an earlier run pinned and did not finish with, as far as it is still asked for."""
    found = []
    for path in sorted(pins.glob("*/[0-9]*")):
        if path.name.isdecimal() and ("all" in names or path.name in names):
            found.append(Trained(str(path), int(path.name), committed(path)))
    return found


def pin(source: pathlib.Path, pins: pathlib.Path) -> Trained:
    """A copy of a checkpoint that training cannot delete; costs no space as long as the original is there.

    Raises:
      UserError: the checkpoint is not there, or was deleted meanwhile.
    """
    try:
        digest = committed(source)
        target = pins / digest[:16] / source.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, target)
    except (OSError, shutil.Error):
        raise UserError(f"checkpoint {source} is not there, or was deleted meanwhile", NO_CHECKPOINT) from None
    return Trained(str(target), int(source.name), digest)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        with storage.atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)
    except OSError:
        if not target.exists():  # else another process was faster
            raise


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or no links there
        shutil.copy2(source, target)


def unpin(trained: Trained) -> None:
    """Removes the copy; the cells that needed it are done."""
    shutil.rmtree(pathlib.Path(trained.folder).parent, ignore_errors=True)
