"""T5X checkpoints -> `StoredArray`s, without t5x: a msgpack file `checkpoint`, and one zarr array a parameter.

`checkpoint` holds {'version': 3, 'optimizer': {'target': parameters, 'state': ...}}, or before versions the inner
dictionary itself. A parameter is an array right there, or a TensorStore spec; of a spec only the last part of its path
is used, as the name of a folder beside the file: its driver and bucket ('gfile', 't5x-dummy-bucket') say where the
checkpoint once was. Shape, chunks and compression come from the zarr metadata. A checkpoint of a small model may be
the msgpack file alone. Folders are local or gs://bucket/path.

Source: t5x/checkpoints.py (github.com/google-research/t5x).
"""

import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorstore as ts
from flax import serialization

from imagen_video_jax.errors import UserError
from imagen_video_jax.text import weight_store
from imagen_video_jax.text.stored_array import StoredArray

FILE = "checkpoint"
_STEP = re.compile(r"checkpoint_(\d+)/?$")  # not checkpoint_100.tmp-1700000000, which was never finished
_SPEC = {"driver", "kvstore", "metadata"}
_OLD_SPEC = {"driver", "path", "metadata"}  # before T5X 0.1.14


def newest(folder: str) -> str | None:
    """The folder of the last finished checkpoint inside a model's folder, or None."""
    names = weight_store.names_in(folder)
    steps = {int(match[1]): name for name in names if (match := _STEP.match(name))}
    return f"{folder.rstrip('/')}/{steps[max(steps)]}" if steps else None


class T5XCheckpoint:
    """The parameters of one checkpoint whose names begin as wanted.

    Attributes:
      arrays: {name below `target`, with slashes: StoredArray}.
    """

    def __init__(self, path: str, wanted: tuple[str, ...]):
        """`path` is the checkpoint's folder, or its msgpack file alone; UserError where it is none."""
        self.path = path
        self._single = os.path.isfile(path)
        parameters = dict(_flat(_target(self._msgpack(), self._msgpack_path), ()))
        self._folders: dict[str, str] = {}
        pending, self.arrays = {}, {}
        for name, leaf in sorted(parameters.items()):
            if not name.startswith(wanted):
                continue
            if isinstance(leaf, dict):
                self._folders[name] = _folder_of(leaf)
                pending[name] = self._opening(name)
            elif isinstance(leaf, str) and leaf.startswith("PLACEHOLDER"):
                raise UserError(f"{path} is an Orbax checkpoint, not one that T5X's Checkpointer wrote")
            elif isinstance(leaf, (np.ndarray, np.generic, int, float)):
                self.arrays[name] = _in_memory(name, np.asarray(leaf))
            else:
                raise UserError(f"{path}: {name} is no array but {type(leaf).__name__}")
        for name, future in pending.items():
            self.arrays[name] = self._stored(name, future)

    @property
    def files(self) -> list[pathlib.Path]:
        """The files that the arrays are read from; none where they are in a bucket."""
        if weight_store.in_bucket(self.path):
            return []
        folders = [pathlib.Path(self.path) / self._folders[name] for name in sorted(self._folders)]
        return [pathlib.Path(self._msgpack_path), *(file for f in folders for file in sorted(f.iterdir()))]

    @property
    def _msgpack_path(self) -> str:
        return self.path if self._single else f"{self.path.rstrip('/')}/{FILE}"

    def _msgpack(self) -> dict:
        raw = weight_store.read(self._msgpack_path)
        if raw.startswith(b"model_checkpoint_path"):
            raise UserError(f"{self._msgpack_path} belongs to a TensorFlow checkpoint; T5X checkpoints are wanted")
        try:
            content = serialization.msgpack_restore(raw)
        except Exception as error:  # msgpack, flax and numpy raise types of their own
            reason = str(error) or type(error).__name__
            raise UserError(f"{self._msgpack_path} is no T5X checkpoint, or is cut: {reason}") from None
        if not isinstance(content, dict):
            raise UserError(f"{self._msgpack_path} is no T5X checkpoint: it holds {type(content).__name__}")
        return content

    def _spec(self, name: str) -> dict:
        # Without `fill_missing_data_reads: False` a lost chunk would be read as zeros.
        kvstore = weight_store.store_spec(f"{self.path.rstrip('/')}/{self._folders[name]}")
        return {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}

    def _opening(self, name: str):
        try:
            return ts.open(self._spec(name), open=True)
        except ValueError as error:  # a name that no file can have
            raise self._not_opened(name, error) from None

    def _not_opened(self, name: str, error: Exception) -> UserError:
        if (trouble := weight_store.trouble(self.path, error)) is not None:
            return trouble
        reason = "is missing" if "NOT_FOUND" in str(error) else f"cannot be opened: {_reason(error)}"
        return UserError(f"{self.path}: array {ascii(self._folders[name])[1:-1]} {reason}")

    def _stored(self, name: str, future) -> StoredArray:
        try:
            array = future.result()
        except (ValueError, TimeoutError) as error:
            raise self._not_opened(name, error) from None

        def read(block: tuple[slice, ...]) -> np.ndarray:
            try:
                return np.asarray(array[block].read().result())
            except ValueError as error:
                if (trouble := weight_store.trouble(self.path, error)) is not None:
                    raise trouble from None
                raise UserError(f"{self.path}: array {self._folders[name]} is damaged: {_reason(error)}") from None

        return StoredArray(name, tuple(array.shape), array.dtype.numpy_dtype, read)


def holds_checkpoint(folder: str) -> bool:
    """Whether the folder itself holds a checkpoint's msgpack file."""
    return weight_store.exists(f"{folder.rstrip('/')}/{FILE}")


def _target(content: dict, path: str) -> dict:
    version = content.get("version", 0)
    if version not in (0, 2, 3):
        raise UserError(f"{path} is a T5X checkpoint of version {version}; known are 0 (unwritten), 2 and 3")
    target = content.get("optimizer", content)
    target = target.get("target") if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise UserError(f"{path} is no T5X checkpoint: it has no 'target', only {', '.join(map(str, content))[:80]}")
    return target


def _flat(tree, path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict) and not (tree.keys() >= _SPEC or tree.keys() >= _OLD_SPEC):
        for name, branch in tree.items():
            yield from _flat(branch, (*path, str(name)))
    else:
        yield "/".join(path), tree


def _folder_of(spec: dict) -> str:
    """Only a name: a path in the file could lead out of the checkpoint's folder."""
    kvstore = spec.get("kvstore")
    path = spec.get("path") or (kvstore.get("path") if isinstance(kvstore, dict) else None)
    name = pathlib.PurePosixPath(path).name if isinstance(path, str) else ""
    return "an array without a path" if name in ("", "..") else name


def _in_memory(name: str, array: np.ndarray) -> StoredArray:
    return StoredArray(name, array.shape, array.dtype, lambda block: array[block])


def _reason(error: Exception) -> str:
    """TensorStore's message without the specification that it repeats."""
    return str(error).split(" [")[0][:200]
