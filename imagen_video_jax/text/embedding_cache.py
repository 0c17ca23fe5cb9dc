"""caption -> embedding on disk: a folder of immutable shards that many processes may read and fill.

    fingerprint.json            the encoder, its fingerprint and width
    shard-NAME.safetensors      keys (N, 32) uint8 sorted, offsets (N + 1,) int64, values (sum of lengths, D) float32

The key is sha256 of the caption's UTF-8, never a row number, so a re-ordered data set cannot be paired wrongly. Only real
tokens are stored. A shard is named by the hash of its keys and appears by one rename: a killed job leaves whole shards.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embed import TextEncoder

FINGERPRINT = "fingerprint.json"
UNIT = 1024  # captions per shard: what a kill can cost


def key_of(caption: str) -> bytes:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """A read view of a cache folder, complete at the time it was opened; safe for threads."""

    def __init__(self, folder: pathlib.Path, info: dict):
        self.folder, self.width, self.fingerprint = folder, info["width"], info["fingerprint"]
        self._where: dict[bytes, tuple[int, int, int]] = {}
        self._values: list[np.ndarray] = []
        for path in sorted(folder.glob("shard-*.safetensors")):
            self._add(path)

    @classmethod
    def open(cls, folder: pathlib.Path, expected_fingerprint: str | None = None) -> "EmbeddingCache":
        """UserError when there is no cache, or one of another encoder than `expected_fingerprint`."""
        if not (folder / FINGERPRINT).is_file():
            raise UserError(
                f"{folder} is no embedding cache (it has no {FINGERPRINT}); make one with imagen-video embed"
            )
        info = storage.read_json(folder / FINGERPRINT)
        if expected_fingerprint is not None and info["fingerprint"] != expected_fingerprint:
            raise UserError(
                f"{folder} was written by encoder {info['encoder']} {info['fingerprint'][:12]}, wanted is "
                f"{expected_fingerprint[:12]}; use another folder"
            )
        return cls(folder, info)

    def _add(self, path: pathlib.Path) -> None:
        try:
            with safe_open(path, framework="numpy") as file:
                keys, offsets = file.get_tensor("keys"), file.get_tensor("offsets")
                values = file.get_tensor("values")
        except Exception as error:  # safetensors raises its own type, and others for some damage
            raise UserError(f"embedding shard {path} is damaged ({error}); delete it and run again") from None
        if len(offsets) != len(keys) + 1 or offsets[-1] != len(values) or values.shape[-1] != self.width:
            raise UserError(f"embedding shard {path} is damaged (its arrays disagree); delete it and run again")
        shard = len(self._values)
        self._values.append(values)
        for row, key in enumerate(keys):
            self._where[key.tobytes()] = (shard, int(offsets[row]), int(offsets[row + 1]))

    def __contains__(self, caption: str) -> bool:
        return key_of(caption) in self._where

    def __len__(self) -> int:
        return len(self._where)

    def lookup(self, caption: str) -> np.ndarray:
        """Token states of a caption, (L, D) float32; UserError when it was never embedded."""
        where = self._where.get(key_of(caption))
        if where is None:
            raise UserError(f"caption {caption[:60]!r} is not in {self.folder}; run imagen-video embed on this data")
        shard, begin, end = where
        return self._values[shard][begin:end]

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that are not there yet, each once, in order."""
        return [caption for caption in dict.fromkeys(captions) if caption not in self]


def embed_captions(
    folder: pathlib.Path,
    captions: Iterable[str],
    encoder: TextEncoder,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embeds what is missing, unit by unit; returns the number of captions embedded now.

    Args: progress is called with (captions done, captions in all).
    """
    folder = storage.writable_folder(folder)
    if not (folder / FINGERPRINT).is_file():
        info = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "width": encoder.width}
        storage.write_json(folder / FINGERPRINT, info)
    missing = EmbeddingCache.open(folder, encoder.fingerprint).missing(captions)
    for begin in range(0, len(missing), UNIT):
        unit = sorted(missing[begin : begin + UNIT], key=key_of)
        text_BLD, mask_BL = encoder(
            unit, progress=progress and (lambda done, begin=begin: progress(begin + done, len(missing)))
        )
        keys = np.frombuffer(b"".join(map(key_of, unit)), np.uint8).reshape(-1, 32)
        offsets = np.concatenate([[0], np.cumsum(mask_BL.sum(1))]).astype(np.int64)
        name = f"shard-{hashlib.sha256(keys.tobytes()).hexdigest()[:16]}.safetensors"
        storage.write_bytes(folder / name, save({"keys": keys, "offsets": offsets, "values": text_BLD[mask_BL]}))
    return len(missing)
