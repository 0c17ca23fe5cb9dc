"""Prepared data sets: ArrayRecord shards of encoded clips with their captions and facts, and an index of them.

    DIR/*.array_record      a record per clip: msgpack {"path", "captions", "facts" (JSON), "sha256", "media" (bytes)}
    DIR/records.jsonl       a line per record, in order: where it is, and all of it but the media; written last
    DIR/statistics.json     `version`, and the shards with their number of records

The media are the bytes of the original files. A shard is written with one record a group, for random access; the same
records give the same bytes.
"""

import errno
import json
import os
import pathlib
import threading
from collections.abc import Iterable

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from imagen_video_jax import storage
from imagen_video_jax.data.examples import Example, Listing
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.reading import MediaError

VERSION = 1
INDEX, STATISTICS, ENDING = "records.jsonl", "statistics.json", ".array_record"

_WRITE = "group_size:1,uncompressed"  # media are compressed already
_READ = "readahead_buffer_size:0,max_parallelism:0"


def is_prepared(folder: pathlib.Path) -> bool:
    return (folder / INDEX).exists() or any(folder.glob(f"*{ENDING}"))


def pack(*, path: str, captions: Iterable[str], facts: dict, sha256: str, media: bytes) -> bytes:
    """One record."""
    row = {"path": path, "captions": list(captions), "facts": json.dumps(facts), "sha256": sha256, "media": media}
    return msgpack.packb(row)


def unpack(record: bytes) -> dict:
    """The inverse of `pack`; ValueError where the bytes are no record."""
    try:
        row = msgpack.unpackb(record, max_bin_len=len(record), max_str_len=len(record))
        if not isinstance(row["path"], str) or not isinstance(row["media"], bytes):
            raise ValueError("its path or its media are something else")
        return row | {"facts": json.loads(row["facts"])}
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of a clip: {error}") from None


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes a shard atomically and returns its number of records; OSError when the disk is full."""
    count = 0
    with storage.atomic_path(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), _WRITE)
            for count, record in enumerate(records, 1):  # noqa: B007
                writer.write(record)
            writer.close()
        except RuntimeError as error:
            # The library has one error for everything and tells a full disk in its text only.
            full = "No space left" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC) if full else error) from None
    return count


class _Shards:
    """Random access to records; each thread has readers of its own."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._local = threading.local()

    def read(self, shard: str, number: int) -> EncodedMedia:
        readers = self._local.__dict__
        try:
            if shard not in readers:
                readers[shard] = ArrayRecordReader(str(self._folder / shard), _READ)
            row = unpack(readers[shard].read([number])[0])
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise MediaError(self._folder / shard, f"record {number} cannot be read ({error})") from None
        return EncodedMedia(row["path"], row["media"])


def list_prepared(folder: pathlib.Path) -> Listing:
    """The clips of a prepared data set.

    Raises:
      UserError: unfinished, made by another version, or a shard is missing or incomplete.
    """
    if not (folder / INDEX).exists() or not (folder / STATISTICS).exists():
        raise UserError(f"{folder} holds {ENDING} files but no {INDEX}: run imagen-video prepare again to finish it")
    statistics = storage.read_json(folder / STATISTICS)
    version = statistics.get("version") if isinstance(statistics, dict) else None
    if version != VERSION:
        raise UserError(
            f"{folder} was prepared in format {version}, this program reads {VERSION}; prepare the source again into "
            "another folder"
        )
    counts = _shard_counts(folder, statistics)
    for name, count in counts.items():
        _check_shard(folder / name, count)
    shards = _Shards(folder)
    with open(folder / INDEX, "rb") as file:
        examples = [_example(folder, shards, counts, number, line) for number, line in enumerate(file)]
    if len(examples) != sum(counts.values()):
        raise _damaged(folder / INDEX, f"lists {len(examples)} of {sum(counts.values())} records")
    return Listing(examples, prepared=True)


def _shard_counts(folder: pathlib.Path, statistics: dict) -> dict[str, int]:
    """{file name: records} of the shards, which lie in the folder itself."""
    try:
        counts = {name: shard["records"] for name, shard in statistics["shards"].items()}
    except (KeyError, TypeError, AttributeError):
        raise _damaged(folder / STATISTICS, "does not say what the shards hold") from None
    for name, count in counts.items():
        if pathlib.PurePath(name).name != name or type(count) is not int:
            raise _damaged(folder / STATISTICS, f"names a shard {name!r:.60} of {count!r:.20} records")
    return counts


def _example(folder: pathlib.Path, shards: "_Shards", counts: dict[str, int], number: int, line: bytes) -> Example:
    """A line of the index; UserError where it is none."""
    try:
        row = json.loads(line)
        shard, record, facts = row["shard"], row["record"], row["facts"]
        good = type(record) is int and 0 <= record < counts[shard] and isinstance(facts, dict)
        if not good or not all(isinstance(text, str) for text in (row["path"], row["sha256"], *row["captions"])):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(folder / INDEX, f"line {number + 1} is not one that prepare writes") from None
    return Example(
        path=folder / row["path"],
        captions=tuple(row["captions"]),
        id=number,
        facts=facts,
        load=lambda: shards.read(shard, record),
        stamp=row["sha256"],
    )


def _damaged(path: pathlib.Path, how: str) -> UserError:
    return UserError(f"{path} {how}: it is damaged; copy it again, or run imagen-video prepare again")


def _check_shard(path: pathlib.Path, records: int) -> None:
    """A shard that was cut short reads as one with fewer records, without an error."""
    if not path.exists():
        raise UserError(f"{path} is missing; copy it again, or run imagen-video prepare again")
    try:
        reader = ArrayRecordReader(str(path), _READ)
        found = reader.num_records()
        reader.close()
    except RuntimeError:
        raise UserError(f"{path} is damaged or cut short; copy it again") from None
    if found != records:
        raise UserError(f"{path} holds {found} of its {records} records; copy it again")
