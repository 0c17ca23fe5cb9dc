"""The blocks of the Video U-Net: a residual block over space, then whatever mixes pixels, text and time.

A space-time block is factorised (Ho et al. 2022, Video Diffusion Models; Imagen Video fig. 7): spatial convolution
and attention see each frame alone; temporal attention (base) or temporal convolution (super-resolution) follows.
With one frame (an image) temporal convolution is skipped and temporal attention sees the frame itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from imagen_video_jax.models.attention import SpatialAttention, TemporalAttention
from imagen_video_jax.models.layers import GroupNorm, Linear, SpatialConv, TemporalConv, kept
from imagen_video_jax.partitioning import device_kind

TEMPORAL_MIXING = ("attention", "convolution", "none")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What one level's blocks contain.

    Attributes:
      channels: feature channels.
      spatial_attention: self-attention over the pixels of a frame.
      text_attention: cross-attention to text tokens.
      temporal: "attention", "convolution" or "none".
    """

    channels: int
    spatial_attention: bool
    text_attention: bool
    temporal: str


def halves(x):
    """The two halves of x along its last axis.

    On a CPU both are sums over a pair of which one is zero, and so arrays of their own: a loop over pixels that reads
    two slices of one array is left without vector instructions by XLA (a core took 5.3 ms instead of 0.8 to scale,
    shift and swish 16 frames of 24x40x64, and 17 instead of 2 for the gradients).
    """
    if device_kind() != "cpu":
        return jnp.split(x, 2, axis=-1)
    pairs = x.reshape(*x.shape[:-1], 2, -1)
    return [jnp.where(jnp.arange(2)[:, None] == half, pairs, 0).sum(axis=-2) for half in (0, 1)]


class ResidualBlock(nnx.Module):
    """GroupNorm, swish, conv 3x3, GroupNorm scaled and shifted by the conditioning, swish, conv 3x3; plus x."""

    def __init__(self, rngs, inputs: int, outputs: int, embedding_width: int):
        self.norm1 = GroupNorm(inputs)
        self.conv1 = SpatialConv(rngs, inputs, outputs)
        self.modulation = Linear(rngs, embedding_width, 2 * outputs)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = SpatialConv(rngs, outputs, outputs, scale=0.0)
        self.shortcut = SpatialConv(rngs, inputs, outputs, size=1) if inputs != outputs else None

    def __call__(self, x_BTHWC, embedding_BTE):
        h = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)))
        scale, shift = halves(self.modulation(jax.nn.silu(embedding_BTE))[:, :, None, None])
        h = self.conv2(jax.nn.silu(self.norm2(h) * (1 + scale) + shift))
        return h + (x_BTHWC if self.shortcut is None else self.shortcut(x_BTHWC))


class TemporalConvBlock(nnx.Module):
    """x + a convolution over frames of the normalised features; skipped for one frame."""

    def __init__(self, rngs, channels: int):
        self.norm = GroupNorm(channels)
        self.conv = TemporalConv(rngs, channels, channels, scale=0.0)

    def __call__(self, x_BTHWC):
        if x_BTHWC.shape[1] == 1:
            return x_BTHWC
        return x_BTHWC + self.conv(jax.nn.silu(self.norm(x_BTHWC)))


class SpaceTimeBlock(nnx.Module):
    """Residual block, then spatial and/or text attention, then temporal mixing."""

    def __init__(
        self, rngs, inputs: int, config: BlockConfig, *, embedding_width, text_width, head_width, max_frames, kernel
    ):
        channels = config.channels
        self.residual = ResidualBlock(rngs, inputs, channels, embedding_width)
        attends = config.spatial_attention or config.text_attention
        self.attention = (
            SpatialAttention(
                rngs,
                channels,
                head_width=head_width,
                pixels=config.spatial_attention,
                text_width=text_width if config.text_attention else None,
                kernel=kernel,
            )
            if attends
            else None
        )
        if config.temporal == "attention":
            self.temporal = TemporalAttention(rngs, channels, head_width=head_width, max_distance=max_frames)
        elif config.temporal == "convolution":
            self.temporal = TemporalConvBlock(rngs, channels)
        else:
            self.temporal = None

    def __call__(self, x_BTHWC, embedding_BTE, text_BLD, text_mask_BL):
        x = kept(self.residual(x_BTHWC, embedding_BTE))
        if self.attention is not None:
            x = kept(self.attention(x, text_BLD, text_mask_BL))
        return x if self.temporal is None else kept(self.temporal(x))


class Downsample(nnx.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, rngs, inputs: int, outputs: int):
        self.conv = SpatialConv(rngs, inputs, outputs, stride=2)

    def __call__(self, x_BTHWC):
        return self.conv(x_BTHWC)


class Upsample(nnx.Module):
    """Brings features to a given height and width: each pixel repeated, cut to size, convolved."""

    def __init__(self, rngs, inputs: int, outputs: int):
        self.conv = SpatialConv(rngs, inputs, outputs)

    def __call__(self, x_BTHWC, height: int, width: int):
        # A strided convolution with "same" padding rounds odd sizes up, so the way back cuts.
        x = jnp.repeat(jnp.repeat(x_BTHWC, 2, axis=2), 2, axis=3)[:, :, :height, :width]
        return self.conv(x)
