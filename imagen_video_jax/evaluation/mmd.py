"""Kernel distances of two sets of features: squared maximum mean discrepancy (Gretton et al. 2012).

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

They assume no Gaussian and need fewer samples than the Fréchet distance. `kid` (Binkowski et al. 2018; on video
features the KVD, and what JEDi does) leaves k(x, x) out of the means, so it is unbiased and may be slightly below 0;
`cmmd` (Jayasumana et al. 2024) keeps it, as the published code does.
"""

from collections.abc import Callable

import numpy as np

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """(x y / D + 1)^3, [N, M]."""
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3


def gaussian(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)) with sigma 10, of features of length 1, [N, M]."""
    squares = 2.0 - 2.0 * (_unit(x_ND) @ _unit(y_MD).T)
    return np.exp(-np.maximum(squares, 0) / (2 * CMMD_SIGMA**2))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


class KernelDistance:
    """MMD^2 of two sets, and of resampled ones without computing the kernel again."""

    def __init__(self, first_ND: np.ndarray, second_MD: np.ndarray, kernel: Kernel, *, unbiased: bool, scale=1.0):
        x, y = np.asarray(first_ND, np.float64), np.asarray(second_MD, np.float64)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("features hold NaN or infinity")
        if min(len(x), len(y)) < 2:
            raise ValueError(f"a kernel distance needs at least 2 features of each set, got {len(x)} and {len(y)}")
        self._xx, self._yy, self._xy = kernel(x, x), kernel(y, y), kernel(x, y)
        self._unbiased, self._scale = unbiased, scale

    def __call__(self, count_N: np.ndarray | None = None, count_M: np.ndarray | None = None) -> float:
        """MMD^2, each feature counted so many times (once by default)."""
        count_N = np.ones(len(self._xx)) if count_N is None else count_N
        count_M = np.ones(len(self._yy)) if count_M is None else count_M
        within = self._within(self._xx, count_N) + self._within(self._yy, count_M)
        between = count_N @ self._xy @ count_M / (count_N.sum() * count_M.sum())
        return float(self._scale * (within - 2 * between))

    def _within(self, k_NN: np.ndarray, count_N: np.ndarray) -> float:
        total, n = count_N @ k_NN @ count_N, count_N.sum()
        if not self._unbiased:
            return total / n**2
        return (total - count_N @ np.diag(k_NN)) / (n * (n - 1))


def kid(first_ND: np.ndarray, second_MD: np.ndarray) -> KernelDistance:
    """Polynomial kernel, unbiased."""
    return KernelDistance(first_ND, second_MD, polynomial, unbiased=True)


def cmmd(first_ND: np.ndarray, second_MD: np.ndarray) -> KernelDistance:
    """Gaussian kernel on CLIP image features, times 1000."""
    return KernelDistance(first_ND, second_MD, gaussian, unbiased=False, scale=CMMD_SCALE)
