"""Manifests: which files there are and what is said of them, as .jsonl, .csv or .parquet.

A row has `path` (relative to the manifest), `caption` and/or `captions` (a list), and any other fields, kept as facts
(`sha256` of the file is compared by `prepare`).
Several rows about one path are merged; a row that says nothing new about a path is a mistake. A .jsonl has an object a
line, a .csv a header line.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterator

from imagen_video_jax.data.examples import Problem, clean_captions
from imagen_video_jax.errors import UserError

MANIFEST = "captions.jsonl"  # of a folder
ENDINGS = (".jsonl", ".csv", ".parquet")
_MAX_LINE = 1 << 20
_MAX_NAME = 4096


@dataclasses.dataclass
class Row:
    """What a manifest says of one path."""

    captions: tuple[str, ...]
    facts: dict
    line: int
    written: str  # the path as it stands there


class _BadRow(Exception):
    """A row that cannot be used; the text says why."""

    def __init__(self, reason: str, path: str | None = None):
        super().__init__(reason)
        self.path = path


def read_manifest(path: pathlib.Path) -> tuple[dict[str, Row], list[Problem]]:
    """{path without './': what is said of it}, and the rows that cannot be used.

    Raises:
      UserError: the manifest as a whole cannot be read.
    """
    rows: dict[str, Row] = {}
    problems: list[Problem] = []
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        for line, found in readers[path.suffix.lower()](path):
            try:
                if isinstance(found, _BadRow):
                    raise found
                _add(rows, line, found)
            except _BadRow as error:
                where = {"path": error.path} if error.path is not None else {"path": path.name, "line": line}
                problems.append(Problem(**where, reason=_told(error, path, line), exists=False))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return rows, problems


def _told(error: _BadRow, path: pathlib.Path, line: int) -> str:
    return str(error) if error.path is None else f"{error} ({path.name}:{line})"


def _add(rows: dict[str, Row], line: int, found: dict) -> None:
    name, captions, facts = _parse(found)
    known = rows.get(name)
    if known is None:
        rows[name] = Row(captions, facts, line, found["path"])
        return
    if set(captions) <= set(known.captions) and facts.items() <= known.facts.items():
        raise _BadRow(f"says nothing that row {known.line} does not say of {name!r}")
    rows[name] = Row(clean_captions(known.captions + captions), facts | known.facts, known.line, known.written)


def _parse(row: dict) -> tuple[str, tuple[str, ...], dict]:
    row = dict(row)
    name = row.pop("path", None)
    if not isinstance(name, str) or not name:
        raise _BadRow(f'"path" must be the name of a file, got {name!r:.60}')
    single, captions = row.pop("caption", None), row.pop("captions", None)
    captions = [] if captions is None else captions  # null is what tables write where nothing is
    captions = [single, *captions] if single is not None and isinstance(captions, list) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise _BadRow('"caption" must be text and "captions" a list of texts')
    parts = pathlib.PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name or len(name) > _MAX_NAME:
        raise _BadRow("leaves the folder; paths must be relative to the manifest, without '..'", name[:200])
    return parts.as_posix(), clean_captions(captions), row


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str | _BadRow]]:
    """Non-empty lines as text."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE:
                while (rest := file.readline(_MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, _BadRow(f"longer than {_MAX_LINE} bytes")
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, _BadRow(f"not UTF-8 text ({error.reason} at byte {error.start})")
                continue
            if text.strip():
                yield number, text


def _json_rows(path: pathlib.Path) -> Iterator[tuple[int, dict | _BadRow]]:
    for number, line in _lines(path):
        if isinstance(line, _BadRow):
            yield number, line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, _BadRow(f"not a JSON object ({error})")
            continue
        good = isinstance(row, dict)
        yield number, row if good else _BadRow(f"expected a JSON object, got {type(row).__name__}")


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, dict | _BadRow]]:
    """Rows of a comma-separated file; fields in quotes may hold commas and line ends."""
    bad = [(number, line) for number, line in _lines(path) if isinstance(line, _BadRow)]
    yield from bad
    text = "".join(line for _, line in _lines(path) if isinstance(line, str))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
    except csv.Error as error:
        raise UserError(f"{path}: its first line is not comma-separated values ({error})") from None
    if "path" not in columns:
        raise UserError(f"{path}: its first line must name the columns, path and caption among them")
    rows = iter(reader)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield reader.line_num, _BadRow(f"not comma-separated values ({error})")
            continue
        if row is None:
            return
        if None in row:
            yield reader.line_num, _BadRow("has more fields than the first line names")
            continue
        yield reader.line_num, {name: value for name, value in row.items() if value not in (None, "")}


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[int, dict | _BadRow]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'imagen_video_jax[parquet]'") from None
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            if "path" not in file.schema_arrow.names:
                raise UserError(f"{path}: needs a column named path, has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if not _absent(value)}
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


def _absent(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
