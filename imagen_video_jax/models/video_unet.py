"""The Video U-Net of every stage: one class, seven configurations.

    noisy video (+ low-resolution video on channels) -> space to depth -> levels down -> levels up -> depth to space

What conditions each frame is one vector: noise level + pooled text + frame rate (+ noise level of the low-resolution
video) (+ position of the frame), mixed by a small network; it scales and shifts the normalised features of every
residual block. Text tokens are also attended to at chosen levels.

Two layouts. "unet" (base; Ho et al. 2022): blocks, then down-sampling; every block's output is a skip connection.
"efficient" (super-resolution; Imagen appendix B): down-sampling before and up-sampling after the blocks of a level,
one skip per level, scaled by 1/sqrt(2). With no attention over space a network is fully convolutional: any size.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from imagen_video_jax.models.attention import KERNELS, AttentionPooling, valid_first, wanted
from imagen_video_jax.models.blocks import TEMPORAL_MIXING, BlockConfig, Downsample, SpaceTimeBlock, Upsample
from imagen_video_jax.models.layers import (
    GroupNorm,
    Linear,
    SpatialConv,
    depth_to_space,
    sinusoid,
    space_to_depth,
)
from imagen_video_jax.partitioning import constrain

LAYOUTS = ("unet", "efficient")
DTYPES = ("float32", "bfloat16")
# What a block under remat keeps for the backward pass: nothing but its input, or what convolutions and products gave.
REMAT_POLICIES = {
    "nothing": None,
    "products": lambda primitive, *_, **__: primitive.name in ("conv_general_dilated", "dot_general"),
}


@dataclasses.dataclass(frozen=True)
class VideoUNetConfig:
    """Sizes and switches of one network; tuples have an entry per level, from high to low resolution.

    Attributes:
      channels, blocks: feature channels and blocks of each level.
      spatial_attention, text_attention: where a frame's pixels attend to each other, and to text.
      temporal: "attention", "convolution" or "none" at each level.
      layout: "unet" or "efficient".
      patch: space-to-depth factor at the door.
      low_resolution: whether a conditioning video is concatenated to the input.
      low_resolution_mask: whether a 0/1 channel says which conditioning frames are given (blank frames).
      guidance: whether the network takes the guidance weight as an input: a student of distillation.
      frame_positions: whether the frame's index is part of its conditioning vector.
      text_width: width of a text token.
      embedding_width: width of the conditioning vector.
      head_width: channels of an attention head.
      max_frames: largest frame distance that the relative position bias tells apart.
      remat: recompute each block's activations in the backward pass.
      remat_policy: all of them ("nothing" is kept), or all but the results of "products" and convolutions.
      attention: kernel of attention over pixels and text: "xla", "cudnn" (where it can: bfloat16 on NVIDIA GPUs),
        "splash" (on TPUs), or "auto", which of them was measured to be faster.
      dtype: compute type, "float32" or "bfloat16"; parameters are float32.
    """

    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 1)
    spatial_attention: tuple[bool, ...] = (False, True)
    text_attention: tuple[bool, ...] = (False, True)
    temporal: tuple[str, ...] = ("attention", "attention")
    layout: str = "unet"
    patch: int = 1
    low_resolution: bool = False
    low_resolution_mask: bool = False
    guidance: bool = False
    frame_positions: bool = True
    text_width: int = 384
    embedding_width: int = 256
    head_width: int = 32
    max_frames: int = 32
    remat: bool = False
    remat_policy: str = "nothing"
    attention: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        per_level = ("blocks", "spatial_attention", "text_attention", "temporal")
        for name in per_level:
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"network.{name} has {len(getattr(self, name))} entries, one per level of "
                    f"network.channels is needed: {len(self.channels)}"
                )
        for name in ("channels", "patch", "text_width", "embedding_width", "head_width", "max_frames"):
            values = getattr(self, name)
            if min(values if isinstance(values, tuple) else (values,), default=0) < 1:
                raise ValueError(f"network.{name} must be at least 1, got {values}")
        if self.dtype not in DTYPES:
            raise ValueError(f"network.dtype must be one of {DTYPES}, got {self.dtype!r}")
        if set(self.temporal) - set(TEMPORAL_MIXING):
            raise ValueError(f"network.temporal entries must be of {TEMPORAL_MIXING}, got {self.temporal}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"network.layout must be one of {LAYOUTS}, got {self.layout!r}")
        if self.remat_policy not in REMAT_POLICIES:
            raise ValueError(f"network.remat_policy must be one of {tuple(REMAT_POLICIES)}, got {self.remat_policy!r}")
        if self.attention not in KERNELS:
            raise ValueError(f"network.attention must be one of {KERNELS}, got {self.attention!r}")
        self._check_heads()

    def _check_heads(self) -> None:
        attends = [
            attention == "attention" or spatial or text
            for attention, spatial, text in zip(self.temporal, self.spatial_attention, self.text_attention)
        ]
        widths = [(f"channels[{i}]", width, self.head_width) for i, width in enumerate(self.channels) if attends[i]]
        for name, width, head_width in [*widths, ("embedding_width", self.embedding_width, 64)]:
            heads = max(width // head_width, 1)
            if width % heads:
                raise ValueError(f"network.{name} {width} is not divisible by its {heads} heads of about {head_width}")

    def level(self, index: int) -> BlockConfig:
        return BlockConfig(
            self.channels[index], self.spatial_attention[index], self.text_attention[index], self.temporal[index]
        )


class VideoUNet(nnx.Module):
    """Predicts the diffusion target of a noisy video, float32, of the same shape."""

    def __init__(self, rngs, config: VideoUNetConfig):
        self.config = config
        width = config.embedding_width
        self.noise_level1 = Linear(rngs, width, width)
        self.noise_level2 = Linear(rngs, width, width)
        self.pooled_text = AttentionPooling(rngs, config.text_width, width, heads=max(width // 64, 1))
        self.frame_rate = Linear(rngs, 32, width)
        self.frame_position = Linear(rngs, 64, width) if config.frame_positions else None
        self.augmentation = Linear(rngs, width, width) if config.low_resolution else None
        self.guidance1 = Linear(rngs, 64, width) if config.guidance else None
        # At zero, so that a student starts as its teacher whatever the weight.
        self.guidance2 = Linear(rngs, width, width, scale=0.0) if config.guidance else None
        self.joint1 = Linear(rngs, width, width)
        self.joint2 = Linear(rngs, width, width)
        inputs = 3 * (2 if config.low_resolution else 1) + int(config.low_resolution_mask)
        self.door_in = SpatialConv(rngs, inputs * config.patch**2, config.channels[0])
        self._build_down(rngs)
        self._build_up(rngs)
        self.norm_out = GroupNorm(config.channels[0])
        self.door_out = SpatialConv(rngs, config.channels[0], 3 * config.patch**2, scale=0.0)

    def _block(self, rngs, inputs: int, level: int) -> SpaceTimeBlock:
        config = self.config
        return SpaceTimeBlock(
            rngs,
            inputs,
            config.level(level),
            embedding_width=config.embedding_width,
            text_width=config.text_width,
            head_width=config.head_width,
            max_frames=config.max_frames,
            kernel=config.attention,
        )

    def _build_down(self, rngs) -> None:
        config, channels = self.config, self.config.channels[0]
        for level, (width, count) in enumerate(zip(config.channels, config.blocks)):
            if level:
                setattr(self, f"down{level}_sample", Downsample(rngs, channels, width))
                channels = width
            for block in range(count):
                setattr(self, f"down{level}_block{block}", self._block(rngs, channels, level))
                channels = width

    def _build_up(self, rngs) -> None:
        config, channels = self.config, self.config.channels[-1]
        if config.layout == "unet":
            self.middle = self._block(rngs, channels, len(config.channels) - 1)
        for level in reversed(range(len(config.channels))):
            width = config.channels[level]
            for block in range(self.config.blocks[level]):
                skip = width if config.layout == "unet" or block == 0 else 0
                setattr(self, f"up{level}_block{block}", self._block(rngs, channels + skip, level))
                channels = width
            if level:
                setattr(self, f"up{level}_sample", Upsample(rngs, channels, config.channels[level - 1]))
                channels = config.channels[level - 1]

    def embed(self, *, logsnr_B, text_BLD, text_mask_BL, fps_B, frames, low_logsnr_B, guidance_B):
        """The conditioning vector of each frame, BTE."""
        width = self.config.embedding_width
        embedding = self.noise_level2(jax.nn.silu(self.noise_level1(_level_features(logsnr_B, width))))
        embedding += self.pooled_text(text_BLD.astype(jnp.float32), text_mask_BL)
        # Frame rates differ by factors, and an image (0) has its own value.
        embedding += self.frame_rate(sinusoid(jnp.log2(jnp.maximum(fps_B, 0.0) + 1.0) * 16.0, 32))
        if self.augmentation is not None:
            embedding += self.augmentation(_level_features(low_logsnr_B, width))
        if self.guidance1 is not None:
            # Weights are felt by ratios, like frame rates.
            features = sinusoid(jnp.log2(1.0 + guidance_B) * 16.0, 64)
            embedding += self.guidance2(jax.nn.silu(self.guidance1(features)))
        embedding_BTE = jnp.repeat(embedding[:, None], frames, axis=1)
        if self.frame_position is not None:
            embedding_BTE += self.frame_position(sinusoid(jnp.arange(frames), 64, longest=100.0))
        # What a word means for a frame depends on when: "moves left" is another place in each.
        return embedding_BTE + self.joint2(jax.nn.silu(self.joint1(jax.nn.silu(embedding_BTE))))

    def __call__(
        self,
        z_BTHWC,
        *,
        logsnr_B,
        text_BLD,
        text_mask_BL,
        fps_B,
        low_BTHWC=None,
        low_logsnr_B=None,
        low_mask_BT=None,
        guidance_B=None,
    ):
        """Args: z noisy video; low the conditioning video at the same T, H, W with its noise level and, with
        `low_resolution_mask`, which of its frames are given. H and W must be divisible by `patch`.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        B, T, _, _, _ = z_BTHWC.shape
        if wanted(config.attention) == "cudnn":  # a fused kernel takes the number of valid tokens instead of their mask
            text_BLD, text_mask_BL = valid_first(text_BLD, text_mask_BL)
        embedding_BTE = self.embed(
            logsnr_B=logsnr_B,
            text_BLD=text_BLD,
            text_mask_BL=text_mask_BL,
            fps_B=fps_B,
            frames=T,
            low_logsnr_B=low_logsnr_B,
            guidance_B=guidance_B,
        ).astype(dtype)
        inputs = [z_BTHWC] if low_BTHWC is None else [z_BTHWC, low_BTHWC]
        if config.low_resolution_mask:
            inputs.append(jnp.broadcast_to(low_mask_BT[:, :, None, None, None], (*z_BTHWC.shape[:4], 1)))
        x = space_to_depth(jnp.concatenate(inputs, axis=-1).astype(dtype), config.patch)
        x = self._constrain(self.door_in(x))
        h = self._levels(x, (embedding_BTE, text_BLD.astype(dtype), text_mask_BL))
        y = self.door_out(jax.nn.silu(self.norm_out(h)))
        return depth_to_space(y, config.patch).astype(jnp.float32)

    def _levels(self, x, conditions):
        config = self.config
        # The efficient layout scales its skips so that the sum keeps its variance.
        skip_scale = 1 / math.sqrt(2) if config.layout == "efficient" else 1.0
        skips = []
        for level, count in enumerate(config.blocks):
            if level:
                x = self._constrain(getattr(self, f"down{level}_sample")(x))
            for block in range(count):
                x = self._run(f"down{level}_block{block}", x, conditions)
                if config.layout == "unet":
                    skips.append(x)
            if config.layout == "efficient":
                skips.append(x)
        if config.layout == "unet":
            x = self._run("middle", x, conditions)
        for level in reversed(range(len(config.channels))):
            for block in range(self.config.blocks[level]):
                if config.layout == "unet" or block == 0:
                    skip = skips.pop()
                    x = jnp.concatenate([x, skip * skip_scale], axis=-1)
                x = self._run(f"up{level}_block{block}", x, conditions)
            if level:
                height, width = skips[-1].shape[2:4]
                x = self._constrain(getattr(self, f"up{level}_sample")(x, height, width))
        return x

    def _run(self, name: str, x, conditions):
        block = getattr(self, name)
        run = block
        if self.config.remat:
            run = jax.checkpoint(lambda *args: block(*args), policy=REMAT_POLICIES[self.config.remat_policy])
        with jax.named_scope(name):
            return self._constrain(run(x, *conditions))

    @staticmethod
    def _constrain(x_BTHWC):
        return constrain(x_BTHWC, "batch", "frames", "height")


def _level_features(logsnr_B, width: int):
    """Noise level as the angle atan(exp(-logsnr/2)) in [0, 1], in sines and cosines: even over the cosine schedule."""
    angle_B = jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr_B, -30.0, 30.0))) * (2 / math.pi)
    return sinusoid(angle_B * 1000.0, width)
