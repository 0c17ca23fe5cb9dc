"""Arrays out of a pickle, by reading its opcodes and never executing them (ARCHITECTURE.md, decision 14).

A pickle is a program for a stack machine. The one here knows the opcodes that dictionaries of numpy arrays are made of
and nothing else: a name (`numpy.dtype`) is kept as two strings and never imported or called, so the worst that a
hostile file can do is to be refused.

Opcodes: https://github.com/python/cpython/blob/3.11/Lib/pickletools.py; the state of an array and of a dtype are the
tuples that numpy's `__reduce__` writes.
"""

import dataclasses
import math
import pathlib
import struct
from typing import Any

import numpy as np

from imagen_video_jax.errors import UserError

_MOST_ARRAYS, _DEEPEST = 10_000, 16
_KINDS = {
    f"{kind}{size}" for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}.items() for size in sizes
}
MALFORMED = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError)
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


class _Mark:
    """Where a list of arguments begins on the stack."""


@dataclasses.dataclass
class Name:
    module: str
    name: str


@dataclasses.dataclass
class _Dtype:
    kind: str
    order: str = "<"


@dataclasses.dataclass
class _Array:
    state: tuple | None = None


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dictionary of dictionaries, under their keys joined by "/".

    Raises:
      UserError: the file is missing, cut, or holds anything but dictionaries of numpy arrays of numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from None
    try:
        return _flat(Machine(memoryview(data)).run())
    except MALFORMED as error:
        raise UserError(f"cannot read weights {path}: it is cut, or no pickle of arrays ({error})") from None


class Machine:
    """Runs one pickle after the other from `data`; `reduce` and `build` say what may be called and filled in."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0
        self.stack: list[Any]
        self.memo: dict[int, Any]

    def run(self) -> Any:
        self.stack, self.memo = [], {}
        while (code := self.bytes(1)[0:1].tobytes()) != b".":
            if code not in _STEPS:
                raise ValueError(f"opcode {code!r} at byte {self.at - 1} is not one that arrays need")
            _STEPS[code](self)
        (value,) = self.stack
        return value

    def bytes(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, inside an opcode")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        return str(self.bytes(count), "utf-8")

    def line(self) -> str:
        end = self.at
        while end < len(self.data) and self.data[end] != 0x0A:
            end += 1
        text = self.text(end - self.at)
        self.bytes(1)
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list:
        """Everything above the last mark, taken off."""
        last = max(i for i, value in enumerate(self.stack) if isinstance(value, _Mark))
        values = self.stack[last + 1 :]
        del self.stack[last:]
        return values

    def extend(self, values: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to something that is no list")
        self.stack[-1].extend(values)

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(values)

    def set_items(self, values: list) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it sets items of something that is no dictionary")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = (function.module, function.name)
        if name in _RECONSTRUCT:
            self.push(_Array())
        elif name == ("numpy", "dtype") and arguments[0] in _KINDS:
            self.push(_Dtype(arguments[0]))
        else:
            raise ValueError(f"it would call {name[0]}.{name[1]}{'' if name[1] != 'dtype' else arguments}")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            target.order = state[1]
        elif isinstance(target, _Array):
            target.state = state
        else:
            raise ValueError("it fills in something that is no array")

    def persistent(self) -> None:
        raise ValueError("it refers to something outside itself")

    def name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(Name(module, name))


_STEPS = {
    b"\x80": lambda m: m.bytes(1),  # PROTO
    b"\x95": lambda m: m.bytes(8),  # FRAME
    b"(": lambda m: m.push(_Mark()),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend([m.stack.pop()]),  # APPEND
    b"e": lambda m: m.extend(m.marked()),  # APPENDS
    b")": lambda m: m.push(()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"\x8a": lambda m: m.push(int.from_bytes(m.bytes(m.number("<B")), "little", signed=True)),  # LONG1
    b"K": lambda m: m.push(m.number("<B")),  # BININT1
    b"M": lambda m: m.push(m.number("<H")),  # BININT2
    b"J": lambda m: m.push(m.number("<i")),  # BININT
    b"\x8c": lambda m: m.push(m.text(m.number("<B"))),  # SHORT_BINUNICODE
    b"X": lambda m: m.push(m.text(m.number("<I"))),  # BINUNICODE
    b"C": lambda m: m.push(m.bytes(m.number("<B"))),  # SHORT_BINBYTES
    b"B": lambda m: m.push(m.bytes(m.number("<I"))),  # BINBYTES
    b"\x8e": lambda m: m.push(m.bytes(m.number("<Q"))),  # BINBYTES8
    b"t": lambda m: m.push(tuple(m.marked())),  # TUPLE
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),  # SETITEM
    b"u": lambda m: m.set_items(m.marked()),  # SETITEMS
    b"\x94": lambda m: m.memo.update({len(m.memo): m.stack[-1]}),  # MEMOIZE
    b"q": lambda m: m.memo.update({m.number("<B"): m.stack[-1]}),  # BINPUT
    b"r": lambda m: m.memo.update({m.number("<I"): m.stack[-1]}),  # LONG_BINPUT
    b"h": lambda m: m.push(m.memo[m.number("<B")]),  # BINGET
    b"j": lambda m: m.push(m.memo[m.number("<I")]),  # LONG_BINGET
    b"c": lambda m: m.push(Name(m.line(), m.line())),  # GLOBAL
    b"\x93": lambda m: m.name(),  # STACK_GLOBAL
    b"Q": lambda m: m.persistent(),  # BINPERSID
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
}


def _flat(tree: Any, prefix: str = "", depth: int = 0, out: dict | None = None) -> dict[str, np.ndarray]:
    """Nested dictionaries as one; the limits are for dictionaries that hold themselves."""
    out = {} if out is None else out
    if not isinstance(tree, dict) or depth > _DEEPEST or len(out) > _MOST_ARRAYS:
        raise ValueError("it holds something else than dictionaries of arrays")
    for key, value in tree.items():
        if isinstance(value, _Array):
            out[f"{prefix}{key}"] = _array(value)
        else:
            _flat(value, f"{prefix}{key}/", depth + 1, out)
    return out


def _array(array: _Array) -> np.ndarray:
    _, shape, dtype, fortran, data = array.state
    values = np.frombuffer(data, np.dtype(f"{dtype.order if dtype.order in '<>' else '<'}{dtype.kind}"))
    if math.prod(shape) != values.size:
        raise ValueError(f"{values.size} numbers for an array of shape {shape}")
    return values.reshape(shape, order="F" if fortran else "C")
