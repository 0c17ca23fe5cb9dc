"""Saves in the background: they count when they are committed, and a failure is loud at once."""

import contextlib
import threading
import time

import pytest

from imagen_video_jax import checkpoint
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.training.saver import Saver


@pytest.fixture
def saves(monkeypatch):
    """What the following saves do, in order: "good", or an OSError raised by the part named with it."""
    plan = []

    def begin(folder, step, trees, meta, *, keep):
        part, error = plan.pop(0)
        if part == "begin":
            raise error

        def commit():
            if error:
                raise error
            return folder / str(step)

        return commit

    monkeypatch.setattr(checkpoint, "begin_save", begin)
    return plan


@pytest.fixture
def saver(tmp_path):
    reported = []
    saver = Saver(tmp_path, keep=3, committed=0, report=lambda step, values: reported.append(step))
    saver.reported = reported
    return saver


FULL = OSError(28, "No space left on device")


def finish(saver) -> None:
    """Until the thread is done; what `poll` will say of it is not heard yet."""
    if saver._thread.ident:
        saver._thread.join()


@pytest.mark.parametrize("part", ["begin", "commit"])
def test_a_failed_save_is_said_at_the_next_step_and_the_second_ends_the_run(saver, saves, capsys, part):
    saves += [("commit", None), (part, FULL), (part, FULL)]
    saver.start(1, {}, {})
    finish(saver)
    saver.poll()
    assert (saver.committed, saver.reported) == (1, [1])
    saver.start(2, {}, {})
    finish(saver)
    saver.poll()
    text = capsys.readouterr().err
    assert "warning: checkpoint" in text
    assert "2 could not be saved: [Errno 28] No space left on device" in text
    assert saver.committed == 1
    saver.start(3, {}, {})
    finish(saver)
    with pytest.raises(UserError, match="it is the second time, so training ends; run again to go on") as error:
        saver.poll()
    assert error.value.exit_code == FAILED
    assert saver.reported == [1]


def test_a_good_save_between_two_failures_forgives_and_the_last_save_is_tried_twice(saver, saves, capsys):
    saves += [("commit", FULL), ("commit", None), ("commit", FULL), ("commit", None)]
    for step in (1, 2):
        saver.start(step, {}, {})
        saver.wait()
    saver.save(3, {}, {})
    assert saver.reported == [2, 3]
    assert capsys.readouterr().err.count("could not be saved") == 2


def test_a_save_counts_only_when_it_is_committed(saver, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(checkpoint, "begin_save", lambda *_, **__: lambda: gate.wait(30))
    saver.start(5, {}, {})
    saver.poll()
    assert (saver.committed, saver.reported) == (0, [])
    gate.set()
    saver.wait()
    assert (saver.committed, saver.reported) == (5, [5])


def test_what_is_being_written_when_training_is_interrupted_is_written_whole(saver, monkeypatch):
    begun, written = threading.Event(), []

    def commit():
        begun.set()
        time.sleep(0.2)
        written.append(1)

    monkeypatch.setattr(checkpoint, "begin_save", lambda *_, **__: commit)

    def interrupted():
        with contextlib.closing(saver):
            saver.start(1, {}, {})
            begun.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written == [1]
