"""Saving while training goes on: the arrays are copied, then a thread writes, checks and commits them."""

import pathlib
import sys
import threading
import time
from collections.abc import Callable

from imagen_video_jax import checkpoint, distributed
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.training import watchdog

_FAILURES = 2  # one after the other, that end a run


class Saver:
    """Commits steps in order, one at a time, in the background.

    A step is reported, and counts, only when it is committed. A failed save is said by the next `poll`; the second in
    a row is a UserError (exit code 1).

    Attributes: committed: the newest step that was committed or restored.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int,
        committed: int,
        report: Callable[[int, dict], None],
        seconds: float = 0.0,
    ):
        self.committed = committed
        self._folder, self._keep, self._report = folder, keep, report
        self._deadline = seconds  # of the watchdog, for one save
        self._thread: threading.Thread | None = None
        self._failures = 0

    def start(self, step: int, trees: dict, meta: dict) -> None:
        """Returns as soon as the arrays may change; waits for the save before."""
        self.wait()
        began = time.monotonic()
        self._error, self._step = None, step
        watchdog.tell("save", self._deadline, track="save")
        try:
            commit = checkpoint.begin_save(self._folder, step, trees, meta, keep=self._keep)
        except OSError as error:
            self._error, self._thread = error, threading.Thread()
            watchdog.tell("idle", track="save")
            return
        self._blocked = time.monotonic() - began

        def work():
            try:
                commit()
            except Exception as error:  # reported by poll, in the thread that trains
                self._error = error
            self._seconds = time.monotonic() - began
            watchdog.tell("idle", track="save")

        self._thread = threading.Thread(target=work, name=f"save {step}")
        self._thread.start()

    def poll(self) -> None:
        """Called at every step: says how the save ended, if it has."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        if self._error is None:
            self._failures, self.committed = 0, max(self.committed, self._step)
            self._report(self._step, {"seconds": self._seconds, "blocked": self._blocked})
            return
        self._failures += 1
        reason = " ".join(str(self._error).split())[:300] or type(self._error).__name__
        text = f"checkpoint {self._folder / str(self._step)} could not be saved: {reason}"
        if self._failures >= _FAILURES:
            raise UserError(f"{text}; it is the second time, so training ends; run again to go on", FAILED)
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def wait(self) -> None:
        """Waits until nothing is being saved."""
        self.close()
        self.poll()

    def close(self) -> None:
        """Ends what is being written, whatever ends training: no thread can write while the interpreter goes."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def save(self, step: int, trees: dict, meta: dict) -> None:
        """`start` and `wait`; a failure is tried once more."""
        self.start(step, trees, meta)
        self.wait()
        if distributed.from_first(lambda: self.committed < step):
            self.start(step, trees, meta)
            self.wait()
