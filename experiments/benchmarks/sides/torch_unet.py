"""The base stage's Video U-Net in plain torch: the same levels, blocks, layers and parameters.

Frames are folded into the batch, images are N C H W in channels_last memory, N = B * T. Attention is
scaled_dot_product_attention; over frames, where 16 keys are less than a tile of its kernels, two products if asked for.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from imagen_video_jax.models.video_unet import VideoUNetConfig


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(max(min(32, channels // 16), 1), channels), channels)


def tokens(x_NCHW):
    """N (HW) C, without a copy where memory is channels_last."""
    return x_NCHW.permute(0, 2, 3, 1).flatten(1, 2)


def heads_first(x_NSC, heads: int):
    return x_NSC.unflatten(2, (heads, -1)).transpose(1, 2)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, embedding_NE):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(F.silu(embedding_NE))[:, :, None, None].chunk(2, dim=1)
        return self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift)) + self.shortcut(x)


class SpatialAttention(nn.Module):
    """Pixels attend to the pixels of their frame and to the text's tokens, or to these alone."""

    def __init__(self, channels: int, config: VideoUNetConfig, *, pixels: bool, text: bool):
        super().__init__()
        self.heads = max(channels // config.head_width, 1)
        self.norm, self.query = group_norm(channels), nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * channels, bias=False) if pixels else None
        self.text_norm = nn.LayerNorm(config.text_width) if text else None
        self.text_key_value = nn.Linear(config.text_width, 2 * channels, bias=False) if text else None
        self.out = nn.Linear(channels, channels)

    def forward(self, x, text_BLD, mask_BL, frames: int):
        h = tokens(self.norm(x))
        key_values, mask = [], None
        if self.key_value is not None:
            key_values.append(self.key_value(h))
        if self.text_norm is not None:
            key_values.append(self.text_key_value(self.text_norm(text_BLD)).repeat_interleave(frames, 0))
            pixels = mask_BL.new_ones(len(mask_BL), h.shape[1] if self.key_value is not None else 0)
            mask = torch.cat([pixels, mask_BL], 1).repeat_interleave(frames, 0)[:, None, None, :]
        key_value = torch.cat(key_values, 1) if len(key_values) > 1 else key_values[0]
        q, (k, v) = heads_first(self.query(h), self.heads), heads_first(key_value, self.heads).chunk(2, dim=-1)
        if mask is not None:
            mask = mask.expand(-1, self.heads, q.shape[2], -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).unflatten(2, x.shape[2:])


class TemporalAttention(nn.Module):
    def __init__(self, channels: int, config: VideoUNetConfig, *, products: bool):
        super().__init__()
        self.heads, self.products, self.distance = max(channels // config.head_width, 1), products, config.max_frames
        self.norm, self.out = group_norm(channels), nn.Linear(channels, channels)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.bias = nn.Parameter(torch.randn(self.heads, 2 * config.max_frames + 1))

    def forward(self, x, frames: int):
        pixels = x.shape[2] * x.shape[3]
        qkv = self.query_key_value(tokens(self.norm(x))).unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        q, k, v = heads_first(qkv, self.heads).chunk(3, dim=-1)
        index = torch.arange(frames, device=x.device)
        distance = (index[None] - index[:, None]).clamp(-self.distance, self.distance) + self.distance
        bias = self.bias[:, distance].to(q.dtype)
        if self.products:
            logits = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5 + bias
            y = torch.softmax(logits, -1).to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        y = y.transpose(1, 2).flatten(2).unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)
        return x + self.out(y).transpose(1, 2).unflatten(2, x.shape[2:])


class Block(nn.Module):
    """Residual block, attention over space and text, attention over time."""

    def __init__(self, inputs: int, level: int, config: VideoUNetConfig, products: bool):
        super().__init__()
        kind = config.level(level)
        self.residual = Residual(inputs, kind.channels, config.embedding_width)
        pixels, text = kind.spatial_attention, kind.text_attention
        attends = pixels or text
        self.attention = SpatialAttention(kind.channels, config, pixels=pixels, text=text) if attends else None
        self.temporal = TemporalAttention(kind.channels, config, products=products)

    def forward(self, x, embedding_NE, text_BLD, mask_BL, frames: int):
        x = self.residual(x, embedding_NE)
        if self.attention is not None:
            x = self.attention(x, text_BLD, mask_BL, frames)
        return self.temporal(x, frames)


