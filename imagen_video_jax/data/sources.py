"""Where examples come from: a folder, a manifest, tar shards, a prepared folder or a TFDS name -> `Source`.

* A folder of videos and images. Captions are in its `captions.jsonl`, or (where that says nothing) in a `.txt` file
  beside each file, each non-empty line a caption.
* A manifest (.jsonl, .csv, .parquet): the files that it lists, relative to it (see `manifests.py`).
* A `.tar`, or a folder of them (`tar_shards.py`); a folder made by `imagen-video prepare` (`records.py`); `tfds:NAME`
  (`tfds_source.py`).
* A mixture of these: `DIR*3,tfds:NAME*1` shows three of DIR's examples for every one of the other.

Nothing is decoded here: a file that does not decode is found out by whoever reads it.
"""

import dataclasses
import os
import pathlib
import stat
from collections import Counter
from collections.abc import Iterator

from imagen_video_jax.data import manifests, records, tar_shards, tfds_source
from imagen_video_jax.data.examples import Example, Listing, Problem, Source, captions_of, sorted_by_id
from imagen_video_jax.data.manifests import MANIFEST
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.reading import IMAGE_ENDINGS, VIDEO_ENDINGS

__all__ = ["Example", "Source", "list_source", "open_source", "sorted_by_id"]

_ENDINGS = VIDEO_ENDINGS + IMAGE_ENDINGS
_MAX_SIDECAR = 1 << 20


def open_source(name: str | os.PathLike, *, captions_optional: bool = False) -> Source:
    """Finds the examples of a source (see the head of this file) and refuses one with mistakes in it.

    Args:
      name: folder, file, `tfds:NAME`, or a mixture.
      captions_optional: keep files that have no caption. What was prepared without is kept in any case.

    Raises:
      UserError: nothing there, captions of files that are not there, files without captions, the same file twice,
        paths that leave the folder, or a malformed line (named as file:line).
    """
    parts = _parts(os.fspath(name))
    videos, images, count = [], [], 0
    for number, (part, _) in enumerate(parts):
        listing = list_source(part)
        if listing.problems:
            more = len(listing.problems) - 1
            raise UserError(f"{part}: {listing.problems[0]}" + (f" ({more} more like this)" if more else ""))
        _check_captions(part, listing, captions_optional)
        for example in listing.examples:
            moved = dataclasses.replace(example, id=count, part=number) if len(parts) > 1 else example
            (images if example.is_image else videos).append(moved)
            count += 1
    return Source(os.fspath(name), tuple(videos), tuple(images), tuple(weight for _, weight in parts))


def _parts(name: str) -> list[tuple[str, float]]:
    """The data sets of a mixture and their weights."""
    # A template for captions may well have commas.
    if os.path.exists(name) or ("*" not in name and ("," not in name or "?" in name)):
        return [(name, 1.0)]
    parts = []
    for text in name.split(","):
        path, star, weight = text.strip().rpartition("*")
        try:
            parts.append((path, float(weight)) if star else (weight, 1.0))
        except ValueError:
            raise UserError(f"{name}: a mixture is written DIR*WEIGHT,DIR*WEIGHT; {weight!r} is no number") from None
        if not 0 < parts[-1][1] < float("inf"):
            raise UserError(f"{name}: the weight of {parts[-1][0]} must be above 0, got {weight}; leave it out instead")
    return parts


def _check_captions(name: str, listing: Listing, captions_optional: bool) -> None:
    bare = [example for example in listing.examples if not example.captions]
    if bare and not captions_optional and not listing.prepared:
        raise UserError(
            f"{name}: {len(bare)} of {len(listing.examples)} files have no caption, the first is {bare[0].path.name}; "
            f"describe them in {MANIFEST} or in .txt files beside them"
        )


def list_source(name: str | os.PathLike) -> Listing:
    """What a source holds, and what is wrong with the rest of it.

    Raises:
      UserError: nothing can be read there at all, or it is a mixture.
    """
    if len(_parts(os.fspath(name))) > 1:
        raise UserError(f"{name} is a mixture, which only training shows; give this command one of its data sets")
    if os.fspath(name).startswith(tfds_source.PREFIX):
        return tfds_source.list_tfds(os.fspath(name))
    path = pathlib.Path(name)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        return _list_folder(path)
    if not path.is_file():  # reading a pipe would wait for its writer
        raise UserError(f"{path} is neither a folder nor a regular file")
    if path.suffix.lower() == ".tar":
        return tar_shards.list_tars(path.parent, [path])
    if path.suffix.lower() in manifests.ENDINGS:
        rows, problems = manifests.read_manifest(path)
        if not rows and not problems:
            raise UserError(f"{path} lists no files")
        return _listing(path.parent, sorted(rows), rows, problems, Counter(), path.name)
    raise UserError(
        f"{path} is neither a folder nor a {', '.join(manifests.ENDINGS[:-1])} or {manifests.ENDINGS[-1]} manifest, "
        "nor a .tar"
    )


