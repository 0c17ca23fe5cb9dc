"""Video as arrays: pixel range, antialiased resize, crop, frame subsampling and repetition.

The same antialiased bilinear filter (a triangle whose support grows with the reduction, as in Pillow) is used on the
host for uint8 clips and on the device for the low-resolution inputs of super-resolution stages.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax.video.cover import resize_uint8

__all__ = [
    "crop",
    "repeat_frames",
    "resize",
    "resize_uint8",
    "spread_frames",
    "subsample_frames",
    "to_uint8",
    "to_unit",
]


def to_unit(video_BTHWC) -> jax.Array:
    """uint8 [0, 255] -> float32 [-1, 1]."""
    return video_BTHWC.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video_BTHWC) -> np.ndarray:
    """float [-1, 1] -> uint8 [0, 255], rounded, values outside the range clipped."""
    video = (np.asarray(video_BTHWC, np.float32) + 1.0) * 127.5
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def resize(video_BTHWC: jax.Array, height: int, width: int) -> jax.Array:
    """Antialiased bilinear resize of every frame, on the device."""
    B, T, H, W, C = video_BTHWC.shape
    if (height, width) == (H, W):
        return video_BTHWC
    if height % H == width % W == 0:
        return _enlarge(_enlarge(video_BTHWC, 2, height // H), 3, width // W)
    return jax.image.resize(video_BTHWC, (B, T, height, width, C), method="linear", antialias=True)


def _enlarge(x: jax.Array, axis: int, factor: int) -> jax.Array:
    """The same for a whole factor along one axis: each pixel and its two neighbours, weighted by `factor` phases.

    Shifts by one pixel need only the edge of a neighbouring shard where the axis is sharded; the general form is a
    matrix product, which gathers the axis.
    """
    if factor == 1:
        return x
    size = x.shape[axis]
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5  # of the output pixel's centre from the input's
        phases.append((1 - abs(offset)) * x + abs(offset) * (before if offset < 0 else after))
    stacked = jnp.stack(phases, axis=axis + 1)
    return stacked.reshape(*x.shape[:axis], size * factor, *x.shape[axis + 1 :])


def subsample_frames(video_BTHWC, factor: int):
    """Every `factor`-th frame, the first included: what a lower frame rate shows of the same clip."""
    return video_BTHWC[:, ::factor]


def repeat_frames(video_BTHWC: jax.Array, factor: int) -> jax.Array:
    """Each frame `factor` times in a row."""
    return jnp.repeat(video_BTHWC, factor, axis=1)


def spread_frames(video_BTHWC: jax.Array, factor: int) -> jax.Array:
    """Each frame followed by `factor - 1` blank (zero) frames."""
    B, T, H, W, C = video_BTHWC.shape
    blank = jnp.zeros((B, T, factor - 1, H, W, C), video_BTHWC.dtype)
    return jnp.concatenate([video_BTHWC[:, :, None], blank], axis=2).reshape(B, T * factor, H, W, C)


def crop(video_BTHWC: jax.Array, top_B: jax.Array, left_B: jax.Array, height: int, width: int) -> jax.Array:
    """The window of `height` x `width` at (top, left), a corner per example."""

    def one(video_THWC, top, left):
        T, _, _, C = video_THWC.shape
        return jax.lax.dynamic_slice(video_THWC, (0, top, left, 0), (T, height, width, C))

    return jax.vmap(one)(video_BTHWC, top_B, left_B)
