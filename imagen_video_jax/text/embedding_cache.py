"""caption -> embedding on disk: a folder of immutable shards that many processes may read and fill.

    fingerprint.json            the encoder, its fingerprint and width
    shard-NAME.safetensors      keys (N, 32) uint8 sorted, offsets (N + 1,) int64, checksums (N,) uint32 (CRC-32 of a
                                caption's values), values (sum of lengths, D) float32
    shards.json                 names of the shards that were there when a writer ended well

The key is sha256 of the caption's UTF-8, never a row number, so a re-ordered data set cannot be paired wrongly. Only
real tokens are stored. A shard is named by the hash of its keys and appears by one rename, so writers need no lock and
a killed one leaves whole shards. Readers map values into memory and hold 17 bytes per caption.
"""

import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from safetensors.numpy import save

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embed import TextEncoder

FINGERPRINT, SHARDS = "fingerprint.json", "shards.json"
UNIT = 1024  # captions per shard: what a kill can cost
_DTYPES = {"keys": np.uint8, "offsets": np.int64, "checksums": np.uint32, "values": np.float32}
# Mapped at once by a reader; every map holds a file descriptor, of which a process has 1,024 by default.
_MAPPED = 256


def key_of(caption: str) -> bytes:
    """sha256 of the caption; lone surrogates, which JSON files can hold, are let through."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """A read view of a cache folder, as it was when opened; safe for threads, and cheap to send to a process.

    Attributes:
      width: of a token's state.
      fingerprint: of the encoder that wrote it.
    """

    def __init__(self, folder: pathlib.Path, info: dict, names: Iterable[str]):
        self.folder, self.width, self.fingerprint = folder, info["width"], info["fingerprint"]
        self._names = sorted(names)
        self._arrays = functools.lru_cache(maxsize=_MAPPED)(self._map)
        prefixes, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for shard in range(len(self._names)):
            keys = self._check_index(shard)
            prefixes.append(_prefixes(keys))
            rows.append(np.arange(len(keys), dtype=np.int32))
        prefix_N = np.concatenate(prefixes)
        order = np.argsort(prefix_N, kind="stable")
        self._prefix_N = prefix_N[order]
        self._row_N = np.concatenate(rows)[order]
        self._shard_N = np.repeat(np.arange(-1, len(self._names), dtype=np.int32), [len(r) for r in rows])[order]
        self._checked_N = np.zeros(len(order), bool)

    @classmethod
    def open(
        cls, folder: pathlib.Path, expected_fingerprint: str | None = None, *, allow_missing: bool = False
    ) -> "EmbeddingCache":
        """Opens a cache folder.

        Args:
          expected_fingerprint: of the encoder whose embeddings are wanted; None takes any.
          allow_missing: for writers, who embed the captions of a lost shard again.

        Raises:
          UserError: no cache, one of another encoder, a shard missing, cut or damaged (named).
        """
        folder = pathlib.Path(folder)
        if not (folder / FINGERPRINT).is_file():
            raise UserError(
                f"{folder} is no embedding cache (it has no {FINGERPRINT}); make one with imagen-video embed"
            )
        info = storage.read_json(folder / FINGERPRINT)
        if expected_fingerprint not in (None, info["fingerprint"]):
            raise UserError(
                f"{folder} was written by encoder {info['encoder']} {info['fingerprint'][:12]}, wanted is "
                f"{expected_fingerprint[:12]}; use another folder"
            )
        names = _shard_names(folder)
        lost = set(storage.read_json(folder / SHARDS)) - names if (folder / SHARDS).is_file() else set()
        if lost and not allow_missing:
            raise UserError(
                f"{folder} lacks {len(lost)} of its shards, {min(lost)} among them; embed the same data again"
            )
        return cls(folder, info, names)

    def __reduce__(self):
        return EmbeddingCache.open, (self.folder, self.fingerprint)

    def __len__(self) -> int:
        return len(self._prefix_N)

    def __contains__(self, caption: str) -> bool:
        return self._find(key_of(caption)) is not None

    def lookup(self, caption: str) -> np.ndarray:
        """Token states of a caption, (L, D) float32, read-only; UserError when it was never embedded."""
        place = self._find(key_of(caption))
        if place is None:
            raise UserError(f"caption {caption[:60]!r} is not in {self.folder}; run imagen-video embed on this data")
        shard, row = int(self._shard_N[place]), int(self._row_N[place])
        arrays = self._arrays(shard)
        begin, end = arrays["offsets"][row : row + 2].tolist()
        values_LD = arrays["values"][begin:end]
        if not self._checked_N[place]:
            if zlib.crc32(values_LD) != arrays["checksums"][row]:
                raise self._damaged(shard, f"the values of caption {caption[:60]!r} differ from their checksum")
            self._checked_N[place] = True
        return values_LD

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that are not there yet, each once, in order."""
        return [caption for caption in dict.fromkeys(captions) if caption not in self]

    def _find(self, key: bytes) -> int | None:
        """Place of a key in the sorted index."""
        prefix = np.uint64(int.from_bytes(key[:8], "big"))
        place = int(self._prefix_N.searchsorted(prefix))
        while place < len(self._prefix_N) and self._prefix_N[place] == prefix:
            keys = self._arrays(int(self._shard_N[place]))["keys"]
            if keys[self._row_N[place]].tobytes() == key:
                return place
            place += 1
        return None

    def _map(self, shard: int) -> dict[str, np.ndarray]:
        try:
            return _map_arrays(self.folder / self._names[shard])[0]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(shard, error) from None

    def _check_index(self, shard: int) -> np.ndarray:
        """The keys of a shard, once its index is known to be what was written, by this cache's encoder."""
        try:
            arrays, facts = _map_arrays(self.folder / self._names[shard])
            if arrays["values"].shape != (arrays["offsets"][-1], self.width):
                raise ValueError("its arrays disagree")
            if facts["index_sha256"] != _index_sha256(arrays):
                raise ValueError("its index differs from its sha256")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise self._damaged(shard, error) from None
        if facts["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{self.folder / self._names[shard]} was written by encoder {facts['fingerprint'][:12]}, "
                f"its cache by {self.fingerprint[:12]}; move it away"
            )
        return arrays["keys"]

    def _damaged(self, shard: int, reason) -> UserError:
        path = self.folder / self._names[shard]
        return UserError(f"embedding shard {path} is damaged ({reason}); delete it and embed the data again")


