"""A save that is killed, or whose disk fails, at any moment: the newest committed step loads, and no other is seen."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

from imagen_video_jax import steps
from tests.faults.light_writer import is_whole

WRITER = pathlib.Path(__file__).parent / "light_writer.py"
ROOT = WRITER.parent.parent.parent


def command(folder, saves: int) -> list[str]:
    return [sys.executable, "-S", str(WRITER), str(folder), str(saves)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def check(folder: pathlib.Path, said: list[str]) -> None:
    """The newest good step is at least the last one that was said to be committed, and holds what it should."""
    committed = [int(line.split()[1]) for line in said if line.startswith("committed")]
    newest = steps.newest(folder / "checkpoints")
    assert newest is not None or not committed
    if newest is not None:
        assert int(newest.name) >= max(committed, default=0)
    for step in steps.committed_steps(folder / "checkpoints"):
        assert is_whole(steps.verify(folder / "checkpoints" / str(step)))


def test_sigkill_at_random_moments_of_saving_loses_nothing_committed(tmp_path, count, capsys):
    rng, began = random.Random(0), time.monotonic()
    while_saving, said = 0, []
    for number in range(count("kills")):
        with subprocess.Popen(command(tmp_path, 10_000), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            said.append(process.stdout.readline().strip())
            assert said[-1].startswith("start")
            if number:  # what the one before had committed is where this one begins
                assert int(said[-1].split()[1]) > max(
                    (int(line.split()[1]) for line in said if line.startswith("committed")), default=0
                )
            time.sleep(rng.uniform(0.0, 0.05))
            process.kill()
            said += process.stdout.read().split("\n")
        while_saving += any((tmp_path / "checkpoints").glob(".*.tmp-*"))
        check(tmp_path, said)
    assert while_saving, "no kill came during a save"
    with capsys.disabled():
        print(f"\nSIGKILL x {count('kills')}, {while_saving} inside a save: 0 lost, {time.monotonic() - began:.0f} s")


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace to fail single system calls (apt install strace)")
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_every_rename_of_a_save_may_fail(tmp_path, count, fault):
    """The renames of the third save: its manifest, the commit, and what is removed afterwards."""
    for number in range(1, count("renames") + 1):
        folder = tmp_path / str(number)
        # Two saves of two renames each come before; with only two kept, the third also removes one.
        injected = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat,renameat2"]
        injected += ["-e", f"inject=rename,renameat,renameat2:{fault}:when={4 + number}"]
        result = subprocess.run(
            [*injected, *command(folder, 4), "2"], capture_output=True, text=True, env=ENVIRONMENT, check=False
        )
        said = result.stdout.split("\n")
        if "ptrace" in result.stderr:
            pytest.skip(f"strace may not trace here: {result.stderr.strip()[:100]}")
        check(folder, said)
        assert steps.newest(folder / "checkpoints") is not None
        if "SIGKILL" in fault:
            assert result.returncode != 0
        else:
            assert result.returncode == 0, result.stderr
            expected = "Input/output error" if "EIO" in fault else "No space left on device"
            failed = [line for line in said if line.startswith("failed")]
            # What cannot be removed (the third rename of a save) fails no save.
            step = 3 + number // 4
            assert failed == ([f"failed {step} {expected}"] if number % 3 else [])
            assert not list((folder / "checkpoints").glob(".*.tmp-*")), "a failed save left a part behind"
        # And the next process goes on.
        again = subprocess.run(command(folder, 1), capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert "committed" in again.stdout, again.stderr
        check(folder, said + again.stdout.split("\n"))


def test_every_file_and_folder_is_synced_before_the_rename_that_commits(tmp_path):
    if not shutil.which("strace"):
        pytest.skip("needs strace to see the system calls (apt install strace)")
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fsync,rename,renameat,renameat2"]
    result = subprocess.run(
        [*watch, *command(tmp_path / "out", 1)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if "ptrace" in result.stderr:
        pytest.skip(f"strace may not trace here: {result.stderr.strip()[:100]}")
    calls = trace.read_text().splitlines()
    commit = next(i for i, line in enumerate(calls) if "rename" in line and '/checkpoints/1"' in line)
    before = "\n".join(calls[:commit])
    for name in ("params/a>", "params/sub/b>", "meta.json>", "manifest.json>", "params>", "params/sub>"):
        assert any("fsync" in line and name in line for line in calls[:commit]), f"{name} in {before}"
    assert "fsync" in calls[commit + 1]
    assert "/checkpoints>" in calls[commit + 1]
