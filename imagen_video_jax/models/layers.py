"""Parameters with logical axis names, and the convolutions of a video network.

Video activations are `x_BTHWC`. Spatial layers fold frames into the batch and temporal layers fold pixels into it,
because two-dimensional and one-dimensional convolutions run more than twice as fast on a CPU as three-dimensional
ones. Where frames or height are sharded over the mesh a fold would gather the activation, so there each device folds
its own shard, which gets the edges of its neighbours first, and attention keeps its axes apart. `foldable` makes that
choice, here and nowhere else.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagen_video_jax import partitioning
from imagen_video_jax.models import convolution
from imagen_video_jax.partitioning import constrain, device_kind, over_shards, whole


def truncated_normal(key: jax.Array, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
    """Normal values cut at two standard deviations, variance scale / fan_in; zeros for scale 0."""
    if scale == 0.0:
        return jnp.zeros(shape, jnp.float32)
    # 0.8796 is the standard deviation of a unit normal cut at +-2.
    return jax.random.truncated_normal(key, -2, 2, shape) * math.sqrt(scale / fan_in) / 0.87962566


# XLA's CPU compiler takes `kept` out before it decides what to fuse, unless a program is compiled with this.
KEEPING = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def kept(x: jax.Array) -> jax.Array:
    """x; on a CPU, in programs compiled with KEEPING, it and its gradient are computed once and written to memory.

    Left alone, XLA's CPU compiler computes sums again in every loop that reads them, and the gradient of a residual
    stream is a sum over all blocks behind. A train step of 20M parameters took 2.14 s of a core instead of 2.33 with
    it. On accelerators it was not tried: their programs stay as they were timed.
    """
    return jax.lax.optimization_barrier(x) if device_kind() == "cpu" else x


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x kernel over the last axis of x.

    On a CPU the axes before it become one: the gradient of the kernel sums over them, and where there are several XLA
    transposes the other gradient for that, slowly (64 channels on a Zen 4 core: 21 to 31 GFLOP/s instead of 69 to 94).
    """
    if x.ndim > 2 and device_kind() == "cpu" and foldable():
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    return x @ kernel


