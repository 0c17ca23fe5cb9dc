"""What every feature network is given: frames as people have them -> what the network was trained on, in batches."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax.errors import UserError
from imagen_video_jax.video.frames import to_uint8


def checked(frames: np.ndarray, axes: str) -> np.ndarray:
    """The frames, uint8 [0, 255] or float32 [-1, 1] (clipped); UserError for anything else.

    Args:
      axes: names of the axes, e.g. "BTHWC".
    """
    frames = np.asarray(frames)
    if frames.ndim != len(axes) or frames.shape[-1] != 3 or 0 in frames.shape[1:]:
        raise UserError(f"expected frames {axes} of 3 colours, got an array of shape {frames.shape}")
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind != "f":
        raise UserError(f"expected frames of uint8 [0, 255] or floats [-1, 1], got {frames.dtype}")
    if not np.isfinite(frames).all():
        raise UserError("frames hold numbers that are not finite (NaN or infinity)")
    return np.clip(frames, -1, 1).astype(np.float32, copy=False)


def unit(frames: np.ndarray) -> np.ndarray:
    """uint8 or [-1, 1] -> float32 [-1, 1]."""
    return frames.astype(np.float32) / np.float32(127.5) - 1 if frames.dtype == np.uint8 else frames


def bytes_of(frames: np.ndarray) -> np.ndarray:
    """uint8 or [-1, 1] -> uint8."""
    return frames if frames.dtype == np.uint8 else to_uint8(frames)


def in_batches(
    apply: Callable,
    items: np.ndarray | Sequence,
    *,
    size: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator:
    """Yields apply(batch) cut to the real items; the last batch is filled up, so that one program serves all.

    Args:
      apply: array (size, ...) -> tree of arrays (size, ...).
      size: of a batch; fewer items than that are one batch of their own number.
      progress: called with the number of items done.
    """
    size = min(size, len(items)) or 1
    for begin in range(0, len(items), size):
        end = min(begin + size, len(items))
        rows = np.minimum(np.arange(begin, begin + size), len(items) - 1)
        computed = apply(np.asarray(items)[rows])
        yield jax.tree.map(lambda array, real=end - begin: np.asarray(array, np.float32)[:real], computed)
        if progress is not None:
            progress(end)


@functools.cache
def bilinear_weights(before: int, after: int, *, half_pixel: bool) -> np.ndarray:
    """(after, before) weights of bilinear interpolation without antialiasing, as metrics' reference code resizes.

    Sample i is taken at (i + 1/2) before/after - 1/2 with `half_pixel`, as in torch; else at i before/after, as in
    TensorFlow 1. Positions outside repeat the edge.
    """
    at = np.arange(after) * (before / after)
    if half_pixel:
        at = np.maximum((np.arange(after) + 0.5) * (before / after) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(int), before - 1)
    high, share = np.minimum(low + 1, before - 1), at - low
    weights = np.zeros((after, before))
    np.add.at(weights, (np.arange(after), low), 1 - share)
    np.add.at(weights, (np.arange(after), high), share)
    return weights.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("height", "width", "half_pixel"))
def resized(frames_NHWC: jax.Array, height: int, width: int, *, half_pixel: bool) -> jax.Array:
    """Bilinear resize without antialiasing; the aspect ratio is not kept."""
    rows = bilinear_weights(frames_NHWC.shape[1], height, half_pixel=half_pixel)
    columns = bilinear_weights(frames_NHWC.shape[2], width, half_pixel=half_pixel)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("nhwc,ph,qw->npqc", frames_NHWC, rows, columns)
