"""The videos of a folder, a manifest or a prepared data set, with what is said of them, and how they are read."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from imagen_video_jax.data.examples import captions_of, clean_captions
from imagen_video_jax.data.manifests import MANIFEST, Row, read_manifest
from imagen_video_jax.data.records import is_prepared
from imagen_video_jax.data.sources import list_source
from imagen_video_jax.errors import UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.reading import IMAGE_ENDINGS, VIDEO_ENDINGS, MediaError, Video, content_hash

SAMPLES = "samples.jsonl"
_SECONDS, _MEMORY = 300.0, 6 << 30  # of decoding one file: samples may be long and large


@dataclasses.dataclass(frozen=True)
class Item:
    """One video of a set.

    Attributes:
      name: its path within the set, for messages and for pairing.
      media: the file, its bytes, or its frames.
      caption: "" where nothing is said.
      labels: further facts of its line in captions.jsonl, e.g. what a motion_shapes clip shows.
    """

    name: str
    media: pathlib.Path | EncodedMedia | Video
    caption: str = ""
    labels: dict = dataclasses.field(default_factory=dict)

    def content_key(self) -> str:
        """A hash of the content; MediaError where it cannot be read."""
        if isinstance(self.media, Video):
            frames_THWC = np.ascontiguousarray(self.media.frames_THWC)
            return hashlib.sha256(repr(frames_THWC.shape).encode() + frames_THWC.tobytes()).hexdigest()
        return content_hash(self.media)

    def read(self) -> Video:
        """The whole video, decoded in a process of its own; MediaError where it cannot be read."""
        if isinstance(self.media, Video):
            return self.media
        return isolated.read_part(self.media, 0, 1 << 31, seconds=_SECONDS, memory_bytes=_MEMORY)


def list_videos(path: str, what: str) -> list[Item]:
    """The videos at `path` in the order of their names; UserError where there is none.

    A folder is searched with its subfolders; one with a samples.jsonl, as `imagen-video sample` leaves, holds the
    videos that are listed there.

    Args: what: "real" or "generated", for the message.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir() or is_prepared(folder) or any(folder.glob("*.tar")):
        return _of_source(path, what)
    rows = _rows_of_samples(folder)
    if rows is None:
        rows = _rows_of_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
        names = sorted(_names_below(folder))
    else:
        names = sorted(rows)
    if not names:
        images = sum(1 for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
        held = f"only {images} images" if images else "no videos"
        raise UserError(f"--{what} {path} holds {held}; looked for {', '.join(VIDEO_ENDINGS)}")
    return [_item(folder, name, rows.get(name)) for name in names]


def _names_below(folder: pathlib.Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if file.suffix.lower() in VIDEO_ENDINGS and not any(p.startswith(".") for p in parts) and not file.is_dir():
            yield "/".join(parts)


def _rows_of_manifest(path: pathlib.Path) -> dict[str, Row]:
    """What captions.jsonl says; lines that cannot be used are counted on stderr."""
    rows, problems = read_manifest(path)
    if problems:
        first = f"line {problems[0].line}: {problems[0].reason}" if problems[0].line else problems[0].reason
        print(f"warning: {len(problems)} lines of {path} cannot be used, the first: {first}", file=sys.stderr)
    return rows


def _rows_of_samples(folder: pathlib.Path) -> dict[str, Row] | None:
    """What samples.jsonl says: file -> its prompt; None where there is no such file."""
    path = folder / SAMPLES
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        for row in rows:
            if not (isinstance(row["path"], str) and isinstance(row["prompt"], str)):
                raise TypeError(f"path and prompt are texts, got {row['path']!r} and {row['prompt']!r}")
        return {row["path"]: Row(clean_captions([row["prompt"]]), {}, i, row["path"]) for i, row in enumerate(rows, 1)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}") from None


def _item(folder: pathlib.Path, name: str, row: Row | None) -> Item:
    captions = row.captions if row else ()
    sidecar = (folder / name).with_suffix(".txt")
    if not captions and sidecar.is_file():
        captions = captions_of(sidecar.read_text(encoding="utf-8-sig", errors="replace"))
    return Item(name, folder / name, captions[0] if captions else "", row.facts if row else {})


def _of_source(path: str, what: str) -> list[Item]:
    listing = list_source(path)
    items = [
        Item(str(example.path), example.media(), (example.captions or ("",))[0], example.facts)
        for example in listing.examples
        if not example.is_image
    ]
    if not items:
        raise UserError(f"--{what} {path} holds no videos")
    return items


def read_ahead(items: Sequence[Item]) -> Iterator[tuple[Item, Video | MediaError]]:
    """Yields each item with its video, or with why there is none; the next one is decoded meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = None
        for item, after in zip(items, [*items[1:], None]):
            current = coming or pool.submit(_read, item)
            coming = pool.submit(_read, after) if after is not None else None
            yield item, current.result()


def _read(item: Item) -> Video | MediaError:
    try:
        return item.read()
    except MediaError as error:
        return error
