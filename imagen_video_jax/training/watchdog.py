"""The process beside a training process: it ends what hangs, and starts again what was cut off.

The command line process itself is the watchdog; it imports nothing heavy and starts the real work as a child, which
tells through a pipe what it does now and how long that may take. When the time is over, the child is asked for the
stacks of all its threads (on stderr; faulthandler needs no interpreter lock), then killed, and the exit code is 124.
Several things can be under way at once (training, and a save in the background): each is a track of its own.

Signals that end (SIGTERM, SIGINT, SIGHUP) are passed on. When the watchdog dies the kernel kills the child (on Linux),
and what the child started ends with the child.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import math
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from imagen_video_jax.errors import FAILED, STOPPED_AFTER_SAVING, WATCHDOG

_PIPE = "IMAGEN_VIDEO_WATCHDOG"  # number of the pipe's end : when it was opened, in the environment of the child
_FIRST_SECONDS = 900.0  # until the child says something
_STACK_SECONDS = 2.0
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Deadlines:
    """Seconds that a phase of training may last until the run is ended with exit code 124; 0: any time.

    Attributes: compile (of one program), restore, data (until the next batch is there), step, look (held-out loss,
    samples), save (in the background too).
    """

    compile: float = 7200.0
    restore: float = 3600.0
    data: float = 1800.0
    step: float = 900.0
    look: float = 7200.0
    save: float = 3600.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"deadlines.{field.name} must be at least 0, got {getattr(self, field.name)}")


NO_DEADLINES = Deadlines(**{field.name: 0.0 for field in dataclasses.fields(Deadlines)})

# The child's side.

_pipe: int | None = None
began: float | None = None  # when the watchdog started this process; in seconds of time.monotonic


def connect() -> bool:
    """Called first by a child: from here on the watchdog hears it, and can have its stacks. False if there is none."""
    global _pipe, began
    text = os.environ.pop(_PIPE, None)  # not for the processes that this one starts
    if text is None:
        return False
    number, _, when = text.partition(":")
    _pipe, began = int(number), float(when)
    os.set_inheritable(_pipe, False)
    os.set_blocking(_pipe, False)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    try:
        os.write(_pipe, b"train start 0\n")
    except OSError:
        os._exit(FAILED)  # it died before the kernel was asked
    # Until a command takes the signal over, there is nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED_AFTER_SAVING))
    return True


def tell(phase: str, seconds: float = 0.0, *, track: str = "train") -> None:
    """Says what `track` does from now on, and for how long at most (0: any time). Costs one write."""
    if _pipe is not None:
        # Without a watchdog the kernel is about to end this process.
        with contextlib.suppress(OSError):
            os.write(_pipe, f"{track} {phase} {seconds:.3f}\n".encode())


# The watchdog's side.


def supervise(command: Sequence[str], *, restarts: int = 0) -> int:
    """Runs `command` under watch; returns its exit code (124 when it was ended for taking too long).

    It is started again, at most `restarts` times, with growing pauses, when it stopped after saving (75), hung (124),
    failed (1) or was killed by a signal; not when the request was wrong, numerics diverged, or this process was asked
    to end.
    """
    asked: list[int] = []
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    # The handler only notes the signal; the byte that Python writes wakes whoever waits, at whatever moment it came.
    previous_waker = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in _ASKED}
    try:
        for attempt in range(restarts + 1):
            code = _run(command, asked, wake)
            if code == 128 + signal.SIGTERM and asked == [signal.SIGTERM]:
                code = STOPPED_AFTER_SAVING  # it came before anything had begun
            again = code in (FAILED, STOPPED_AFTER_SAVING, WATCHDOG) or code > 128
            if not again or asked or attempt == restarts:
                break
            print(f"ended with exit code {code}; restart {attempt + 1} of {restarts}", file=sys.stderr, flush=True)
            until = time.monotonic() + min(2.0**attempt, 60.0)
            while time.monotonic() < until and not asked:
                time.sleep(0.1)
            if asked:
                break
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_waker)
        os.close(wake)
        os.close(waker)


def _run(command: Sequence[str], asked: list[int], wake: int) -> int:
    """One run of the command to its end; what is (or was) `asked` is passed on to it, once each."""
    reader, writer = os.pipe()
    packages = [str(pathlib.Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        _PIPE: f"{writer}:{time.monotonic()}",
        "PYTHONPATH": os.pathsep.join(filter(None, packages)),
    }
    process = subprocess.Popen(command, pass_fds=[writer], env=environment, start_new_session=True)
    os.close(writer)
    try:
        late = _listen(reader, process, asked, wake)
        if late:
            _end_with_stacks(process, late)
            return WATCHDOG
        code = process.wait()
        return code if code >= 0 else 128 - code
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it left running


def _listen(reader: int, process: subprocess.Popen, asked: list[int], wake: int) -> str:
    """Passes signals on and reads what the child tells until it ends (returns "") or is late (returns what with)."""
    passed = 0
    due = {"train": (time.monotonic() + _FIRST_SECONDS, f"starting for {_FIRST_SECONDS:g} s")}
    rest = b""
    while True:
        while passed < len(asked):
            process.send_signal(asked[passed])
            passed += 1
        first = min(due.values(), default=(math.inf, ""))
        left = first[0] - time.monotonic()
        if left <= 0:
            return first[1]
        ready, _, _ = select.select([reader, wake], [], [], None if left == math.inf else left)
        if wake in ready:
            os.read(wake, 1 << 12)
        if reader not in ready:
            continue
        data = os.read(reader, 1 << 16)
        if not data:
            return ""
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            track, phase, seconds = line.decode().split()
            due.pop(track, None)
            if float(seconds):
                due[track] = (time.monotonic() + float(seconds), f"in phase {phase!r} for {float(seconds):g} s")


def _end_with_stacks(process: subprocess.Popen, late: str) -> None:
    host = os.uname().nodename
    print(f"watchdog: process {process.pid} on {host} is {late}; its stacks:", file=sys.stderr, flush=True)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)  # one that was stopped could not answer
    try:
        process.wait(_STACK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
