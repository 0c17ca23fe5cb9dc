"""What a stage sees beside the noisy video: text that is sometimes dropped, and a noisy low-resolution video.

Everything here runs on the device, from the same Batch: one data set serves all seven stages.
"""

import jax
import jax.numpy as jnp

from imagen_video_jax.diffusion import gaussian
from imagen_video_jax.video import frames

KINDS = ("base", "temporal_sr", "spatial_sr")
FILLS = ("repeat", "blank")
PIXEL_VARIANCE = 0.5  # of typical video in [-1, 1]


def null_text(text_BLD, text_mask_BL):
    """The one null text, for training, guidance and distillation: zero embeddings, first token valid."""
    first_L = jnp.arange(text_mask_BL.shape[-1]) == 0
    return jnp.zeros_like(text_BLD), jnp.broadcast_to(first_L, text_mask_BL.shape)


def drop_text(text_BLD, text_mask_BL, drop_B):
    """Replaces the text of the examples where `drop_B` is True by the null text."""
    null_BLD, null_mask_BL = null_text(text_BLD, text_mask_BL)
    text = jnp.where(drop_B[:, None, None], null_BLD, text_BLD)
    return text, jnp.where(drop_B[:, None], null_mask_BL, text_mask_BL)


def low_resolution(kind: str, video_BTHWC, factor: int):
    """What the previous stage would have made of a clip: fewer frames, or smaller ones. One frame stays one frame."""
    if kind == "temporal_sr":
        return frames.subsample_frames(video_BTHWC, factor)
    H, W = video_BTHWC.shape[2:4]
    return frames.resize(video_BTHWC, H // factor, W // factor)


def augment(low_BTHWC, *, logsnr_B, eps):
    """Noise-conditioning augmentation (paper section 2.5): alpha low + sigma eps at the given log-SNR."""
    return gaussian.diffuse(x=low_BTHWC, eps=eps, logsnr=gaussian.expand(logsnr_B, low_BTHWC))


def denoise(low_BTHWC, *, logsnr_B):
    """The best linear estimate, pixel by pixel, of the clean video behind an augmented one.

    With video of variance s^2: alpha s^2 / (alpha^2 s^2 + sigma^2) times the augmented value.
    """
    logsnr = gaussian.expand(logsnr_B, low_BTHWC)
    alpha = gaussian.alpha(logsnr)
    return low_BTHWC * alpha * PIXEL_VARIANCE / (jnp.square(alpha) * PIXEL_VARIANCE + jax.nn.sigmoid(-logsnr))


def fit_to_target(kind: str, low_BTHWC, *, factor: int, fill: str, blank_image: bool = False):
    """Brings a conditioning video to the size of the stage's output: (video BTHWC, mask BT of the given frames).

    Spatial: bilinear resize. Temporal: frames repeated, or spread with blank frames between them. A one-frame video
    is an image: it stays one frame, given or (with `blank_image`, in temporal stages) blank.
    """
    B, T, H, W, _ = low_BTHWC.shape
    if kind == "spatial_sr":
        return frames.resize(low_BTHWC, H * factor, W * factor), jnp.ones((B, T))
    if T == 1:
        mask = jnp.zeros((B, 1)) if blank_image else jnp.ones((B, 1))
        return low_BTHWC * mask[:, :, None, None, None], mask
    if fill == "repeat":
        return frames.repeat_frames(low_BTHWC, factor), jnp.ones((B, T * factor))
    given = (jnp.arange(T * factor) % factor == 0).astype(jnp.float32)
    return frames.spread_frames(low_BTHWC, factor), jnp.broadcast_to(given, (B, T * factor))
