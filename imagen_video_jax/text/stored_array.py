"""`StoredArray`: an array on disk or in a bucket, of which any block can be read; and its way onto devices."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint.

    Attributes:
      name: in the checkpoint, for messages.
      read: block (a slice with bounds per dimension) -> that part as a numpy array; UserError where it is damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def T(self) -> "StoredArray":
        """The transposed array; nothing is read for it."""
        return StoredArray(self.name, self.shape[::-1], self.dtype, lambda block: self.read(block[::-1]).T)

    def whole(self) -> np.ndarray:
        return self.read(tuple(slice(0, size) for size in self.shape))

    def placed(self, sharding: jax.sharding.Sharding, dtype) -> jax.Array:
        """The array in its place: a process reads what its own devices hold, once, and nothing else."""
        indices = [_bounds(i, self.shape) for i in sharding.addressable_devices_indices_map(self.shape).values()]
        box = tuple((min(begin for begin, _ in axis), max(end for _, end in axis)) for axis in zip(*indices))
        block = self.read(tuple(slice(*bounds) for bounds in box)).astype(dtype, copy=False)

        def part(index):
            bounds = zip(_bounds(index, self.shape), box)
            return block[tuple(slice(begin - first, end - first) for (begin, end), (first, _) in bounds)]

        return jax.make_array_from_callback(self.shape, sharding, part)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
