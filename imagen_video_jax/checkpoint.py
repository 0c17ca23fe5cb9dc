"""Named trees and a data position <-> a committed, verified step on disk. Knows nothing of training or sampling.

    FOLDER/STEP/{NAME}/          one Orbax checkpoint per named tree (e.g. params, ema, optimizer)
    FOLDER/STEP/meta.json        what the writer wants to remember (stage, data position, ...) and every array's shape
    FOLDER/STEP/manifest.json    size and sha256 of every file, written last

A step is committed and chosen as `steps.py` says. Orbax checks no array bytes and syncs only some of its files, so a
step counts only when its manifest verifies.

Several processes save and restore together, on one file system: each writes its own shards, process 0 all the rest.
"""

import contextlib
import pathlib
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from imagen_video_jax import distributed, steps, storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError
from imagen_video_jax.steps import committed_steps, newest, require_newest, verify

# Everything that is asked of a checkpoint, in one place.
__all__ = [
    "begin_save", "committed_steps", "describe", "flatten", "newest", "read_meta", "require_newest", "restore", "save",
    "verify",
]  # fmt: skip
META = "meta.json"


def save(folder: pathlib.Path, step: int, trees: dict, meta: dict, *, keep: int = 3) -> pathlib.Path:
    """Commits one step, then removes all but the newest `keep`.

    Args:
      trees: name -> tree of arrays; any tree structure, stored flat by path.
      meta: JSON-serialisable.
    """
    return begin_save(folder, step, trees, meta, keep=keep)()


def begin_save(
    folder: pathlib.Path, step: int, trees: dict, meta: dict, *, keep: int = 3
) -> Callable[[], pathlib.Path]:
    """The part of `save` that needs the arrays; they may be donated or deleted afterwards.

    Returns the rest, which writes and commits and may run in another thread; the step counts when it has returned (in
    process 0, where there are several).
    """
    target = folder / str(step)
    if distributed.from_first(target.exists):
        return lambda: target
    with contextlib.ExitStack() as stack:
        committing = steps.committing(folder, step, keep=keep)
        temporary = pathlib.Path(distributed.from_first(lambda: str(stack.enter_context(committing))))
        writers, shapes = [], {}
        for name, tree in trees.items():
            # Orbax copies the arrays off the devices before it returns. One writer a tree: a second save of the same
            # writer would wait for the first.
            writers.append(stack.enter_context(ocp.StandardCheckpointer()))
            arrays = flatten(tree)
            writers[-1].save(temporary.absolute() / name, arrays)
            shapes[name] = {path: describe(leaf) for path, leaf in arrays.items()}
        rest = stack.pop_all()

    def commit() -> pathlib.Path:
        with rest:
            for writer in writers:
                writer.wait_until_finished()
            if distributed.is_first():
                storage.write_json(temporary / META, {**meta, "step": step, "trees": shapes})
        return target

    return commit


def read_meta(path: pathlib.Path) -> dict:
    return storage.read_json(path / META)


def restore(path: pathlib.Path, name: str, abstract):
    """One named tree, into the structure, dtypes and shardings of `abstract`; UserError printing any difference."""
    try:
        return _restored(path, name, abstract)
    except (OSError, ValueError):
        if (path / storage.MANIFEST).exists() and (path / name).exists():
            raise
        raise UserError(f"checkpoint {path} was deleted while it was read", NO_CHECKPOINT) from None


def _restored(path: pathlib.Path, name: str, abstract):
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
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


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
