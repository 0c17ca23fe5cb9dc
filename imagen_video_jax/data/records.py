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
    if statistics.get("version") != VERSION:
        raise UserError(
            f"{folder} was prepared in format {statistics.get('version')}, this program reads {VERSION}; prepare the "
            "source again into another folder"
        )
    for name, shard in statistics["shards"].items():
        _check_shard(folder / name, shard["records"])
    shards = _Shards(folder)
    examples = []
    with open(folder / INDEX, encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            examples.append(
                Example(
                    path=folder / row["path"],
                    captions=tuple(row["captions"]),
                    id=number,
                    facts=row["facts"],
                    load=lambda row=row: shards.read(row["shard"], row["record"]),
                    stamp=row["sha256"],
                )
            )
    return Listing(examples, prepared=True)


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
