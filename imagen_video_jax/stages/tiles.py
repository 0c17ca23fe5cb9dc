"""A network call in overlapping tiles, one after the other: for videos whose activations one device cannot hold.

Each tile is computed with `overlap` more frames and pixels around it, which are cut off. Over frames the result is the
untiled one, if the overlap is at least the number of temporal convolutions a frame passes. Over height and width it is
near: normalisation takes its statistics from the tile instead of the frame.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_video_jax.errors import UserError
from imagen_video_jax.models.video_unet import VideoUNetConfig


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Frames, height and width of a tile (0: not cut along this axis), and of its overlap on either side."""

    size: tuple[int, int, int] = (0, 0, 0)
    overlap: tuple[int, int, int] = (0, 0, 0)

    def of(self, network: VideoUNetConfig) -> "Tiling":
        """Without the axes along which a network cannot be cut: those over which it attends, or counts its frames.

        UserError for sides that its down-sampling does not divide.
        """
        stride = network.patch * 2 ** (len(network.channels) - 1)
        can = [not network.frame_positions and "attention" not in network.temporal]
        can += [not any(network.spatial_attention)] * 2
        for axis, multiple in enumerate((1, stride, stride)):
            if self.size[axis] < 0 or self.overlap[axis] < 0:
                raise UserError(f"tile and overlap must be at least 0, got {self.size} and {self.overlap}")
            if can[axis] and self.size[axis] and (self.size[axis] % multiple or self.overlap[axis] % multiple):
                raise UserError(
                    f"tile sides and overlap must be divisible by {multiple}, got {self.size}, {self.overlap}"
                )
        return Tiling(tuple(size if free else 0 for size, free in zip(self.size, can)), self.overlap)


WHOLE = Tiling()


def in_tiles(call: Callable, tiling: Tiling, video_BTHWC: jax.Array, others: dict[str, jax.Array | None]) -> jax.Array:
    """`call(video, others)` tile by tile.

    Args: others are cut along with the video: arrays [B, T, ...] or [B, T, H, W, ...], or None.
    """
    shape = video_BTHWC.shape[1:4]
    tile = [min(size, whole) if size else whole for size, whole in zip(tiling.size, shape)]
    window = [min(t + 2 * o, whole) if t < whole else whole for t, o, whole in zip(tile, tiling.overlap, shape)]
    counts = [math.ceil(whole / t) for whole, t in zip(shape, tile)]
    if counts == [1, 1, 1]:
        return call(video_BTHWC, others)

    def add(number, out):
        places = jnp.unravel_index(number, counts)
        # The last tile ends with the video, so all are of one size; a window stays inside it.
        begin = [jnp.minimum(p * t, whole - t) for p, t, whole in zip(places, tile, shape)]
        start = [jnp.clip(b - o, 0, whole - w) for b, o, w, whole in zip(begin, tiling.overlap, window, shape)]

        def cut(array):
            axes = min(array.ndim - 1, 3)
            sizes = (array.shape[0], *window[:axes], *array.shape[1 + axes :])
            return jax.lax.dynamic_slice(array, (0, *start[:axes], *[0] * (array.ndim - 1 - axes)), sizes)

        result = call(cut(video_BTHWC), jax.tree.map(cut, others))
        inner = [b - s for b, s in zip(begin, start)]
        kept = jax.lax.dynamic_slice(result, (0, *inner, 0), (result.shape[0], *tile, result.shape[4]))
        return jax.lax.dynamic_update_slice(out, kept, (0, *begin, 0))

    return jax.lax.fori_loop(0, math.prod(counts), add, jnp.zeros(video_BTHWC.shape, jnp.float32))
