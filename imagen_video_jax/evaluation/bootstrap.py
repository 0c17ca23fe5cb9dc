"""Confidence intervals by the bootstrap (Efron 1979): videos are drawn again with replacement.

Means take the percentiles of the resampled means. Distances of sets take the estimate plus and minus 1.96 standard
deviations of the resampled distances: a resampled set has fewer different videos, so its distance is biased upwards,
and percentiles would miss the estimate itself.
"""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000  # of a mean
_Z = 1.959964


def mean_interval(values_N: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """95% interval [low, high] of the mean of one value per video."""
    values = np.asarray(values_N, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def distance_interval(
    estimate: float,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    sizes: tuple[int, int],
    *,
    resamples: int,
    lowest: float | None = 0.0,
    seed: int = 0,
) -> list[float]:
    """95% interval [low, high] around a distance of two sets.

    Args:
      statistic: (indices into the first set, indices into the second) -> distance.
      lowest: what a distance cannot be below, if there is such a value.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(rng.integers(size, size=size) for size in sizes)) for _ in range(resamples)]
    half = _Z * float(np.std(values, ddof=1))
    low = estimate - half if lowest is None else max(lowest, estimate - half)
    return [low, estimate + half]