def embed_captions(
    folder: pathlib.Path,
    captions: Iterable[str],
    encoder: TextEncoder,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_cut: Callable[[str, str], None] | None = None,
) -> int:
    """Embeds what is missing, unit by unit; returns the number of captions embedded now.

    Interrupted at any moment, even by SIGKILL, it goes on at the next call from the last whole unit.

    Args:
      progress: called with (captions done, captions to do).
      on_cut: called with (caption, lost text) for a caption longer than the encoder takes.
    """
    folder = storage.writable_folder(folder)
    if not (folder / FINGERPRINT).is_file():
        info = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "width": encoder.width}
        storage.write_json(folder / FINGERPRINT, info)
    missing = EmbeddingCache.open(folder, encoder.fingerprint, allow_missing=True).missing(captions)
    for begin in range(0, len(missing), UNIT):
        unit = sorted(missing[begin : begin + UNIT], key=key_of)
        for caption, lost in encoder.tokenize(unit).lost if on_cut else ():
            on_cut(caption, lost)
        text_BLD, mask_BL = encoder(
            unit, progress=progress and (lambda done, begin=begin: progress(begin + done, len(missing)))
        )
        _write_shard(folder, unit, text_BLD, mask_BL, encoder.fingerprint)
    names = sorted(_shard_names(folder))
    if not (folder / SHARDS).is_file() or storage.read_json(folder / SHARDS) != names:
        storage.write_json(folder / SHARDS, names)
    return len(missing)


def _write_shard(folder: pathlib.Path, captions: list[str], text_BLD, mask_BL, fingerprint: str) -> None:
    """Writes the embeddings of captions that are sorted by key."""
    arrays = {
        "keys": np.frombuffer(b"".join(map(key_of, captions)), np.uint8).reshape(-1, 32),
        "offsets": np.concatenate([[0], np.cumsum(mask_BL.sum(1))]).astype(np.int64),
        "checksums": np.array([zlib.crc32(text_LD[mask_L]) for text_LD, mask_L in zip(text_BLD, mask_BL)], np.uint32),
        "values": text_BLD[mask_BL],
    }
    name = f"shard-{hashlib.sha256(arrays['keys']).hexdigest()[:16]}.safetensors"
    # Not safetensors' save_file: its files are readable by their owner alone, and a cache is shared.
    facts = {"fingerprint": fingerprint, "index_sha256": _index_sha256(arrays)}
    storage.write_bytes(folder / name, save(arrays, facts))


def _map_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read-only memory-mapped arrays and the metadata of a safetensors file, which safe_open would copy.

    Layout: 8 bytes length of the header, the header in JSON, the arrays at the offsets that it names.
    """
    file_N = np.memmap(path, np.uint8, "r").view(np.ndarray)
    begin = 8 + int.from_bytes(file_N[:8].tobytes(), "little")
    header = json.loads(file_N[8:begin].tobytes())
    arrays, end = {}, begin
    for name, dtype in _DTYPES.items():
        first, last = (begin + offset for offset in header[name]["data_offsets"])
        arrays[name] = file_N[first:last].view(dtype).reshape(header[name]["shape"])
        end = max(end, last)
    if end != len(file_N):
        raise ValueError(f"{len(file_N)} bytes, expected {end}")
    return arrays, header["__metadata__"]


def _index_sha256(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "offsets", "checksums"):
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def _prefixes(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key as a number, in the order of the keys."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _shard_names(folder: pathlib.Path) -> set[str]:
    """Shards in place; a temporary name begins with a dot."""
    return {path.name for path in folder.glob("shard-*.safetensors")}