def _list_folder(folder: pathlib.Path) -> Listing:
    if records.is_prepared(folder):
        return records.list_prepared(folder)
    problems: list[Problem] = []
    files = list(_walk(folder, problems))
    names = sorted(name for name in files if pathlib.PurePosixPath(name).suffix.lower() in _ENDINGS)
    other = Counter(pathlib.PurePosixPath(name).suffix.lower() or "no ending" for name in set(files) - set(names))
    rows: dict[str, manifests.Row] = {}
    if MANIFEST in files and _within(folder, MANIFEST, problems):
        rows, found = manifests.read_manifest(folder / MANIFEST)
        problems += found
    if tars := [name for name in sorted(files) if name.lower().endswith(".tar")]:
        if names:
            raise UserError(f"{folder} holds tar shards and other media; name one kind, or mix them: A.tar*1,B*1")
        listing = tar_shards.list_tars(folder, [folder / name for name in tars if _within(folder, name, problems)])
        return dataclasses.replace(listing, problems=problems + listing.problems)
    if not names and not rows and not problems:
        seen = ", ".join(f"{count} {ending}" for ending, count in other.most_common(5))
        raise UserError(
            f"{folder} holds no videos or images: looked for {', '.join(_ENDINGS)}; "
            + (f"found {seen}" if seen else "it is empty")
        )
    return _listing(folder, sorted({*names, *rows}), rows, problems, other, MANIFEST)


def _listing(folder, names, rows: dict, problems: list[Problem], other: Counter, manifest: str) -> Listing:
    """Examples for the names that are files within the folder, each once."""
    examples: list[Example] = []
    root = folder.resolve()
    seen: dict[pathlib.Path, str] = {}
    # Of a file and links to it one is kept: the one that is described, or else the file, beside which its caption lies.
    order = sorted(names, key=lambda name: (name not in rows, os.path.islink(folder / name)))
    placed = {name: _problem(folder, name, rows, root, seen, manifest) for name in order}
    for name in names:
        if (problem := placed[name]) is not None:
            problems.append(problem)
            continue
        row = rows.get(name)
        captions = (row.captions if row else ()) or _sidecar_captions(folder, name, problems)
        examples.append(Example(folder / name, captions, len(examples), row.facts if row else {}))
    return Listing(examples, problems, other)


def _problem(folder, name: str, rows: dict, root, seen: dict, manifest: str) -> Problem | None:
    said = f" ({manifest}:{rows[name].line})" if name in rows else ""
    if pathlib.PurePosixPath(name).suffix.lower() not in _ENDINGS:
        return Problem(name, f"not one of {', '.join(_ENDINGS)}{said}")
    path = folder / name
    try:
        real = path.resolve(strict=True)
        problem = _misplaced(path, name, root, said)
    except (OSError, RuntimeError, ValueError):
        if os.path.islink(path) or name not in rows:
            return Problem(name, "a link to nothing")
        return Problem(rows[name].written, f"described, but there is no such file{said}", exists=False)
    if problem is not None:
        return problem
    if real in seen:
        return Problem(name, f"the same file as {seen[real]}", "keep one of them")
    seen[real] = name
    return None


def _misplaced(path: pathlib.Path, name: str, root: pathlib.Path, said: str = "") -> Problem | None:
    """Why a path that is there is not to be opened; OSError or RuntimeError where it is a link to nothing."""
    if not path.resolve(strict=True).is_relative_to(root):
        return Problem(name, "a link that leaves the folder", "copy the file or name its own folder as a source")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return Problem(name, f"a folder, though it is described like a file{said}")
    return None if stat.S_ISREG(mode) else Problem(name, "not a regular file")


def _within(folder: pathlib.Path, name: str, problems: list[Problem]) -> bool:
    """Whether a file that is no clip (captions, a tar) may be opened; `problems` says why not."""
    try:
        problem = _misplaced(folder / name, name, folder.resolve())
    except (OSError, RuntimeError):
        problem = Problem(name, "a link to nothing")
    if problem is not None:
        problems.append(problem)
    return problem is None


def _walk(folder: pathlib.Path, problems: list[Problem]) -> Iterator[str]:
    """Names of the files below a folder except hidden ones; links to folders are not followed."""

    def unreadable(error: OSError):
        name = os.path.relpath(error.filename, folder)
        problems.append(Problem(name, f"the folder cannot be read ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = pathlib.Path(parent, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink():
                problems.append(Problem(shown, "a link to a folder", "name that folder itself as a source"))
            elif path.suffix.lower() in _ENDINGS:
                problems.append(Problem(shown, "a folder, though it is named like a file", "rename it"))
        for name in files:
            if not name.startswith("."):
                yield pathlib.Path(parent, name).relative_to(folder).as_posix()


def _sidecar_captions(folder: pathlib.Path, name: str, problems: list[Problem]) -> tuple[str, ...]:
    sidecar = (folder / name).with_suffix(".txt")
    reason = ""
    try:
        if not sidecar.resolve().is_relative_to(folder.resolve()):
            reason = "a link that leaves the folder"
        elif sidecar.exists() and not sidecar.is_file():
            reason = "not a regular file"
        elif sidecar.is_file() and sidecar.stat().st_size > _MAX_SIDECAR:
            reason = f"longer than {_MAX_SIDECAR} bytes"
        elif sidecar.is_file():
            return captions_of(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, RuntimeError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text ({error.reason} at byte {error.start})"
    if reason:
        problems.append(Problem(sidecar.relative_to(folder).as_posix(), reason))
    return ()
