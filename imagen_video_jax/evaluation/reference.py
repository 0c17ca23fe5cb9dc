"""Reference statistics: mean, covariance and its root of a set's features, computed once and found again.

    FOLDER/statistics/EXTRACTOR/DIGEST.safetensors

EXTRACTOR names the network and its weights, DIGEST the videos by their contents, so a file is only ever found for the
set that it was computed of; a checksum inside tells a damaged one, which is computed again.
"""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import safetensors
import safetensors.numpy

from imagen_video_jax import storage
from imagen_video_jax.evaluation.frechet import Moments

_VERSION = "1"
_NAMES = ("mean_D", "scatter_DD", "root_DD")


def moments(folder: pathlib.Path, extractor: str, contents: Sequence[str], features: Sequence[np.ndarray]) -> Moments:
    """Moments of the features of a set of videos, with the root of their covariance.

    Args:
      folder: where they are kept.
      extractor: its `key`.
      contents: what identifies each video.
      features: [N, D] of each.
    """
    digest = hashlib.sha256(" ".join([_VERSION, extractor, *sorted(contents)]).encode()).hexdigest()[:32]
    path = folder / "statistics" / extractor / f"{digest}.safetensors"
    found = _read(path)
    if found is None:
        found = Moments.of(np.concatenate(list(features)))
        _write(path, found, {"extractor": extractor, "videos": str(len(contents)), "digest": digest})
    return found


def _write(path: pathlib.Path, moments: Moments, facts: dict[str, str]) -> None:
    arrays = {name: np.ascontiguousarray(getattr(moments, name)) for name in _NAMES}
    facts = facts | {"features": str(moments.count), "sha256": _checksum(arrays)}
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(path, safetensors.numpy.save(arrays, facts))


def _read(path: pathlib.Path) -> Moments | None:
    """None where it is not there or damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays, facts = {name: file.get_tensor(name) for name in _NAMES}, file.metadata()
        if facts["sha256"] != _checksum(arrays):
            return None
        found = Moments(int(facts["features"]), arrays["mean_D"], arrays["scatter_DD"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError):
        return None
    found.root_DD = arrays["root_DD"]
    return found


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
