"""`Extractor`: a video -> features; and `FeatureStore`, which keeps them on disk so that no video is read twice."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.evaluation import steadiness

_DIGEST = hashlib.sha256().digest_size


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Something that is read off a video.

    Attributes:
      name: of the network, or "pixels".
      fingerprint: changes whenever the same video would give other features.
      frames: how many frames it wants to see; 0 for all of them.
      apply: uint8 THWC of any size -> array [N, D], a row per frame or one for the whole.
      text: captions -> [N, D] in the same space, where the network reads text.
    """

    name: str
    fingerprint: str
    frames: int
    apply: Callable[[np.ndarray], np.ndarray]
    text: Callable[[Sequence[str]], np.ndarray] | None = None

    def __call__(self, video_THWC: np.ndarray, what: str) -> np.ndarray:
        """Features of one video; UserError naming it (`what`) where they are not finite."""
        shown_THWC = fit_frames(video_THWC, self.frames) if self.frames else video_THWC
        array_ND = np.asarray(self.apply(shown_THWC))
        if array_ND.dtype.kind == "f" and not np.isfinite(array_ND).all():
            raise UserError(f"{what}: its {self.name} features hold NaN or infinity", FAILED)
        return array_ND

    @property
    def key(self) -> str:
        """Name and fingerprint, fit for a folder's name."""
        return f"{self.name}-{hashlib.sha256(f'{self.fingerprint} {self.frames}'.encode()).hexdigest()[:16]}"


def fit_frames(video_THWC: np.ndarray, frames: int) -> np.ndarray:
    """The first `frames` frames; a video that has fewer is slowed down evenly by showing frames again."""
    count = len(video_THWC)
    return video_THWC[:frames] if count >= frames else video_THWC[np.arange(frames) * count // frames]


def fingerprint_of(params) -> str:
    """A hash of weights, whatever file they came from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def pixel_extractor() -> Extractor:
    """The measures of steadiness.py, over all frames."""
    return Extractor("pixels", "1", 0, lambda video_THWC: steadiness.measures(video_THWC)[None])


class FeatureStore:
    """Arrays by extractor and content: FOLDER/EXTRACTOR/KEY.npy, with its sha256 behind it; whole or not at all."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def get(self, extractor: str, key: str) -> np.ndarray | None:
        """The array, or None where it is not there or damaged."""
        try:
            kept = self._path(extractor, key).read_bytes()
        except OSError:
            return None
        data, digest = kept[:-_DIGEST], kept[-_DIGEST:]
        # What an earlier version kept has no digest, and is made again.
        if hashlib.sha256(data).digest() != digest:
            return None
        return np.load(io.BytesIO(data), allow_pickle=False)

    def has(self, extractor: str, key: str) -> bool:
        """Whether the array is there and whole."""
        return self.get(extractor, key) is not None

    def put(self, extractor: str, key: str, array: np.ndarray) -> None:
        path = self._path(extractor, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        storage.write_bytes(path, data + hashlib.sha256(data).digest())

    def discard_partial(self, begins: str) -> None:
        """Removes what killed processes were writing under keys that begin so; nobody may be writing them now."""
        for part in self.folder.glob(f"*/.{begins}*.tmp-*"):
            part.unlink(missing_ok=True)

    def _path(self, extractor: str, key: str) -> pathlib.Path:
        return self.folder / extractor / f"{key}.npy"
