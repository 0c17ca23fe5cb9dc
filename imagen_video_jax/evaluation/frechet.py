"""The Fréchet distance of two sets of features, each taken for a Gaussian: FVD, FID and their relatives.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)        (Dowson & Landau 1982, Heusel et al. 2017)

The trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2): two symmetric roots, which exist whatever
the rank, instead of the root of a product, which may not. Everything is float64.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass
class Moments:
    """Mean and covariance of features that come in parts of any size.

    Attributes:
      count: features so far.
      mean_D: their mean.
      scatter_DD: sum of the outer products of their differences from the mean.
    """

    count: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @classmethod
    def none(cls, width: int) -> "Moments":
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Moments":
        """Moments of all features at once; ValueError where one is not finite."""
        moments = cls.none(features_ND.shape[1])
        for begin in range(0, len(features_ND), 4096):
            moments.add(features_ND[begin : begin + 4096])
        return moments

    def add(self, features_ND: np.ndarray) -> None:
        """Takes in one more part, by the pairwise update of Chan, Golub & LeVeque 1983 (no sum of squares cancels)."""
        features = np.asarray(features_ND, np.float64)
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinity")
        count, total = len(features), self.count + len(features)
        if not count:
            return
        self.__dict__.pop("root_DD", None)
        mean_D = features.mean(0)
        centred = features - mean_D
        step_D = mean_D - self.mean_D
        self.scatter_DD += centred.T @ centred + np.outer(step_D, step_D) * (self.count * count / total)
        self.mean_D = self.mean_D + step_D * (count / total)
        self.count = total

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased estimate; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self.scatter_DD / (self.count - 1)

    @functools.cached_property
    def root_DD(self) -> np.ndarray:
        """The symmetric root of the covariance."""
        return symmetric_root(self.covariance_DD)


def frechet_distance(first: Moments, second: Moments) -> float:
    """d^2 as above, never below 0; covariances of any rank."""
    traces = np.trace(first.covariance_DD) + np.trace(second.covariance_DD)
    return _distance(first.mean_D, second.mean_D, traces, first.root_DD @ second.root_DD)


def frechet_of_samples(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """The same from the features themselves, cheap where they are fewer than their dimensions.

    With centred features A and B, scaled so that S1 = A' A and S2 = B' B, the singular values of S1^(1/2) S2^(1/2) are
    those of A B'.
    """
    means, factors = [], []
    for features in (first_ND, second_MD):
        features = np.asarray(features, np.float64)
        means.append(features.mean(0))
        factors.append((features - means[-1]) / np.sqrt(len(features) - 1))
    traces = sum(float(np.sum(factor**2)) for factor in factors)
    return _distance(*means, traces, factors[0] @ factors[1].T)


def symmetric_root(S_DD: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix; what is rounding error of a zero counts as zero."""
    values_D, vectors_DD = np.linalg.eigh(S_DD)
    values_D = np.where(values_D > len(values_D) * np.finfo(np.float64).eps * values_D.max(initial=0), values_D, 0)
    return (vectors_DD * np.sqrt(values_D)) @ vectors_DD.T


def _distance(mean1_D, mean2_D, traces: float, roots) -> float:
    singular = np.linalg.svd(roots, compute_uv=False)
    return max(0.0, float(np.sum((mean1_D - mean2_D) ** 2) + traces - 2 * singular.sum()))
