"""safetensors files -> `StoredArray`s: one file, or the shards that an index names; and the writer of one file.

Read here rather than by the safetensors package, which maps whole files: a process that loads an eighth of a large
model should hold an eighth, and files in buckets cannot be mapped.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes length of the header, little-endian; the header,
JSON of {name: {dtype, shape, data_offsets}}; the arrays, in C order.
"""

import functools
import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np

from imagen_video_jax.errors import UserError
from imagen_video_jax.text import weight_store
from imagen_video_jax.text.stored_array import StoredArray

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_LONGEST_HEADER = 100 << 20  # the format's own limit
_READ = 32 << 20  # bytes read at once where only some columns are wanted


Place = tuple[np.dtype, tuple[int, ...], int]  # of an array: its type, its shape, where in the file it begins


def parse_header(head: bytes, size: int | None) -> tuple[dict[str, Place], dict[str, str]]:
    """{name: (dtype, shape, position in the file)} and the metadata; ValueError says what is wrong.

    Args:
      head: the first bytes of the file, the whole header among them.
      size: of the file, in bytes; None where it is not known, and not checked.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > min(_LONGEST_HEADER, (size or len(head)) - 8):
        raise ValueError("it does not begin with a safetensors header, or is cut")
    try:
        header = json.loads(head[8 : 8 + length])
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("its header does not describe arrays")
    metadata = header.pop("__metadata__", {})
    arrays, end, taken = {}, 0, []
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"array {name} is of type {entry['dtype']}, which is not known here")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, stop = entry["data_offsets"]
        counts = (*shape, begin, stop)
        if any(type(n) is not int or n < 0 for n in counts) or stop - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the bytes of array {name} do not fit its shape {shape}")
        arrays[name] = (dtype, shape, 8 + length + begin)
        taken.append((begin, stop))
    for begin, stop in sorted(taken):
        if begin != end:
            raise ValueError(f"its arrays overlap or leave a hole at byte {8 + length + min(begin, end)}")
        end = stop
    if size is not None and 8 + length + end != size:
        raise ValueError(f"{size} bytes, expected {8 + length + end}")
    return arrays, metadata


def open_file(path) -> dict[str, StoredArray]:
    """The arrays of one file; UserError where it is no safetensors file, or cut."""
    try:
        size = weight_store.size(path)
        length = int.from_bytes(weight_store.read(path, 0, 8), "little")
        header, _ = parse_header(weight_store.read(path, 0, 8 + min(length, _LONGEST_HEADER)), size)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"cannot read weights {path}: {error}") from None
    return {
        name: StoredArray(name, shape, dtype, functools.partial(_read, path, position, dtype, shape))
        for name, (dtype, shape, position) in header.items()
    }


def open_index(path) -> dict[str, StoredArray]:
    """The arrays of the shards that `*.safetensors.index.json` names; all must lie beside it."""
    folder, name = os.path.split(path)
    try:
        places = json.loads(weight_store.read(path))["weight_map"]
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no index of safetensors files: {error}") from None
    arrays = {}
    for shard in shards:
        if not isinstance(shard, str) or shard != pathlib.PurePath(shard).name or shard in ("", ".", ".."):
            raise UserError(f"{path} names {shard!r}, which is outside its folder; only files beside it are read")
        if not weight_store.exists(os.path.join(folder, shard)):
            raise UserError(f"{path} names {shard}, which is missing beside it; fetch all files of the model")
        arrays[shard] = open_file(os.path.join(folder, shard))
    lost = [name for name, shard in places.items() if name not in arrays[shard]]
    if lost:
        shard = os.path.join(folder, places[lost[0]])
        raise UserError(f"{shard} has no array {lost[0]}, which {name} says it holds")
    return {name: arrays[shard][name] for name, shard in places.items()}


def files_of(folder: str) -> list[str]:
    """safetensors files and their indices in a folder."""
    return [os.path.join(folder, name) for name in weight_store.names_in(folder) if ".safetensors" in name]


def local_files(path: str) -> list[pathlib.Path]:
    """What `open_file` or `open_index` reads of `path`; nothing where it is in a bucket."""
    if weight_store.in_bucket(path):
        return []
    names = json.loads(pathlib.Path(path).read_text())["weight_map"].values() if path.endswith(".json") else ()
    return [pathlib.Path(path), *(pathlib.Path(path).parent / name for name in sorted(set(names)))]


def write_file(path: os.PathLike, arrays: dict, dtype) -> None:
    """Writes one file, arrays in order of name, each converted to `dtype` when its turn comes.

    Args: arrays has anything with a shape that numpy takes; of what lies on a device one array at a time is copied.
    """
    dtype, header, end = np.dtype(dtype), {"__metadata__": {"format": "np"}}, 0
    letters = {np.dtype(known): text for text, known in DTYPES.items()}[dtype]
    for name in sorted(arrays):
        shape = arrays[name].shape
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": letters, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays can be mapped
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(arrays):
            file.write(np.asarray(arrays[name]).astype(dtype, copy=False).tobytes())


def _read(path, position: int, dtype: np.dtype, shape: tuple[int, ...], block: tuple[slice, ...]) -> np.ndarray:
    """One block: only its rows are read, a few at a time, and only its columns kept."""
    if not shape:
        block, shape = (slice(0, 1),), (1,)
    (first, last, _), columns = block[0].indices(shape[0]), block[1:]
    row = math.prod(shape[1:]) * dtype.itemsize
    step = max(_READ // max(row, 1), 1)
    out = np.empty([last - first, *(part.stop - part.start for part in columns)], dtype)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        data = weight_store.read(path, position + begin * row, position + end * row)
        if len(data) != (end - begin) * row:
            raise UserError(f"{path} is cut: it ends inside an array")
        rows = np.frombuffer(data, dtype).reshape(end - begin, *shape[1:])
        out[begin - first : end - first] = rows[:, *columns]
    return out
