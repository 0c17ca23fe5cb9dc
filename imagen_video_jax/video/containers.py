"""What a file is, from its own bytes: the demuxer for it, and whether it is all there.

The ending is only a claim, and a decoder reads a file that was cut short as a shorter clip, without an error. Most
containers say how long they are, so that is checked first.
"""

import contextlib
import dataclasses
import errno
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_TS_PACKET = 188
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


@dataclasses.dataclass(frozen=True)
class EncodedMedia:
    """A media file that lies in memory.

    Attributes:
      name: for messages; its ending says whether it is a video or an image.
      data: the file's bytes.
    """

    name: str
    data: bytes

    def __fspath__(self) -> str:
        return self.name


Media = str | os.PathLike | EncodedMedia


@contextlib.contextmanager
def opened(media: Media) -> Iterator[BinaryIO]:
    """A media file open for reading, wherever it lies."""
    if isinstance(media, EncodedMedia):
        yield io.BytesIO(media.data)
        return
    mode = os.stat(media).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file")  # opening a pipe would wait for its writer
    with open(media, "rb") as file:
        yield file


def size_of(media: Media) -> int:
    """Bytes."""
    return len(media.data) if isinstance(media, EncodedMedia) else os.path.getsize(media)


def demuxer_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with `head` (a few hundred bytes); None for one that is not read."""
    if head[4:8] in _ISO_BOXES:
        return "mp4"
    if head[:4] == _EBML:
        return "matroska"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:1] == b"G" and len(head) > _TS_PACKET and head[_TS_PACKET : _TS_PACKET + 1] == b"G":
        return "mpegts"
    return None


def what_is_missing(demuxer: str, file: BinaryIO, size: int) -> str:
    """How a file of `size` bytes shows that its end is missing; "" where it does not show."""
    if demuxer == "mp4":
        needed = _last_iso_box(file, size)
    elif demuxer == "matroska":
        needed = _matroska_size(file)
    elif demuxer == "avi":
        needed = _riff_size(file)
    elif demuxer == "gif":
        file.seek(max(0, size - 1024))
        # Some writers pad; the trailer is the last byte that means anything.
        return "" if file.read().rstrip(b"\0").endswith(b";") else "its end mark is missing"
    else:
        return "" if size % _TS_PACKET == 0 else f"its last packet has {size % _TS_PACKET} of {_TS_PACKET} bytes"
    return f"{size} bytes, its header says {needed}" if needed > size else ""


def _last_iso_box(file: BinaryIO, size: int) -> int:
    """Where the last of the top-level boxes that hold pictures or their index ends."""
    position, end = 0, 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file
            break
        position += length
        if head[4:8] in (b"mdat", b"moov", b"moof"):
            end = position
    return end


def _matroska_size(file: BinaryIO) -> int:
    """Where the segment ends; 0 where it does not say (a recording that was never closed)."""
    position = 0
    for _ in range(4):  # the header, perhaps some padding, the segment
        file.seek(position)
        head = file.read(12)
        if len(head) < 5 or not head[4]:
            return 0
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:
            return 0
        position += 4 + width + length
        if head[:4] == _SEGMENT:
            return position
    return 0


def _riff_size(file: BinaryIO) -> int:
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return 0 if length in (0, 0xFFFFFFFF) else length + 8


def ending_of(head: bytes) -> str | None:
    """A file ending for content that has no name, from its first few hundred bytes; None for what is not read."""
    videos = {"mp4": ".mp4", "matroska": ".mkv", "gif": ".gif", "avi": ".avi", "mpegts": ".ts"}
    if (demuxer := demuxer_of(head)) is not None:
        return videos[demuxer]
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return ".png"
    if head[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None
