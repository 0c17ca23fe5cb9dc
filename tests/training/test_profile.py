"""Which steps the profiler traces."""

import pathlib
from types import SimpleNamespace

import jax
import pytest

from imagen_video_jax.training.loop import _Run


@pytest.mark.parametrize(
    ("steps", "start", "traced", "begins", "ends"),
    [
        (100, 0, 5, 10, 15),
        (100, 40, 5, 50, 55),  # of a run that goes on
        (12, 0, 2, 10, 12),
        (6, 0, 2, 4, 6),  # too short for ten steps before
        (3, 0, 9, 1, None),  # until the run ends it
        (100, 0, 0, None, None),
    ],
)
def test_after_the_tenth_step_or_at_the_end_of_a_shorter_run(monkeypatch, steps, start, traced, begins, ends):
    run, seen = object.__new__(_Run), {}
    run.config = SimpleNamespace(steps=steps, profile_steps=traced)
    run.start_step, run.workdir = start, pathlib.Path("workdir")
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.update(begins=step))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.update(ends=step))
    for step in range(start + 1, steps + 1):
        run._profile(step)
    assert (seen.get("begins"), seen.get("ends")) == (begins, ends)
