"""Extractors by name: the networks, with the weights that people named, and what needs none."""

import dataclasses
from collections.abc import Callable

import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.evaluation.features import Extractor, pixel_extractor
from imagen_video_jax.evaluation.judge import ATTRIBUTES, WEIGHTS, Judge


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where people keep weights that no package brings, and how many frames of a clip the networks see."""

    frames: int = 16


def open_extractor(name: str, weights: Weights) -> Extractor:
    """The extractor; UserError saying which weights are missing and where people get them."""
    return _OPENERS[name](weights)


def _pixels(weights: Weights) -> Extractor:
    return pixel_extractor()


def _judge(weights: Weights) -> Extractor:
    """Rows of [colour, shape, motion, style] as indices into the judge's names, [1, 4]."""
    judge = Judge.load()

    def apply(video_THWC: np.ndarray) -> np.ndarray:
        reading = judge(video_THWC)
        return np.array([[names.index(getattr(reading, a)) for a, names in ATTRIBUTES.items()]], np.float32)

    return Extractor("judge", storage.sha256_file(WEIGHTS), 0, apply)


_OPENERS: dict[str, Callable[[Weights], Extractor]] = {"pixels": _pixels, "judge": _judge}
