"""The plan of `prepare` -> ArrayRecord shards and the index that makes their folder a data set; resumable."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

from imagen_video_jax import storage
from imagen_video_jax.data import records
from imagen_video_jax.data.examine import Clip
from imagen_video_jax.data.examples import Example
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.reading import content_hash


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip of the plan: what becomes one record."""

    name: str  # relative to the source, with the frames where it is a part
    captions: tuple[str, ...]
    facts: dict
    sha256: str
    clip: Clip
    example: Example

    def described(self) -> dict:
        """The record but for its media."""
        clip = self.clip
        known = {"frames": clip.frames, "height": clip.height, "width": clip.width, "fps": clip.fps}
        return {"path": self.name, "captions": self.captions, "facts": self.facts | known, "sha256": self.sha256}


def write_shards(
    folder: pathlib.Path, name: str, entries: list[Entry], shard_bytes: int, work: pathlib.Path, progress: Callable
) -> dict[str, dict]:
    """Writes the shards that are not there as they were written before; {file name: facts}, in order."""
    groups = list(_grouped(entries, shard_bytes))
    done_file = work / f"shards-{name}.json"
    done = storage.read_json(done_file) if done_file.exists() else {}
    done = done if isinstance(done, dict) else {}  # a damaged note: all is written anew
    shards = {}
    for number, group in enumerate(groups):
        shard = f"{name}-{number:05d}-of-{len(groups):05d}{records.ENDING}"
        plan = hashlib.sha256(json.dumps([entry.described() for entry in group]).encode()).hexdigest()
        path = folder / shard
        if not _is_there(path, plan, len(group), done.get(shard)):
            storage.writable_folder(folder)
            (folder / records.INDEX).unlink(missing_ok=True)  # no longer true; without it the folder is unfinished
            count = records.write_shard(path, (_record(entry, work) for entry in group))
            done[shard] = _facts(path, plan, count)
            storage.write_json(done_file, done)
        shards[shard] = {key: done[shard][key] for key in ("records", "bytes", "sha256")} | {"entries": group}
        progress(f"writing {name} shards", number + 1, len(groups))
    return shards


def _is_there(path: pathlib.Path, plan: str, count: int, noted: dict | None) -> bool:
    """Whether a shard of this plan lies there with every byte that was noted when it was written."""
    if not isinstance(noted, dict) or noted.get("plan") != plan or not path.exists():
        return False
    if noted == _facts(path, plan, count):
        return True
    print(f"warning: {path} is damaged; it is written anew", file=sys.stderr)
    return False


def _facts(path: pathlib.Path, plan: str, count: int) -> dict:
    return {"plan": plan, "records": count, "bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}


def _grouped(entries: list[Entry], shard_bytes: int) -> Iterator[list[Entry]]:
    group, size = [], 0
    for entry in entries:
        group.append(entry)
        size += entry.clip.size
        if size >= shard_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _record(entry: Entry, work: pathlib.Path) -> bytes:
    if entry.clip.stored:
        media = EncodedMedia(entry.name, (work / entry.clip.stored).read_bytes())
    else:
        media = entry.example.media()
        if not isinstance(media, EncodedMedia):
            media = EncodedMedia(entry.name, pathlib.Path(media).read_bytes())
        if content_hash(media) != entry.sha256:
            raise UserError(f"{entry.example.path} changed while it was prepared; run the same command again", FAILED)
    return records.pack(**entry.described(), media=media.data)


def publish(folder: pathlib.Path, shards: dict[str, dict], statistics: dict) -> None:
    """Writes what makes the folder a data set; shards of an earlier plan go last, nobody can reach them any more."""
    rows = [
        {"shard": name, "record": number} | entry.described()
        for name, shard in shards.items()
        for number, entry in enumerate(shard["entries"])
    ]
    if not rows and not folder.exists():
        return
    known = {name: {k: v for k, v in shard.items() if k != "entries"} for name, shard in shards.items()}
    storage.write_json(folder / records.STATISTICS, statistics | {"records": len(rows), "shards": known})
    if rows:
        storage.write_text(folder / records.INDEX, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        (folder / records.INDEX).unlink(missing_ok=True)
    for path in folder.glob(f"*{records.ENDING}"):
        if path.name not in shards:
            path.unlink()
