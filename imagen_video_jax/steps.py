"""Numbered folders that count: how a step is committed, which one is the newest good one, which ones stay.

    FOLDER/STEP/                 a committed step: everything below it was synced, then it appeared by one rename
    FOLDER/.STEP.tmp-*           one that was being written; the next writer that holds the folder removes it
    FOLDER/STEP.damaged          one that failed verification; set aside by the writer that went back to an older one

STEP is decimal. A step counts when its manifest (`storage.write_manifest`, written last) verifies; nothing else is
believed, least of all times. Imports nothing heavy, so a process that only keeps files can use it.
"""

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator

from imagen_video_jax import storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError


@contextlib.contextmanager
def committing(folder: pathlib.Path, step: int, *, keep: int) -> Iterator[pathlib.Path]:
    """Yields a temporary folder; when the body ends well it is committed and all but the newest `keep` are removed.

    When the body or the commit fails, nothing is left of it, so that a full disk does not stay full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with storage.atomic_folder(folder / str(step)) as temporary:
        yield temporary
        storage.write_manifest(temporary)
    for old in committed_steps(folder)[:-keep]:
        remove(folder, old)


def remove(folder: pathlib.Path, step: int) -> None:
    """Removes a step; at no moment is there a part of it under its number."""
    doomed = storage.temporary_name(folder / str(step))
    with contextlib.suppress(OSError):
        (folder / str(step)).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def committed_steps(folder: pathlib.Path) -> list[int]:
    """Steps on disk, in order of number; not yet verified."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The newest step that verifies, or None where there is no step at all.

    Damaged files are named on stderr; UserError with exit code 5 when steps exist and none verifies.
    """
    steps = committed_steps(folder)
    for step in reversed(steps):
        problems = storage.damaged_files(folder / str(step))
        if not problems:
            return folder / str(step)
        print(f"warning: checkpoint {folder / str(step)} is damaged: {_some(problems)}", file=sys.stderr)
    if steps:
        raise UserError(f"no usable checkpoint in {folder}: all of {steps} are damaged", NO_CHECKPOINT)
    return None


def require_newest(workdir: pathlib.Path) -> pathlib.Path:
    """The newest good step of a training folder; UserError (exit code 5) when there is none."""
    path = newest(workdir / "checkpoints")
    if path is None:
        raise UserError(f"no checkpoint in {workdir / 'checkpoints'}: train this stage first", NO_CHECKPOINT)
    return path


def verify(path: pathlib.Path) -> pathlib.Path:
    """Returns a step's folder when its manifest verifies; UserError (exit code 5) naming the damaged files if not."""
    problems = storage.damaged_files(path)
    if problems:
        raise UserError(f"checkpoint {path} is damaged: {_some(problems)}", NO_CHECKPOINT)
    return path


def take_over(folder: pathlib.Path, newest: pathlib.Path | None) -> None:
    """For the holder of the folder, before it writes: removes what killed writers left behind, and sets aside the
    damaged steps above `newest`, whose numbers will be used again."""
    if not folder.is_dir():
        return
    for left in folder.glob(".*.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    for step in committed_steps(folder):
        if newest is not None and step > int(newest.name):
            set_aside(folder / str(step))


def set_aside(path: pathlib.Path) -> None:
    """Takes a damaged step out of the count, and keeps its files as STEP.damaged."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _some(problems: list[str]) -> str:
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
