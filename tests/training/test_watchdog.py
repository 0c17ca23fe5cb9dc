"""The watchdog: what hangs is ended with its stacks, what was cut off is started again, nothing outlives it."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from imagen_video_jax.training import watchdog

HEAD = "import os, signal, sys, time\nfrom imagen_video_jax.training import watchdog\nwatchdog.connect()\n"


def run(code: str, restarts: int = 0) -> int:
    return watchdog.supervise([sys.executable, "-c", HEAD + code], restarts=restarts)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        # Holds the interpreter lock: nothing inside this process could end it.
        "import re; re.match('(a+)+b', 'a' * 64)",
    ],
)
def test_a_process_that_hangs_is_ended_with_its_stacks(hang, capfd):
    began = time.monotonic()
    assert run(f"def stuck_here():\n    {hang}\nwatchdog.tell('step', 0.5)\nstuck_here()") == 124
    assert time.monotonic() - began < 0.5 + 5 + 5  # the deadline, what is promised beyond it, starting Python
    text = capfd.readouterr().err
    assert "in phase 'step' for 0.5 s" in text
    assert "stuck_here" in text


def test_a_phase_that_ends_in_time_and_one_without_a_deadline_are_left_alone():
    code = "watchdog.tell('a', 1)\nwatchdog.tell('b', 0)\nwatchdog.tell('save', 0.2, track='s')\n"
    assert run(code + "watchdog.tell('idle', 0, track='s')\ntime.sleep(1.2)\nsys.exit(3)") == 3


def test_it_starts_again_what_was_cut_off_but_nothing_else(tmp_path, capfd):
    count = tmp_path / "count"
    once = f"open({str(count)!r}, 'a').write('x')\nn = os.path.getsize({str(count)!r})\n"
    assert run(once + "sys.exit(75) if n == 1 else os.kill(os.getpid(), 9) if n == 2 else sys.exit(0)", 3) == 0
    assert count.read_text() == "xxx"
    assert "ended with exit code 137; restart 2 of 3" in capfd.readouterr().err
    for code in (2, 3, 4, 5):
        count.unlink()
        assert run(once + f"sys.exit({code})", 3) == code
        assert count.read_text() == "x"
    count.unlink()
    assert run(once + "sys.exit(1)", 1) == 1
    assert count.read_text() == "xx"


@contextlib.contextmanager
def started(code: str):
    """(the watchdog in a process of its own, the process number of its child), when the child is ready."""
    command = [sys.executable, "-c", HEAD + "print(os.getpid(), flush=True)\n" + code]
    outer = f"import sys\nfrom imagen_video_jax.training import watchdog\nsys.exit(watchdog.supervise({command!r}))"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_sigterm_is_passed_on_and_ends_without_a_restart():
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint('ready', flush=True)\ntime.sleep(60)"
    with started(code) as (process, _):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75


def test_sigterm_before_anything_began_asks_to_run_again():
    with started("time.sleep(60)") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75


def test_sigterm_while_the_child_is_being_started_reaches_it(monkeypatch):
    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert run("time.sleep(60)") == 75


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal (Linux)")
def test_when_the_watchdog_is_killed_its_child_ends():
    with started("time.sleep(60)") as (process, child):
        process.kill()
        process.wait()
        until = time.monotonic() + 20
        while time.monotonic() < until and not has_ended(child):
            time.sleep(0.05)
        assert has_ended(child)


def has_ended(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
