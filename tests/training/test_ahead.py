"""The next batch made in a thread: in order, one ahead, errors in their turn, an end that waits for nobody long."""

import itertools
import threading
import time

import pytest

from imagen_video_jax.errors import UserError
from imagen_video_jax.training import ahead as module
from imagen_video_jax.training.ahead import Ahead


def test_everything_comes_once_in_order_and_one_is_made_before_it_is_asked_for():
    made, second = [], threading.Event()
    numbers = itertools.count()

    def make():
        made.append(next(numbers))
        if len(made) == 2:
            second.set()
        return made[-1]

    with Ahead(make) as ahead:
        assert next(ahead) == 0
        assert second.wait(10)
        time.sleep(0.05)  # in which a third would be made, if it were
        assert made == [0, 1]
        assert [next(ahead) for _ in range(20)] == list(range(1, 21))


def test_an_error_comes_after_what_was_made_before_it():
    results = [2, 1]

    def make():
        if not results:
            raise UserError("too much bad data", 4)
        return results.pop()

    with Ahead(make) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(UserError, match="too much bad data") as found:
            next(ahead)
    assert found.value.exit_code == 4


def test_a_reader_that_hangs_does_not_keep_the_run_from_ending(monkeypatch):
    monkeypatch.setattr(module, "_LEAVE_AFTER", 0.05)
    free = threading.Event()
    with Ahead(free.wait) as ahead:
        pass
    assert ahead._thread.is_alive()
    free.set()
    ahead._thread.join(10)
    assert not ahead._thread.is_alive()
