"""Tensors of a torch file (`.pth`, `.pt`), by reading it without torch and without executing its pickle.

Weights of FID's Inception-v3 are published in this form only. Both layouts of a state dict are read: a zip archive of
a pickle and a file per storage (torch since 1.6), and the older one, pickles and storages one after the other.
"""

import math
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.pickled_arrays import MALFORMED, Machine, Name

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Tensor:
    """A view of a storage: which one, where it begins, shape and strides in numbers."""

    def __init__(self, storage, offset: int, shape: tuple, strides: tuple, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, storages: Callable[[str], memoryview | bytes]) -> np.ndarray:
        kind, key, count = self.storage
        values = np.frombuffer(storages(key), kind)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        whole = all(type(n) is int and n >= 0 for n in (self.offset, *self.shape, *self.strides))
        # One number shown many times, by strides of 0, could fill the memory.
        if not whole or values.size != count or math.prod(self.shape) > count or last >= max(count, 1):
            raise ValueError(f"{values.size} numbers for a tensor of shape {self.shape}")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _TorchMachine(Machine):
    """Knows state dicts: ordered dictionaries of tensors, which name the storage that holds their numbers."""

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = (function.module, function.name)
        if name == ("collections", "OrderedDict") and arguments == ():
            self.push({})
        elif name == ("torch._utils", "_rebuild_tensor_v2"):
            self.push(_Tensor(*arguments))
        elif name == ("torch._utils", "_rebuild_parameter"):
            self.push(arguments[0])
        else:
            raise ValueError(f"it would call {name[0]}.{name[1]}")

    def build(self) -> None:
        # A state dict carries the versions of its modules as an attribute; nothing else is filled in.
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, dict) or not set(state) <= {"_metadata"}:
            raise ValueError("it fills in something that is no state dict")

    def persistent(self) -> None:
        tag, kind, key, _, count, *view = self.stack.pop()
        if tag != "storage" or not isinstance(kind, Name) or kind.name not in _DTYPES or any(view):
            raise ValueError("it names something that is no storage of numbers")
        self.push((_DTYPES[kind.name], key, count))


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name.

    Raises:
      UserError: the file is missing, cut, or holds anything but a dictionary of tensors of numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from None
    try:
        tensors, storages = _zipped(path) if data[:2] == b"PK" else _in_a_row(data)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
            raise ValueError("it holds something else than a dictionary of tensors")
        return {str(name): tensor.array(storages) for name, tensor in tensors.items()}
    except (*MALFORMED, zipfile.BadZipFile, EOFError, RuntimeError, OSError) as error:
        raise UserError(f"cannot read weights {path}: it is cut, or no torch file of tensors ({error})") from None


def _zipped(path: pathlib.Path):
    archive = zipfile.ZipFile(path)
    (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    # Members are stored, not compressed: a compressed one could be larger than memory.
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ValueError("it is compressed, which torch does not do")
    return _TorchMachine(memoryview(archive.read(pickled))).run(), lambda key: archive.read(f"{folder}data/{key}")


def _in_a_row(data: bytes):
    machine = _TorchMachine(memoryview(data))
    if machine.run() != _MAGIC:
        raise ValueError("it does not begin as torch files do")
    machine.run()  # the version
    system = machine.run()
    if not system["little_endian"]:
        raise ValueError("its numbers are big-endian")
    tensors = machine.run()
    itemsize = {key: np.dtype(kind).itemsize for kind, key, _ in (tensor.storage for tensor in tensors.values())}
    storages = {}
    for key in machine.run():
        storages[key] = machine.bytes(machine.number("<q") * itemsize[key])
    return tensors, storages.__getitem__
