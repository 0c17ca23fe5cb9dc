"""Real training that is killed, stopped, hung or broken at any moment ends as if nothing had been: the same bytes.

Needs many starts of jax: `make faults` runs all of it, `make slow` a little of each, `make test` nothing.
"""

import os
import random
import signal
import time

import pytest

from tests.faults.real_run import STAGES, Job, child_of, kill, write_data

pytestmark = pytest.mark.slow  # every start imports and traces jax

# One kind of clip: one program to trace at every start.
IMAGES = {"batch_size": 0, "checkpoint_every": 2, "steps": 100_000}
STEPS = 30
KILL_AT = (2, 11, 23)  # before the first save, and between others


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    write_data(root)
    return root


@pytest.fixture
def say(capsys):
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    return say


def finish_and_compare(job: Job, more: int) -> None:
    """Lets the run go on for `more` steps; it must end as one that was never disturbed."""
    end = job.newest() + more
    job.fields["steps"] = end
    ended = job.run()
    undisturbed = Job(job.workdir.with_name(job.workdir.name + "_whole"), hosts=job.hosts, fields={**job.fields})
    assert ended == undisturbed.run()
    assert ended["step"] == end


def test_sigkill_at_random_moments_of_training(root, count, say):
    job, rng, began = Job(root / "kills", fields={**IMAGES, "checkpoint_every": 1}), random.Random(0), time.monotonic()
    while_saving, start_seconds = 0, 0.0
    for number in range(count("train-kills")):
        newest, runs = job.newest(), len(job.started_at())
        processes = job.start()
        if number % 4 == 3:  # also while it starts
            time.sleep(rng.uniform(0, start_seconds))
        else:
            first, started = newest + rng.randint(2, 5), time.monotonic()
            job.until(lambda first=first: job.last_step() >= first, processes)
            start_seconds = time.monotonic() - started
            assert job.started_at()[runs:] == [newest], "it did not load the newest committed step"
            time.sleep(rng.uniform(0, 0.3))
        kill(processes)
        job.wait_until_free()
        while_saving += any((job.workdir / "checkpoints").glob(".*.tmp-*"))
        assert job.newest() >= newest
    killed = time.monotonic() - began
    finish_and_compare(job, more=3)
    say(
        f"SIGKILL of training x {count('train-kills')}, {while_saving} inside a save: 0 lost, the same bytes after "
        f"{job.last_step()} steps, {killed:.0f} s + {time.monotonic() - began - killed:.0f} s"
    )


def test_sigterm_at_random_moments_stops_two_hosts_at_the_same_saved_step(root, count, say):
    job, rng, began = Job(root / "stops", hosts=2, fields={**IMAGES}), random.Random(0), time.monotonic()
    start_seconds = 0.0
    for number in range(count("train-stops")):
        newest, runs = job.newest(), len(job.started_at())
        processes = job.start()
        if number % 4 == 3:  # while they start: all hosts of a slice are told
            time.sleep(rng.uniform(0, start_seconds))
            told = processes
        else:
            first, started = newest + rng.randint(1, 4), time.monotonic()
            job.until(lambda first=first: job.last_step() >= first, processes)
            start_seconds = time.monotonic() - started
            time.sleep(rng.uniform(0, 0.3))
            told = rng.sample(processes, rng.choice((1, 1, 2)))
        for process in told:
            process.send_signal(signal.SIGTERM)
        assert job.ended(processes) == [75, 75], job.said()
        assert all(start == newest for start in job.started_at()[runs:])
        assert job.newest() >= newest
        if job.started_at()[runs:]:
            assert job.last_step() == job.newest(), "a step that was done is not saved"
        assert not list((job.workdir / "checkpoints").glob(".*.tmp-*"))
    stopped = time.monotonic() - began
    finish_and_compare(job, more=3)
    say(
        f"SIGTERM of two hosts x {count('train-stops')}: all saved, exit 75, 0 steps lost, the same bytes after "
        f"{job.last_step()} steps, {stopped:.0f} s + {time.monotonic() - began - stopped:.0f} s"
    )


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_n_steps_killed_and_resumed_equal_2n_steps(root, count, say, stage, hosts):
    began, name, points = time.monotonic(), f"{stage}-{hosts}", KILL_AT[: count("kill-points")]
    whole = Job(root / name, stage, hosts, {"steps": STEPS}).run()
    assert whole["step"] == STEPS
    for kill_at in points:
        job = Job(root / f"{name}-{kill_at}", stage, hosts, {"steps": STEPS})
        processes = job.start()
        job.until(lambda job=job, kill_at=kill_at: job.last_step() >= kill_at, processes)
        kill(processes)
        job.wait_until_free()
        reached = job.last_step()
        assert reached < STEPS, "it was killed too late"
        assert job.run() == whole
        assert job.started_at()[1] < reached + 1
    say(f"{stage} on {hosts}: killed after {points} of {STEPS} steps, {len(whole)} hashes equal, "
        f"{time.monotonic() - began:.0f} s")  # fmt: skip


DEADLINE = 30.0  # seconds for a step

# An experiment file whose second process goes wrong once, at its fifth batch.
_BROKEN = """
import os, pathlib, time
from experiments.{stage} import get_config
from imagen_video_jax import partitioning

put, seen = partitioning.put_batch, []

def put_and_fail(mesh, batch):
    seen.append(1)
    if len(seen) == 5 and os.environ.get("JAX_PROCESS_ID") == "1" and not pathlib.Path({marker!r}).exists():
        pathlib.Path({marker!r}).touch()
        {fault}
    return put(mesh, batch)

partitioning.put_batch = put_and_fail
"""
FAULTS = {
    "stopped": "os.kill(os.getpid(), 19)",
    "killed": "os.kill(os.getpid(), 9)",
    "stuck in Python": "time.sleep(10**6)",
    "raising": "raise RuntimeError('broken on purpose')",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_host_that_fails_ends_all_in_time_and_restarts_end_with_the_same_bytes(root, say, fault):
    name, began = fault.replace(" ", "_"), time.monotonic()
    fields = {**IMAGES, "steps": 12, "deadlines.step": DEADLINE, "deadlines.data": DEADLINE}
    whole = root / "hosts_whole"
    undisturbed = Job(whole, hosts=2, fields=fields)
    expected = undisturbed.left() if whole.exists() else undisturbed.run()
    marker, config = root / f"{name}.marker", root / "broken" / f"{name}.py"
    config.parent.mkdir(exist_ok=True)
    config.write_text(_BROKEN.format(stage=STAGES["base"], marker=str(marker), fault=FAULTS[fault]))
    job = Job(root / name, hosts=2, fields=fields, arguments=("--restarts", "9"), config=str(config))
    processes = job.start()
    children = [None, None]

    def both_seen():
        for number, process in enumerate(processes):
            try:
                children[number] = child_of(process)
            except (OSError, IndexError):
                return False
        return True

    job.until(both_seen, processes)
    job.until(marker.exists, processes)
    failed = time.monotonic() - (time.time() - marker.stat().st_mtime)
    job.until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children), processes)
    seconds = time.monotonic() - failed
    assert job.ended(processes) == [0, 0], job.said()
    assert job.left() == expected
    say(f"host {fault}: both ended after {seconds:.1f} s (deadline {DEADLINE:g} s), restarted, the same bytes, "
        f"{time.monotonic() - began:.0f} s")  # fmt: skip
    assert seconds < DEADLINE + 5
