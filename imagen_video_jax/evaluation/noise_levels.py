"""The validation loss of one stage by noise level: where a checkpoint is better than the last, and where worse."""

import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from imagen_video_jax.batch import Batch
from imagen_video_jax.cascade import fit_length
from imagen_video_jax.evaluation import bootstrap
from imagen_video_jax.stages.stage import Stage

LEVELS = (-20.0, -6.0, -3.0, 0.0, 3.0, 6.0, 20.0)  # bounds in log-SNR, from noise to picture
REPEATS = 4  # noise levels and noises per clip


def losses(stage: Stage, params, videos: Sequence[np.ndarray], text_BLD, mask_BL, *, batch: int) -> np.ndarray:
    """(loss, log-SNR) of every clip at REPEATS noise levels, [REPEATS, clips, 2]; the same noise for the same clips.

    Args:
      videos: uint8 THWC of the stage's training size.
      text_BLD, mask_BL: embedded captions.
    """
    count, size = len(videos), min(batch, len(videos))
    length = stage.config.text_length
    text, mask = fit_length(text_BLD, length).astype(np.float32), fit_length(mask_BL, length).astype(bool)
    evaluate = _program(stage, count)
    rows = []
    for repeat in range(REPEATS):
        key, found = jax.random.fold_in(jax.random.key(0), repeat), []
        for begin in range(0, count, size):
            slots = np.arange(begin, begin + size)
            chosen = np.minimum(slots, count - 1)  # the last batch is filled up
            clips = Batch(
                video_BTHWC=np.stack([videos[i] for i in chosen]),
                text_BLD=text[chosen],
                text_mask_BL=mask[chosen],
                fps_B=np.full(size, stage.config.fps, np.float32),
                id_B=chosen.astype(np.int32),
                valid_B=slots < count,
            )
            loss_B, logsnr_B = evaluate(params, clips, key, slots)
            found.append(np.stack([np.asarray(loss_B), np.asarray(logsnr_B)], -1)[slots < count])
        rows.append(np.concatenate(found))
    return np.stack(rows)


@functools.lru_cache(8)
def _program(stage: Stage, slots: int):
    """Compiled once for all checkpoints of a stage."""
    return jax.jit(lambda *arguments: stage.loss(*arguments, slots=slots))


def by_level(losses_RN2: np.ndarray) -> dict:
    """`validation_loss` with its interval over clips, and the same within each noise level."""
    per_clip_N = losses_RN2[..., 0].mean(0)
    levels = []
    for low, high in itertools.pairwise(LEVELS):
        inside = losses_RN2[(losses_RN2[..., 1] >= low) & (losses_RN2[..., 1] < high)][:, 0]
        if len(inside):
            interval = bootstrap.mean_interval(inside)
            levels.append({"logsnr": [low, high], "loss": float(inside.mean()), "interval": interval})
    return {
        "validation_loss": float(per_clip_N.mean()),
        "validation_loss_interval": bootstrap.mean_interval(per_clip_N),
        "validation_loss_by_logsnr": levels,
    }
