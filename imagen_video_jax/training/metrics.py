"""Where numbers go: `metrics.jsonl` (losses), `events.jsonl` (everything else), TensorBoard, the clips that were not as
they should be (`unusable.jsonl`), and the progress bar."""

import contextlib
import json
import math
import pathlib
import socket
import sys
import time
from collections.abc import Iterable

import rich.progress
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from imagen_video_jax import storage
from imagen_video_jax.data.batches import Batches

LOSSES = ("train", "held_out")  # kinds of rows that have a loss: those of metrics.jsonl
_FLUSH_SECONDS = 30  # between two times that TensorBoard's events are synced, which may take long


def report_clips(workdir: pathlib.Path, streams: Iterable[Batches], process: int) -> None:
    """Lists the clips that this process could not use or made longer, and why, in DIR/unusable.jsonl; prints a line.

    What earlier runs in the folder found stays listed. Each process of a job sees clips of its own, and after the first
    they write DIR/unusable-PROCESS.jsonl.
    """
    rows = {}
    for stream in streams:
        rows |= {path: {"path": path, "what": "skipped", "reason": text} for path, text in stream.skipped.items()}
        for path, text in stream.repeated.items():
            rows[path] = {"path": path, "what": "last frame repeated", "reason": text}
    if not rows:
        return
    path = workdir / (f"unusable-{process}.jsonl" if process else "unusable.jsonl")
    known = {row["path"]: row for row in _rows(path)}
    try:
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in (known | rows).values()))
    except OSError as error:
        print(f"warning: {path} cannot be written: {error}", file=sys.stderr)
    skipped = [row for row in rows.values() if row["what"] == "skipped"]
    said = [f"{len(rows) - len(skipped)} short clips repeated their last frame"] if len(skipped) < len(rows) else []
    if skipped:
        first = skipped[0]
        said.insert(0, f"{len(skipped)} clips could not be used, the first: {first['path']}: {first['reason']}")
    print("; ".join(said) + f"; listed in {path}")


def _rows(path: pathlib.Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []


class MetricsWriter:
    """Appends rows to DIR/metrics.jsonl or events.jsonl and scalars to DIR/tensorboard; lines are flushed at once.

    A disk that is full stops no training: it is said once, and the rows are lost.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int):
        self._path, self._events = workdir / "metrics.jsonl", workdir / "events.jsonl"
        self._complained = False
        _cut_rows_after(self._path, start_step)
        self._file = open(self._path, "a")
        self._board: _Board | None = _Board(workdir / "tensorboard")

    def write(self, step: int, values: dict, *, kind: str = "train") -> None:
        """One row; a value that is not finite is null, because JSON has no word for it."""
        numbers = {name: float(value) for name, value in values.items()}
        row = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            if kind in LOSSES:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            else:
                with open(self._events, "a") as file:
                    file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._complain(self._path, error)
        if self._board:
            try:
                self._board.write(step, {f"{kind}/{n}": value for n, value in numbers.items() if math.isfinite(value)})
            except OSError as error:
                self._complain(self._board.path, error)
                self._board.close()
                self._board = None  # nothing can be read behind an event that was cut

    def cut_after(self, step: int) -> None:
        """Drops the rows of later steps, which will be done again."""
        try:
            with contextlib.suppress(OSError):
                self._file.close()
            _cut_rows_after(self._path, step)
        except OSError as error:
            self._complain(self._path, error)
        self._file = open(self._path, "a")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board:
            self._board.close()

    def _complain(self, path: pathlib.Path, error: OSError) -> None:
        if not self._complained:
            print(f"warning: {path} cannot be written: {error}; training goes on", file=sys.stderr)
        self._complained = True


class _Board:
    """Scalars for TensorBoard, in a file of this run, written by the thread that has them.

    The library's SummaryWriter writes in a thread of its own: one that a full disk ended, and whoever gave it more
    scalars then waited for ever.
    """

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file, self._flushed = RecordWriter(str(self.path)), 0.0
        self._add(file_version="brain.Event:2")

    def _add(self, **fields) -> None:
        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class NoWriter:
    """What the processes other than the first write to: one file has one writer."""

    def write(self, step: int, values: dict, *, kind: str = "train") -> None:
        pass

    def cut_after(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file; lines that are none (the last may be cut by a kill) are left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _cut_rows_after(path: pathlib.Path, step: int) -> None:
    """Drops rows of steps that a resumed run will do again, so that each step has one row."""
    rows = read_rows(path)
    kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= step]
    if len(kept) != len(rows):
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def progress_bar(
    description: str, total: int, done: int = 0, *, shown: bool = True
) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
    """A bar with rate and remaining time; silent where the output is no terminal."""
    console = rich.progress.Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )
    return bar, bar.add_task(description, total=total, completed=done, note="")
