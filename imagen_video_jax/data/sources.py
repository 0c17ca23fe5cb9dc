"""Where examples come from: a folder or manifest of captioned videos and images -> `Source`.

Captions are found in one of three places:

* `captions.jsonl` in the folder: one JSON object a line, `{"path": "a/b.mp4", "caption": "..."}` and/or
  `"captions": ["...", ...]`; paths are relative to the file; other keys are kept as `facts`; several lines about one
  path are merged;
* a `.txt` file beside a video or image, each non-empty line a caption (used where `captions.jsonl` says nothing);
* a `.jsonl` file named instead of the folder: then only the files that it lists belong to the source.

Nothing is decoded here: a file that does not decode is found out by whoever reads it.
"""

import dataclasses
import json
import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from imagen_video_jax.errors import UserError
from imagen_video_jax.video.files import IMAGE_ENDINGS, VIDEO_ENDINGS

MANIFEST = "captions.jsonl"
_ENDINGS = VIDEO_ENDINGS + IMAGE_ENDINGS


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned video or image.

    Attributes:
      path: the file.
      captions: descriptions of it, any of which may be shown with it; may be empty only where the source allows it.
      id: its number in the source, counted over videos and images in the order of their paths.
      facts: what else the manifest says of it.
    """

    path: pathlib.Path
    captions: tuple[str, ...]
    id: int
    facts: dict = dataclasses.field(default_factory=dict, compare=False)

    @property
    def is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGE_ENDINGS


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of a data set, in the order of their paths."""

    path: pathlib.Path
    videos: tuple[Example, ...]
    images: tuple[Example, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """Every different caption, in the order of the examples: what a text encoder has to embed."""
        return tuple(dict.fromkeys(c for example in sorted_by_id(self) for c in example.captions))


def sorted_by_id(source: Source) -> list[Example]:
    """Videos and images together, in the order of their numbers."""
    return sorted(source.videos + source.images, key=lambda example: example.id)


def open_source(path: str | os.PathLike, *, captions_optional: bool = False) -> Source:
    """Finds the examples of a folder or a `.jsonl` manifest (see the head of this file).

    Args:
      path: folder or manifest.
      captions_optional: keep files that have no caption.

    Raises:
      UserError: nothing there, captions of files that are not there, files without captions, the same file twice,
        paths that leave the folder, or a malformed line (named as file:line).
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        folder, names = path, _media_files(path)
        listed = _read_manifest(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        if not names and not listed:
            raise UserError(f"{folder} holds no videos or images: looked for {', '.join(_ENDINGS)}; {_seen(folder)}")
    elif path.suffix.lower() == ".jsonl":
        folder, listed = path.parent, _read_manifest(path)
        names = sorted(listed)
        if not names:
            raise UserError(f"{path} lists no files")
    else:
        raise UserError(f"{path} is neither a folder nor a .jsonl manifest")
    _check_listed(folder, listed)
    _check_inside_and_once(folder, sorted({*names, *listed}))
    return _source(path, folder, names, listed, captions_optional=captions_optional)


def _source(path, folder, names: Sequence[str], listed: dict, *, captions_optional: bool) -> Source:
    examples = []
    for number, name in enumerate(names):
        captions, facts = listed.get(name, ((), {}))
        captions = captions or _sidecar_captions(folder / name)
        examples.append(Example(folder / name, tuple(dict.fromkeys(captions)), number, facts))
    bare = [example for example in examples if not example.captions]
    if bare and not captions_optional:
        first = bare[0].path.relative_to(folder)
        raise UserError(
            f"{path}: {len(bare)} of {len(examples)} files have no caption, the first is {first}; "
            f"describe them in {MANIFEST} or in .txt files beside them"
        )
    videos = tuple(example for example in examples if not example.is_image)
    return Source(path, videos, tuple(example for example in examples if example.is_image))


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Every file below a folder except hidden ones; links to folders are not followed but refused."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                raise UserError(
                    f"{os.path.join(parent, name)} is a link to a folder; name that folder itself as a source"
                )
        yield from (pathlib.Path(parent, name) for name in files if not name.startswith("."))


def _media_files(folder: pathlib.Path) -> list[str]:
    found = (file for file in _walk(folder) if file.suffix.lower() in _ENDINGS)
    return sorted(file.relative_to(folder).as_posix() for file in found)


def _seen(folder: pathlib.Path) -> str:
    """What a folder without media holds instead, by ending."""
    endings = Counter(file.suffix.lower() or "no ending" for file in _walk(folder))
    if not endings:
        return "it is empty"
    return "found " + ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))


def _read_manifest(path: pathlib.Path) -> dict[str, tuple[tuple[str, ...], dict]]:
    """{path as written, without './': (captions, facts)} of a manifest."""
    listed: dict[str, tuple[tuple[str, ...], dict]] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    name, captions, facts = _manifest_line(f"{path}:{number}", line)
                    known_captions, known_facts = listed.get(name, ((), {}))
                    listed[name] = (known_captions + captions, facts | known_facts)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return listed


def _manifest_line(where: str, line: str) -> tuple[str, tuple[str, ...], dict]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
    name = row.pop("path", None)
    if not isinstance(name, str) or not name:
        raise UserError(f'{where}: "path" must be the name of a file, got {name!r}')
    captions = row.pop("captions", [])
    captions = [row.pop("caption"), *captions] if "caption" in row and isinstance(captions, list) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise UserError(f'{where}: "caption" must be text and "captions" a list of texts')
    parts = pathlib.PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise UserError(f"{where}: {name!r} leaves the folder; paths must be relative to the manifest, without '..'")
    return parts.as_posix(), _clean(captions), row


def _sidecar_captions(file: pathlib.Path) -> tuple[str, ...]:
    sidecar = file.with_suffix(".txt")
    try:
        return _clean(sidecar.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"{sidecar} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{sidecar} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions as one line each, without control characters and lone surrogates; empty ones are left out."""
    cleaned = (
        " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption).split())
        for caption in captions
    )
    return tuple(caption for caption in cleaned if caption)


def _check_listed(folder: pathlib.Path, listed: dict) -> None:
    other = [name for name in listed if pathlib.PurePosixPath(name).suffix.lower() not in _ENDINGS]
    if other:
        raise UserError(f"{folder}: {other[0]!r} in the manifest is not one of {', '.join(_ENDINGS)}")
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(listed)} captioned files are missing, the first is {missing[0]}"
        )


def _check_inside_and_once(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Refuses links that lead out of the folder, and two names of one file (it would count twice)."""
    root = folder.resolve()
    seen: dict[pathlib.Path, str] = {}
    for name in names:
        real = (folder / name).resolve()
        if not real.is_relative_to(root):
            raise UserError(f"{folder / name} is a link that leaves the folder; copy the file or name its own folder")
        if real in seen:
            raise UserError(f"{folder}: {seen[real]} and {name} are the same file; keep one of them")
        seen[real] = name
