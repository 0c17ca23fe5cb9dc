"""Where a run's time went: every moment, over all restarts in a workdir, belongs to exactly one phase.

    start     importing, making and opening data, embedding captions
    compile   programs
    restore   reading and verifying a checkpoint
    data      waiting for the next batch
    step      training steps that count
    look      held-out loss and samples
    save      what saving keeps training from; the rest of it happens in the background
    lost      work that was done again, because nothing after the last checkpoint is kept
    down      between a run that ended and the next one

Each run is a row of DIR/goodput.json, written whenever a step is committed and every few seconds; a killed run counts
until then.
"""

import contextlib
import itertools
import math
import pathlib
import time
from collections.abc import Iterator

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.training import watchdog
from imagen_video_jax.training.watchdog import NO_DEADLINES, Deadlines

PHASES = ("start", "compile", "restore", "data", "step", "look", "save", "lost", "down")
_NOTE_SECONDS = 10.0
_KEPT_SAVES = 8


class Ledger:
    """The account of one run, beside those of the earlier ones; `enter` also tells the watchdog.

    Args: path is None for a process that keeps no account on disk.
    """

    def __init__(self, path: pathlib.Path | None, *, start_step: int, deadlines: Deadlines = NO_DEADLINES):
        self._path, self._deadlines = path, deadlines
        now, wall = time.monotonic(), time.time()
        self._since = watchdog.began if watchdog.began is not None else now
        watchdog.began = None  # another run in this process begins now
        self._earlier = _closed(_read_runs(path), start_step) if path else []
        self._run = {"began": wall - (now - self._since), "ended": wall, "seconds": {}, "saves": {}}
        self._phase, self._noted = "start", 0.0
        self.starting_at(start_step)

    def starting_at(self, step: int) -> None:
        """What was done up to `step` is safe: a checkpoint holds it."""
        self._run["saves"] = {str(step): dict(self._run["seconds"])}

    def enter(self, phase: str) -> None:
        """The phase before ends, this one begins and may last as long as its deadline."""
        self._settle()
        self._phase = phase
        watchdog.tell(phase, getattr(self._deadlines, phase, 0.0))
        if self._since - self._noted > _NOTE_SECONDS:
            self.note()

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def saving(self, step: int) -> dict[str, float]:
        """What to hand to `saved` when the step that is saved now was committed."""
        self._settle()
        return dict(self._run["seconds"])

    def saved(self, step: int, seconds: dict[str, float]) -> None:
        self._run["saves"][str(step)] = seconds
        while len(self._run["saves"]) > _KEPT_SAVES:
            del self._run["saves"][next(iter(self._run["saves"]))]
        self.note()

    def went_back(self, step: int) -> None:
        """Everything since that step was saved is lost."""
        self._settle()
        self._run["seconds"] = _lose(self._run, step)

    def note(self) -> None:
        """Writes the account; a disk that is full costs only the account."""
        self._settle()
        self._noted = self._since
        self._run["ended"] = self._run["began"] + sum(self._run["seconds"].values())
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            storage.write_json(self._path, {"runs": [*self._earlier, self._run]})

    def working(self) -> tuple[float, float]:
        """Seconds of this run in the phases data and step until now."""
        self._settle()
        return tuple(self._run["seconds"].get(phase, 0.0) for phase in ("data", "step"))

    def totals(self) -> dict[str, float]:
        """Seconds in each phase, from the beginning of the first run until now."""
        self._settle()
        total = dict.fromkeys(PHASES, 0.0)
        runs = [*self._earlier, self._run]
        for run in runs:
            for phase, seconds in run["seconds"].items():
                total[phase] += seconds
        for run, following in itertools.pairwise(runs):
            total["down"] += max(following["began"] - run["began"] - sum(run["seconds"].values()), 0.0)
        return total

    def table(self) -> str:
        """The account as text, ending with the share of the time that went into steps that count."""
        total = self.totals()
        whole = max(sum(total.values()), 1e-9)
        rows = [f"  {phase:8}{seconds:10.1f} s {seconds / whole:7.1%}" for phase, seconds in total.items() if seconds]
        return "\n".join(
            ["where the time went:", *rows, f"  {'all':8}{whole:10.1f} s, goodput {total['step'] / whole:.1%}"]
        )

    def _settle(self) -> None:
        now, seconds = time.monotonic(), self._run["seconds"]
        seconds[self._phase] = seconds.get(self._phase, 0.0) + now - self._since
        self._since = now


def _read_runs(path: pathlib.Path) -> list[dict]:
    """The earlier runs; none where there is no account yet, or a damaged one: an account is not worth a run."""
    try:
        runs = storage.read_json(path)["runs"]
        for run in runs:
            for seconds in (run["seconds"], *run["saves"].values(), {"start": run["began"]}):
                if not seconds.keys() <= set(PHASES) or not all(math.isfinite(value) for value in seconds.values()):
                    return []
        return runs
    except (UserError, TypeError, KeyError, AttributeError, OverflowError):
        return []


def _closed(runs: list[dict], start_step: int) -> list[dict]:
    """The earlier runs, where the last one's work after the step that this run starts from is lost."""
    if runs:
        runs[-1]["seconds"] = _lose(runs[-1], start_step)
        runs[-1]["saves"] = {}
    return runs


def _lose(run: dict, step: int) -> dict[str, float]:
    safe = run["saves"].get(str(step), {})
    lost = sum(run["seconds"].values()) - sum(safe.values())
    return safe | {"lost": safe.get("lost", 0.0) + lost}