class Linear(nnx.Module):
    """y = x kernel + bias over the last axis; computes in the dtype of x."""

    def __init__(self, rngs, inputs: int, outputs: int, *, axes=("embed", "mlp"), scale: float = 1.0, bias=True):
        self.axes = axes
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (inputs, outputs), inputs, scale), sharding_names=axes)
        self.bias = nnx.Param(jnp.zeros((outputs,)), sharding_names=(axes[1],)) if bias else None

    def __call__(self, x):
        y = multiply(x, whole(self.kernel[...].astype(x.dtype), self.axes))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalisation of each frame over pixels and channel groups, in float32, with learned scale and shift.

    Statistics are per frame, so a frame's features depend on other frames only where the network mixes time. A group
    has at least 16 channels: smaller ones take the level of a colour out of every layer of a narrow network.
    """

    def __init__(self, channels: int, *, groups: int = 32, epsilon: float = 1e-5):
        self.groups = math.gcd(max(min(groups, channels // 16), 1), channels)
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((channels,)), sharding_names=(None,))
        self.shift = nnx.Param(jnp.zeros((channels,)), sharding_names=(None,))

    def __call__(self, x_BTHWC):
        B, T, _, _, C = x_BTHWC.shape
        # Sums per channel first: the full-size reductions stay over contiguous pixels, and the grouping is tiny.
        mean_BTC = jnp.mean(x_BTHWC, axis=(2, 3), dtype=jnp.float32)
        square_BTC = jnp.mean(jnp.square(x_BTHWC.astype(jnp.float32)), axis=(2, 3))
        mean_BTC, square_BTC = (
            jnp.repeat(s.reshape(B, T, self.groups, -1).mean(-1), C // self.groups, axis=-1)
            for s in (mean_BTC, square_BTC)
        )
        inverse_BTC = jax.lax.rsqrt(jnp.maximum(square_BTC - mean_BTC**2, 0.0) + self.epsilon) * self.scale[...]
        offset_BTC = self.shift[...] - mean_BTC * inverse_BTC
        # In float32, too: where a mean is large beside the deviation, scale and offset nearly cancel.
        y = x_BTHWC.astype(jnp.float32) * inverse_BTC[:, :, None, None] + offset_BTC[:, :, None, None]
        return y.astype(x_BTHWC.dtype)


class LayerNorm(nnx.Module):
    """Normalisation over the last axis, in float32, with learned scale and shift."""

    def __init__(self, width: int, *, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,)), sharding_names=(None,))
        self.shift = nnx.Param(jnp.zeros((width,)), sharding_names=(None,))

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.shift[...]).astype(x.dtype)


class SpatialConv(nnx.Module):
    """A convolution of each frame, "same" padding, optional stride."""

    def __init__(self, rngs, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, scale: float = 1.0):
        self.stride = stride
        self.kernel = nnx.Param(
            truncated_normal(rngs.params(), (size, size, inputs, outputs), size * size * inputs, scale),
            sharding_names=(None, None, "conv_in", "conv_out"),
        )
        self.bias = nnx.Param(jnp.zeros((outputs,)), sharding_names=("conv_out",))

    def __call__(self, x_BTHWC):
        kernel = whole(self.kernel[...].astype(x_BTHWC.dtype), (None, None, "conv_in", "conv_out"))
        return kept(spatial_convolution(x_BTHWC, kernel, self.stride)) + self.bias[...].astype(x_BTHWC.dtype)


class TemporalConv(nnx.Module):
    """A convolution over frames at each pixel, "same" padding."""

    def __init__(self, rngs, inputs: int, outputs: int, *, size: int = 3, scale: float = 1.0):
        self.kernel = nnx.Param(
            truncated_normal(rngs.params(), (size, inputs, outputs), size * inputs, scale),
            sharding_names=(None, "conv_in", "conv_out"),
        )
        self.bias = nnx.Param(jnp.zeros((outputs,)), sharding_names=("conv_out",))

    def __call__(self, x_BTHWC):
        kernel = whole(self.kernel[...].astype(x_BTHWC.dtype), (None, "conv_in", "conv_out"))
        return temporal_convolution(x_BTHWC, kernel) + self.bias[...].astype(x_BTHWC.dtype)


def foldable() -> bool:
    """Whether frames and pixels may be merged with other axes: not where the mesh splits frames or height."""
    return not (partitioning.sharded("frames") or partitioning.sharded("height"))


def spatial_convolution(x_BTHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves each frame with kernel (kh, kw, in, out), "same" padding."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return multiply(x_BTHWC, kernel[0, 0])
    H, W = x_BTHWC.shape[2:4]
    across = _same(W, kernel.shape[1], stride)
    if foldable():
        return _convolve_frames(x_BTHWC, kernel, stride, (_same(H, kernel.shape[0], stride), across))

    def convolve(x_BTHWC, kernel):
        return _convolve_frames(x_BTHWC, kernel, stride, ((0, 0), across))

    halo = _same(H, kernel.shape[0], stride)
    return constrain(over_shards(convolve, x_BTHWC, kernel, "height", halo, stride), "batch", "frames", "height")


def temporal_convolution(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each pixel over frames with kernel (kt, in, out), "same" padding."""
    padding = _same(x_BTHWC.shape[1], kernel.shape[0], 1)
    if foldable():
        return _convolve_pixels(x_BTHWC, kernel, padding)

    def convolve(x_BTHWC, kernel):
        return _convolve_pixels(x_BTHWC, kernel, (0, 0))

    return constrain(over_shards(convolve, x_BTHWC, kernel, "frames", padding), "batch", "frames", "height")


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis, so that ceil(size / stride) positions come out."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _convolve_frames(x_BTHWC, kernel, stride: int, padding):
    B, T, H, W, C = x_BTHWC.shape
    x = x_BTHWC.reshape(B * T, H, W, C)
    y = convolution.convolve(x, kernel, stride, padding)
    return y.reshape(B, T, *y.shape[1:])


def _convolve_pixels(x_BTHWC, kernel, padding):
    B, T, H, W, C = x_BTHWC.shape
    x = x_BTHWC.transpose(0, 2, 3, 1, 4).reshape(B * H * W, T, C)
    y = jax.lax.conv_general_dilated(x, kernel, (1,), (padding,), dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(B, H, W, *y.shape[1:]).transpose(0, 3, 1, 2, 4)


def space_to_depth(x_BTHWC: jax.Array, factor: int) -> jax.Array:
    """Blocks of factor x factor pixels -> one pixel of factor^2 times the channels."""
    B, T, H, W, C = x_BTHWC.shape
    x = x_BTHWC.reshape(B, T, H // factor, factor, W // factor, factor, C)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(B, T, H // factor, W // factor, factor * factor * C)


def depth_to_space(x_BTHWC: jax.Array, factor: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    B, T, H, W, C = x_BTHWC.shape
    x = x_BTHWC.reshape(B, T, H, W, factor, factor, C // factor**2)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(B, T, H * factor, W * factor, C // factor**2)


def sinusoid(x: jax.Array, width: int, *, longest: float = 1e4) -> jax.Array:
    """[..., width] sines and cosines of x at geometrically spaced periods from 2 pi to 2 pi * longest."""
    half = width // 2
    # On the host: their rounding is not left to how a program is compiled, and angles go up to thousands.
    frequencies = np.exp(-math.log(longest) * np.arange(half) / max(half - 1, 1)).astype(np.float32)
    angles = x[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
