"""Kernel distances of two sets of features: squared maximum mean discrepancy (Gretton et al. 2012).

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

They assume no Gaussian and need fewer samples than the Fréchet distance. `kid` (Binkowski et al. 2018; on video
features the KVD, and what JEDi does) leaves k(x, x) out of the means, so it is unbiased and may be slightly below 0;
`cmmd` (Jayasumana et al. 2024) keeps it, as the published code does.

The kernel is computed tile by tile and kept summed over the features of each pair of videos: a matrix of all features
would not fit, and a mean over parts of the sets is another number (k(x, x) and the frames of one video weigh more in
a part). Everything is float64.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from imagen_video_jax.evaluation.retrieval import unit

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_TILE = 1024  # features a side of what is computed of a kernel at once
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
Lengths = tuple[Sequence[int], Sequence[int]]


def polynomial(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """(x y / D + 1)^3, [N, M]."""
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3


def gaussian(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)) with sigma 10, of features of length 1, [N, M]."""
    squares = 2.0 - 2.0 * (unit(x_ND) @ unit(y_MD).T)
    return np.exp(-np.maximum(squares, 0) / (2 * CMMD_SIGMA**2))


class KernelDistance:
    """MMD^2 of two sets, and of resampled ones without computing the kernel again.

    Args:
      first_ND, second_MD: the features, those of one video side by side.
      lengths: how many of them each video has, for either set; None if each feature is a video of its own.
    """

    def __init__(
        self,
        first_ND: np.ndarray,
        second_MD: np.ndarray,
        kernel: Kernel,
        *,
        unbiased: bool,
        scale: float = 1.0,
        lengths: Lengths | None = None,
    ):
        x, y = np.asarray(first_ND, np.float64), np.asarray(second_MD, np.float64)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("features hold NaN or infinity")
        if min(len(x), len(y)) < 2:
            raise ValueError(f"a kernel distance needs at least 2 features of each set, got {len(x)} and {len(y)}")
        first, second = (np.asarray(l) for l in lengths or (np.ones(len(x), int), np.ones(len(y), int)))
        self._first, self._second = _Within(x, kernel, first), _Within(y, kernel, second)
        self._between_VW = _video_sums(x, y, kernel, first, second)
        self._unbiased, self._scale = unbiased, scale

    def __call__(self, count_V: np.ndarray | None = None, count_W: np.ndarray | None = None) -> float:
        """MMD^2, each video counted so many times (once by default)."""
        V, W = self._between_VW.shape
        count_V = np.ones(V) if count_V is None else count_V
        count_W = np.ones(W) if count_W is None else count_W
        within = self._first.mean(count_V, self._unbiased) + self._second.mean(count_W, self._unbiased)
        features = (count_V @ self._first.lengths_V) * (count_W @ self._second.lengths_V)
        between = count_V @ self._between_VW @ count_W / features
        return float(self._scale * (within - 2 * between))


class _Within:
    """The kernel of a set and itself: lengths_V of its videos, sums_VV of their pairs, diagonal_V of k(x, x)."""

    def __init__(self, x_ND: np.ndarray, kernel: Kernel, lengths_V: np.ndarray):
        self.lengths_V = lengths_V
        self.sums_VV = _video_sums(x_ND, x_ND, kernel, lengths_V, lengths_V)
        # In small squares, as all beside the diagonal is thrown away.
        squares = [kernel(x_ND[rows], x_ND[rows]) for rows in _slices(len(x_ND), min(32, _TILE))]
        diagonal_N = np.concatenate([np.diag(square) for square in squares])
        self.diagonal_V = np.bincount(_videos(lengths_V), diagonal_N, minlength=len(lengths_V))

    def mean(self, count_V: np.ndarray, unbiased: bool) -> float:
        """Of the kernel over pairs of features, each video counted so many times; unbiased without k(x, x)."""
        total, n = count_V @ self.sums_VV @ count_V, count_V @ self.lengths_V
        if not unbiased:
            return total / n**2
        return (total - count_V @ self.diagonal_V) / (n * (n - 1))


def _video_sums(x_ND, y_MD, kernel: Kernel, lengths_V: np.ndarray, lengths_W: np.ndarray) -> np.ndarray:
    """The kernel summed over the features of each pair of videos, [V, W]; of a set and itself, half is computed."""
    video_N, video_M = _videos(lengths_V), _videos(lengths_W)
    sums_VW = np.zeros((len(lengths_V), len(lengths_W)))
    mirrored = y_MD is x_ND and lengths_W is lengths_V
    for rows in _slices(len(x_ND), _TILE):
        for columns in _slices(len(y_MD), _TILE, first=rows.start if mirrored else 0):
            tile = kernel(x_ND[rows], y_MD[columns])
            if mirrored and rows == columns:
                tile /= 2  # the other half comes with the mirror image
            firsts, seconds = _runs(video_N[rows]), _runs(video_M[columns])
            summed = np.add.reduceat(np.add.reduceat(tile, firsts, axis=0), seconds, axis=1)
            sums_VW[np.ix_(video_N[rows][firsts], video_M[columns][seconds])] += summed
    return sums_VW + sums_VW.T if mirrored else sums_VW


def _slices(length: int, size: int, first: int = 0) -> Iterator[slice]:
    return (slice(begin, min(begin + size, length)) for begin in range(first, length, size))


def _videos(lengths_V: np.ndarray) -> np.ndarray:
    """The number of its video for each feature, [N]."""
    return np.repeat(np.arange(len(lengths_V)), lengths_V)


def _runs(video_N: np.ndarray) -> np.ndarray:
    """Where each video begins."""
    return np.flatnonzero(np.diff(video_N, prepend=-1))


def kid(first_ND: np.ndarray, second_MD: np.ndarray, lengths: Lengths | None = None) -> KernelDistance:
    """Polynomial kernel, unbiased."""
    return KernelDistance(first_ND, second_MD, polynomial, unbiased=True, lengths=lengths)


def cmmd(first_ND: np.ndarray, second_MD: np.ndarray, lengths: Lengths | None = None) -> KernelDistance:
    """Gaussian kernel on CLIP image features, times 1000."""
    return KernelDistance(first_ND, second_MD, gaussian, unbiased=False, scale=CMMD_SCALE, lengths=lengths)
