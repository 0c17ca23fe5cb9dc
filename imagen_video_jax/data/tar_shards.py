"""WebDataset tar shards: members that share a name up to its ending are one example (`a.mp4`, `a.txt`, `a.json`).

Nothing is unpacked to disk: members are found by one pass over the headers and read where they lie. Only regular
members with an ending from the list are read at all; pickles, links and devices are never opened.
"""

import dataclasses
import json
import pathlib
import tarfile
from collections.abc import Sequence

from imagen_video_jax.data.examples import Example, Listing, Problem, captions_of, clean_captions
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.reading import IMAGE_ENDINGS, MAX_FILE_BYTES, VIDEO_ENDINGS, MediaError

_MAX_TEXT = 1 << 20


def list_tars(root: pathlib.Path, tars: Sequence[pathlib.Path]) -> Listing:
    """The examples of tar files, in the order of their names; `path` is TAR/MEMBER relative to `root`."""
    found, problems = [], []
    for tar in tars:
        try:
            members = _members(tar)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            problems.append(Problem(tar.name, f"cannot be read as a tar file ({error})", "copy it again"))
            continue
        for name, (offset, size) in members.items():
            if _ending(name) in VIDEO_ENDINGS + IMAGE_ENDINGS:
                captions, facts = _said(tar, members, name, problems)
                load = lambda tar=tar, name=name, offset=offset, size=size: _read(tar, name, offset, size)  # noqa: E731
                stamp = f"{tar.stat().st_mtime_ns}-{offset}-{size}"
                found.append((name, Example(tar / name, captions, 0, facts, load, stamp=stamp)))
    found.sort(key=lambda pair: (pair[0], pair[1].path))
    return Listing([dataclasses.replace(example, id=i) for i, (_, example) in enumerate(found)], problems)


def _ending(name: str) -> str:
    return pathlib.PurePosixPath(name).suffix.lower()


def _members(tar: pathlib.Path) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of the regular members."""
    members: dict[str, tuple[int, int]] = {}
    total = tar.stat().st_size
    with tarfile.open(tar, "r:") as archive:  # uncompressed: members are read in place
        for member in archive:
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"cut off within {member.name}")
                members[pathlib.PurePosixPath(member.name).as_posix()] = (member.offset_data, member.size)
    return members


def _read(tar: pathlib.Path, name: str, offset: int, size: int) -> EncodedMedia:
    if size > MAX_FILE_BYTES:
        raise MediaError(tar / name, f"{size} bytes are more than {MAX_FILE_BYTES}")
    try:
        with open(tar, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise MediaError(tar / name, error.strerror or str(error)) from None
    if len(data) < size:
        raise MediaError(tar / name, f"cut off: {len(data)} of {size} bytes")
    return EncodedMedia(name, data)


def _said(tar: pathlib.Path, members: dict, name: str, problems: list[Problem]) -> tuple[tuple[str, ...], dict]:
    """Captions and facts from `KEY.txt` (a caption a line) and `KEY.json` (`caption`, `captions`, facts)."""
    key = name[: len(name) - len(_ending(name))]
    captions, facts = [], {}
    for ending in (".txt", ".json"):
        if key + ending not in members:
            continue
        offset, size = members[key + ending]
        try:
            if size > _MAX_TEXT:
                raise ValueError(f"longer than {_MAX_TEXT} bytes")
            text = _read(tar, key + ending, offset, size).data.decode("utf-8-sig")
            if ending == ".txt":
                captions += captions_of(text)
                continue
            row = json.loads(text)
            listed = [row.pop("caption", None), *row.pop("captions", [])]
            captions += [caption for caption in listed if isinstance(caption, str)]
            facts |= row
        except (MediaError, ValueError, TypeError, AttributeError, RecursionError) as error:
            problems.append(Problem(f"{tar.name}/{key + ending}", f"not a description ({error})"))
    return clean_captions(captions), facts
