"""The account of time: it sums to the wall clock, over kills and roll-backs, and survives damage."""

import json
import time

import pytest

from imagen_video_jax.training import goodput
from imagen_video_jax.training.goodput import Ledger


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to: (monotonic, wall) move together."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 5e8 + now[0])

    def passing(seconds):
        now[0] += seconds

    return passing


def test_three_kills_and_the_sum_is_the_wall_clock(tmp_path, clock):
    path, began = tmp_path / "goodput.json", time.monotonic()
    for attempt in range(4):  # each saves at 10 more steps, works on, and is killed; the last one ends well
        ledger = Ledger(path, start_step=10 * attempt)
        clock(2)
        ledger.enter("step")
        clock(10)
        safe = ledger.saving(10 * attempt + 10)
        clock(1)
        ledger.saved(10 * attempt + 10, safe)
        if attempt < 3:
            clock(4)
            ledger.note()  # what it wrote last
            clock(3)  # killed, and started again
    total = ledger.totals()
    assert total["start"] == pytest.approx(8)
    assert total["step"] == pytest.approx(41)
    # Of each killed run what came after the state was copied is lost; what came after its last note is "down".
    assert total["lost"] == pytest.approx(15)
    assert total["down"] == pytest.approx(9)
    assert sum(total.values()) == pytest.approx(time.monotonic() - began)
    assert "goodput 56.2%" in ledger.table()


def test_phases_nest_and_going_back_loses_what_was_done_since(tmp_path, clock):
    ledger = Ledger(tmp_path / "goodput.json", start_step=0)
    ledger.enter("step")
    clock(5)
    with ledger.during("save"):
        clock(1)
        ledger.saved(3, ledger.saving(3))
    clock(7)
    with ledger.during("look"):
        clock(2)
    ledger.went_back(3)
    clock(1)
    assert ledger.totals() == pytest.approx(dict.fromkeys(goodput.PHASES, 0.0) | {"step": 6, "save": 1, "lost": 9})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": [1]}', '{"runs": [{"began": 1}]}'])
def test_a_damaged_account_is_begun_anew(tmp_path, content):
    (tmp_path / "goodput.json").write_text(content)
    ledger = Ledger(tmp_path / "goodput.json", start_step=7)
    ledger.note()
    assert len(json.loads((tmp_path / "goodput.json").read_text())["runs"]) == 1
