"""caption -> embedding on disk: a folder of immutable shards that many processes may read and fill.

    fingerprint.json            the encoder, its fingerprint, width and maximum length
    shard-NAME.safetensors      keys (N, 32) uint8 sorted, offsets (N + 1,) int64, checksums (N,) uint32 (CRC-32 of a
                                caption's values), values (sum of lengths, D) bfloat16
    job-NAME.json               the shards of a job that ended well

The key is sha256 of the caption's UTF-8, never a row number, so a re-ordered data set cannot be paired wrongly. Only
real tokens are stored. Shards and jobs are named by the hash of what they hold and appear by one rename, so a killed
writer leaves whole files, and the same captions make the same bytes whoever embeds them
(data/embed_captions.py is the job). Readers map values into memory and hold 17 bytes per caption.
"""

import functools
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Sequence

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.safetensors_format import parse_header

FINGERPRINT = "fingerprint.json"
DTYPES = {"keys": np.uint8, "offsets": np.int64, "checksums": np.uint32, "values": ml_dtypes.bfloat16}
# Mapped at once by a reader; every map holds a file descriptor, of which a process has 1,024 by default.
_MAPPED = 256
_MALFORMED = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


def key_of(caption: str) -> bytes:
    """sha256 of the caption; lone surrogates, which JSON files can hold, are let through."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()


def user_folder(encoder: TextEncoder) -> pathlib.Path:
    """The cache in the user's own folder that serves every data set: one per encoder."""
    return storage.user_cache() / "embeddings" / f"{encoder.name}-{encoder.fingerprint[:12]}"


class EmbeddingCache:
    """A read view of a cache folder, as it was when opened; safe for threads, and cheap to send to a process.

    Attributes:
      info: what it says of its encoder, see `describe`.
      width: of a token's state.
      fingerprint: of the encoder that wrote it.
    """

    def __init__(self, folder: pathlib.Path, info: dict, names: Iterable[str]):
        self.folder, self.info, self.width, self.fingerprint = folder, info, info["width"], info["fingerprint"]
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
        cls, folder: pathlib.Path, expected_fingerprint: str | None = None, *, only_finished: bool = False
    ) -> "EmbeddingCache":
        """Opens a cache folder.

        Args:
          expected_fingerprint: of the encoder whose embeddings are wanted; None takes any.
          only_finished: for writers: without shards of jobs that have not ended, and whatever shards are lost.

        Raises:
          UserError: no cache, one of another encoder, a shard missing, cut or damaged (named).
        """
        folder = pathlib.Path(folder)
        info = read_info(folder)
        if expected_fingerprint not in (None, info["fingerprint"]):
            raise UserError(
                f"{folder} was written by encoder {info['encoder']} {info['fingerprint'][:12]}, wanted is "
                f"{expected_fingerprint[:12]}; use another folder, or remove it and run imagen-video embed --data DIR "
                f"--encoder NAME --out {folder} with the encoder that is wanted"
            )
        names, finished = shard_names(folder), finished_shards(folder)
        if only_finished:
            return cls(folder, info, names & finished)
        if lost := finished - names:
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
        """Token states of a caption, (L, D) float32; UserError when it was never embedded."""
        place = self._find(key_of(caption))
        if place is None:
            raise UserError(f"caption {caption[:60]!r} is not in {self.folder}; run imagen-video embed on this data")
        shard, row = int(self._shard_N[place]), int(self._row_N[place])
        arrays = self._arrays(shard)
        begin, end = arrays["offsets"][row : row + 2].tolist()
        values_LD = arrays["values"][begin:end]
        if not self._checked_N[place]:
            if zlib.crc32(values_LD.view(np.uint8)) != arrays["checksums"][row]:
                raise self._damaged(shard, f"the values of caption {caption[:60]!r} differ from their checksum")
            self._checked_N[place] = True
        # bfloat16 is the upper half of float32; numpy's own conversion takes eight times longer.
        return (values_LD.view(np.uint16).astype(np.uint32) << 16).view(np.float32)

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
        except _MALFORMED as error:
            raise self._damaged(shard, error) from None

    def _check_index(self, shard: int) -> np.ndarray:
        """The keys of a shard, once its index is known to be what was written, by this cache's encoder."""
        try:
            arrays, facts = _map_arrays(self.folder / self._names[shard])
            if arrays["values"].shape != (arrays["offsets"][-1], self.width):
                raise ValueError("its arrays disagree")
            if facts["index_sha256"] != _index_sha256(arrays):
                raise ValueError("its index differs from its sha256")
            fingerprint = str(facts["fingerprint"])
        except _MALFORMED as error:
            raise self._damaged(shard, error) from None
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{self.folder / self._names[shard]} was written by encoder {fingerprint[:12]}, "
                f"its cache by {self.fingerprint[:12]}; move it away"
            )
        return arrays["keys"]

    def _damaged(self, shard: int, reason) -> UserError:
        path = self.folder / self._names[shard]
        return UserError(f"embedding shard {path} is damaged ({reason}); delete it and embed the data again")


