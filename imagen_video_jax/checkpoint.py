"""Named trees and a data position <-> a committed, verified step on disk. Knows nothing of training or sampling.

    FOLDER/STEP/{NAME}/          one Orbax checkpoint per named tree (e.g. params, ema, optimizer)
    FOLDER/STEP/meta.json        what the writer wants to remember (stage, data position, ...) and every array's shape
    FOLDER/STEP/manifest.json    size and sha256 of every file, written last

A step appears by one rename after everything below it was synced, and is never rewritten. STEP is decimal; temporary
names are not numbers. Orbax checks no array bytes, so a step counts only when its manifest verifies.
"""

import pathlib
import shutil
import sys

import jax
import orbax.checkpoint as ocp

from imagen_video_jax import storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError

META = "meta.json"


def save(folder: pathlib.Path, step: int, trees: dict, meta: dict, *, keep: int = 3) -> pathlib.Path:
    """Commits one step, then removes all but the newest `keep`.

    Args:
      trees: name -> tree of arrays; any tree structure, stored flat by path.
      meta: JSON-serialisable.
    """
    target = folder / str(step)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: flatten(tree) for name, tree in trees.items()}
    with storage.atomic_folder(target) as temporary:
        with ocp.StandardCheckpointer() as checkpointer:
            for name, arrays in flat.items():
                checkpointer.save(temporary.absolute() / name, arrays)
            checkpointer.wait_until_finished()
        shapes = {name: {path: describe(leaf) for path, leaf in arrays.items()} for name, arrays in flat.items()}
        storage.write_json(temporary / META, {**meta, "step": step, "trees": shapes})
        storage.write_manifest(temporary)
    for old in committed_steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
    return target


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
        print(f"warning: checkpoint {folder / str(step)} is damaged: {'; '.join(problems[:3])}", file=sys.stderr)
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
        raise UserError(f"checkpoint {path} is damaged: {'; '.join(problems[:3])}", NO_CHECKPOINT)
    return path


def read_meta(path: pathlib.Path) -> dict:
    return storage.read_json(path / META)


def restore(path: pathlib.Path, name: str, abstract):
    """One named tree, into the structure, dtypes and shardings of `abstract`; UserError printing any difference."""
    stored = read_meta(path)["trees"].get(name)
    if stored is None:
        raise UserError(f"checkpoint {path} holds no {name!r}, only {sorted(read_meta(path)['trees'])}")
    wanted = flatten(abstract)
    difference = _difference(stored, {key: describe(leaf) for key, leaf in wanted.items()})
    if difference:
        raise UserError(f"checkpoint {path} does not fit this model: {difference}")
    targets = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf)) for key, leaf in wanted.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(path.absolute() / name, targets)
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[key] for key in wanted])


def flatten(tree) -> dict:
    """path -> leaf, in the tree's own order; paths like down0_block0.conv1.kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe(leaf) -> str:
    return f"{leaf.dtype.name if hasattr(leaf.dtype, 'name') else leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _sharding(leaf):
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _difference(stored: dict, wanted: dict) -> str:
    lines = [f"{key} is missing" for key in wanted if key not in stored]
    lines += [f"{key} is not part of the model" for key in stored if key not in wanted]
    lines += [
        f"{key} is {stored[key]}, expected {wanted[key]}"
        for key in wanted
        if stored.get(key, wanted[key]) != wanted[key]
    ]
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more
