"""Scores of a network that puts videos (or frames) and captions into one space: CLIP score and R-precision.

Both are means over the frames of a video first, every frame having its video's caption for label, then over videos.
"""

from collections.abc import Sequence

import numpy as np


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Each feature scaled to length 1, float64; ValueError where one is not finite."""
    x = np.asarray(x_ND, np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def similarity_scores(features: Sequence[np.ndarray], text_ND: np.ndarray) -> np.ndarray:
    """100 times the cosine of a video's frames and its caption, one mean per video: [N].

    Args:
      features: per video, features of its frames [T, D] (one row where the network reads whole videos).
      text_ND: features of the videos' captions.
    """
    texts = unit(text_ND)
    return np.array([100 * (unit(frames_TD) @ texts[i]).mean() for i, frames_TD in enumerate(features)])


def r_precision(
    features: Sequence[np.ndarray], text_ND: np.ndarray, captions: Sequence[str], *, pool: int = 100, seed: int = 0
) -> np.ndarray:
    """Share of a video's frames whose nearest caption is its own (R = 1), one value per video: [N]  (Park et al. 2021).

    The candidates are the video's caption and up to `pool` - 1 different captions of other videos, drawn by `seed`.
    A tie is no hit.
    """
    different = {caption: row for row, caption in enumerate(captions)}
    rows = np.array(list(different.values()))
    rng = np.random.default_rng(seed)
    texts, values = unit(text_ND), []
    for i, frames_TD in enumerate(features):
        others = rows[rows != different[captions[i]]]
        others = rng.permutation(others)[: pool - 1]
        own_T = unit(frames_TD) @ texts[i]
        best_T = (unit(frames_TD) @ texts[others].T).max(1, initial=-np.inf)
        values.append(float(np.mean(own_T > best_T)))
    return np.array(values)
