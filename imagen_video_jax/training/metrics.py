"""Where numbers go: `metrics.jsonl` (one object a line), TensorBoard events, and the progress bar."""

import json
import pathlib
import time

import rich.progress
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends rows to DIR/metrics.jsonl and scalars to DIR/tensorboard; lines are flushed as they are written."""

    def __init__(self, workdir: pathlib.Path, *, start_step: int):
        self._path = workdir / "metrics.jsonl"
        _cut_rows_after(self._path, start_step)
        self._file = open(self._path, "a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), flush_secs=30)

    def write(self, step: int, values: dict, *, kind: str = "train") -> None:
        row = {"step": step, "kind": kind, "time": round(time.time(), 3)} | {k: float(v) for k, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", float(value), step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _cut_rows_after(path: pathlib.Path, step: int) -> None:
    """Drops rows of steps that a resumed run will do again, so that each step has one row."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) != len(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def progress_bar(description: str, total: int, done: int = 0) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
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
        disable=not console.is_terminal,
    )
    return bar, bar.add_task(description, total=total, completed=done, note="")