def read_info(folder: pathlib.Path) -> dict:
    """What the folder says of the encoder: `encoder`, `fingerprint`, `width`, `max_length`; UserError if it is none."""
    if not (folder / FINGERPRINT).is_file():
        raise UserError(f"{folder} is no embedding cache (it has no {FINGERPRINT}); make one with imagen-video embed")
    info = storage.read_json(folder / FINGERPRINT)
    kinds = {"encoder": str, "fingerprint": str, "width": int}
    if not isinstance(info, dict) or not all(isinstance(info.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{folder / FINGERPRINT} is damaged; remove the folder and embed the data again")
    return info


def create(folder: pathlib.Path, encoder: TextEncoder) -> None:
    """Makes a folder the cache of `encoder`, unless it is one already; UserError where it is another encoder's."""
    info = describe(encoder)
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder} is a folder of imagen-video train; choose another --out")
    storage.write_once(folder / FINGERPRINT, (json.dumps(info, indent=2, sort_keys=True) + "\n").encode())
    EmbeddingCache.open(folder, encoder.fingerprint, only_finished=True)


def describe(encoder: TextEncoder) -> dict:
    """What a cache and a cascade record of an encoder."""
    fields = {"encoder": encoder.name, "fingerprint": encoder.fingerprint}
    return fields | {"width": encoder.width, "max_length": encoder.max_length}


def check_same(one: dict | None, of_one: str, other: dict | None, of_other: str) -> None:
    """UserError where two records of `describe` are of different encoders; None stands for no record."""
    if one and other and one["fingerprint"] != other["fingerprint"]:
        (a, b) = (f"{info['encoder']} {info['fingerprint'][:12]}" for info in (one, other))
        raise UserError(f"{of_one} was trained with text encoder {a}, {of_other} is of {b}; they do not go together")


def shard_name(keys: Sequence[bytes]) -> str:
    """The file name of a shard with these sorted keys."""
    return f"shard-{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.safetensors"


def write_shard(
    path: pathlib.Path, keys: Sequence[bytes], states: Sequence[np.ndarray], fingerprint: str, cut: list
) -> None:
    """Writes the states (L, D) of captions, sorted by key; `cut` is what `cut_captions` gives back of this shard."""
    states = [np.ascontiguousarray(states_LD, ml_dtypes.bfloat16) for states_LD in states]
    arrays = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
        "offsets": np.cumsum([0, *map(len, states)]).astype(np.int64),
        "checksums": np.array([zlib.crc32(states_LD.view(np.uint8)) for states_LD in states], np.uint32),
        "values": np.concatenate(states),
    }
    facts = {"fingerprint": fingerprint, "index_sha256": _index_sha256(arrays), "cut": cut}
    # One string: the package writes several in an order that differs from run to run. Not its save_file: its files
    # are readable by their owner alone, and a cache is shared.
    storage.write_bytes(path, save(arrays, {"facts": json.dumps(facts, sort_keys=True)}))


def cut_captions(folder: pathlib.Path) -> list[dict]:
    """What the writers of the finished shards noted of captions that were longer than the encoder takes."""
    names = sorted(shard_names(folder) & finished_shards(folder))
    return [row for name in names for row in _map_arrays(folder / name)[1]["cut"]]


def finish_job(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Notes that a job's shards are all there; lists that name shards lost since are replaced."""
    present, names, outdated = shard_names(folder), set(names), []
    for path in sorted(folder.glob("job-*.json")):
        listed = _listed(path)
        if listed - present:
            outdated.append(path)
            names |= listed & present
    if names:
        text = json.dumps(sorted(names), indent=1) + "\n"
        storage.write_once(folder / f"job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json", text.encode())
    for path in outdated:
        path.unlink(missing_ok=True)


def finished_shards(folder: pathlib.Path) -> set[str]:
    return {name for path in folder.glob("job-*.json") for name in _listed(path)}


def _listed(job: pathlib.Path) -> set[str]:
    """The shards of a job that ended; UserError where its list is none."""
    names = storage.read_json(job)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{job} is damaged: no list of shards; delete it and embed the data again")
    return set(names)


def shard_names(folder: pathlib.Path) -> set[str]:
    """Shards in place; a temporary name begins with a dot."""
    return {path.name for path in folder.glob("shard-*.safetensors")}


def _map_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read-only memory-mapped arrays and the facts of a shard, which safe_open would copy."""
    file_N = np.memmap(path, np.uint8, "r").view(np.ndarray)
    length = 8 + int.from_bytes(file_N[:8].tobytes(), "little")
    header, metadata = parse_header(file_N[:length].tobytes(), len(file_N))
    arrays = {}
    for name, dtype in DTYPES.items():
        stored, shape, position = header[name]
        if stored != dtype:
            raise ValueError(f"{name} are {stored}, expected {np.dtype(dtype)}")
        arrays[name] = file_N[position : position + stored.itemsize * math.prod(shape)].view(dtype).reshape(shape)
    return arrays, json.loads(metadata["facts"])


def _index_sha256(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "offsets", "checksums"):
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def _prefixes(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key as a number, in the order of the keys."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