class PooledText(nn.Module):
    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.heads = max(width // 64, 1)
        self.norm, self.out = nn.LayerNorm(text_width), nn.Linear(width, width)
        self.query = nn.Parameter(torch.randn(self.heads, width // self.heads) * 0.02)
        self.key_value = nn.Linear(text_width, 2 * width, bias=False)

    def forward(self, text_BLD, mask_BL):
        k, v = heads_first(self.key_value(self.norm(text_BLD)), self.heads).chunk(2, dim=-1)
        q = self.query.to(k.dtype)[None, :, None].expand(len(k), -1, -1, -1)
        mask = mask_BL[:, None, None].expand(-1, self.heads, -1, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1))


class VideoUNet(nn.Module):
    """B T C H W noisy video -> prediction; the "unet" layout with attention over frames."""

    def __init__(self, config: VideoUNetConfig, products: bool = False):
        super().__init__()
        if config.layout != "unet" or set(config.temporal) != {"attention"} or config.patch != 1:
            raise ValueError("the torch side has the base stage's layers only")
        self.config, width, channels = config, config.embedding_width, config.channels
        self.noise_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled_text = PooledText(config.text_width, width)
        self.frame_rate = nn.Linear(32, width)
        self.frame_position = nn.Linear(64, width) if config.frame_positions else None
        self.joint = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.door_in, last = nn.Conv2d(3, channels[0], 3, padding=1), channels[0]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, count in enumerate(config.blocks):
            if level:
                self.down.append(nn.Conv2d(last, channels[level], 3, stride=2, padding=1))
                last = channels[level]
            for _ in range(count):
                self.down.append(Block(last, level, config, products))
                last = channels[level]
        self.middle = Block(last, len(channels) - 1, config, products)
        for level in reversed(range(len(channels))):
            for _ in range(config.blocks[level]):
                self.up.append(Block(last + channels[level], level, config, products))
                last = channels[level]
            if level:
                self.up.append(nn.Conv2d(last, channels[level - 1], 3, padding=1))
                last = channels[level - 1]
        self.norm_out, self.door_out = group_norm(last), nn.Conv2d(last, 3, 3, padding=1)

    def embed(self, logsnr_B, text_BLD, mask_BL, fps_B, frames: int):
        angle_B = torch.atan(torch.exp(-0.5 * logsnr_B.clamp(-30, 30))) * (2 / math.pi)
        embedding = self.noise_level(sinusoid(angle_B * 1000, self.config.embedding_width))
        embedding = embedding + self.pooled_text(text_BLD, mask_BL)
        embedding = embedding + self.frame_rate(sinusoid(torch.log2(fps_B.clamp(min=0) + 1) * 16, 32))
        embedding_BTE = embedding[:, None].expand(-1, frames, -1)
        if self.frame_position is not None:
            positions = torch.arange(frames, device=fps_B.device, dtype=torch.float32)
            embedding_BTE = embedding_BTE + self.frame_position(sinusoid(positions, 64, longest=100.0))
        return (embedding_BTE + self.joint(embedding_BTE)).flatten(0, 1)

    def forward(self, z_BTCHW, *, logsnr_B, text_BLD, mask_BL, fps_B):
        frames, skips = z_BTCHW.shape[1], []
        x = self.door_in(z_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        embedding_NE = self.embed(logsnr_B, text_BLD, mask_BL, fps_B, frames).to(x.dtype)
        conditions = (embedding_NE, text_BLD.to(x.dtype), mask_BL, frames)
        for part in self.down:
            if isinstance(part, Block):
                x = self._run(part, x, conditions)
                skips.append(x)
            else:
                x = part(x)
        x = self._run(self.middle, x, conditions)
        for part in self.up:
            if isinstance(part, Block):
                x = self._run(part, torch.cat([x, skips.pop()], 1), conditions)
            else:
                height, width = skips[-1].shape[2:]
                x = part(F.interpolate(x, scale_factor=2.0)[:, :, :height, :width])
        return self.door_out(F.silu(self.norm_out(x))).unflatten(0, (-1, frames)).float()

    def _run(self, block: Block, x, conditions):
        if self.config.remat and torch.is_grad_enabled():
            return checkpoint(block, x, *conditions, use_reentrant=False)
        return block(x, *conditions)


def sinusoid(x, width: int, longest: float = 1e4):
    half = width // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float32) / max(half - 1, 1)
    angles = x[..., None] * torch.exp(-math.log(longest) * exponent)
    return torch.cat([angles.sin(), angles.cos()], -1)
