"""Numbers of speed mean what they say: of a clock that is told to move, and of a real run."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, partitioning
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.training.goodput import Ledger
from imagen_video_jax.training.throughput import Throughput
from tests.stages.stage_kinds import NAMES, random_batch, smallest

CONFIG = smallest(NAMES[0])
BATCH = {"video": random_batch(CONFIG, size=8), "image": random_batch(CONFIG, size=4, images=True)}
PRODUCT = jax.jit(lambda x: x @ x)


def product():
    """A program of 2 * 64^3 FLOPs."""
    return PRODUCT.trace(jax.ShapeDtypeStruct((64, 64), jnp.float32))


@pytest.fixture
def passing(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passing(seconds):
        now[0] += seconds

    return passing


def run(passing, throughput, ledger, *, steps, data=0.1, host=0.2, device=0.7, compiling=0.0):
    """Steps as the loop makes them: each ends when the next one is in flight."""
    for number in range(steps + 1):
        ledger.enter("data")
        passing(data)
        if compiling and not number:
            ledger.enter("compile")
            passing(compiling)
        ledger.enter("step")
        throughput.begin(BATCH, product)
        passing(host)
        if number:
            assert throughput.end(lambda: passing(device) or 3) == 3


def test_a_step_is_split_into_waiting_for_data_for_the_device_and_the_host(passing):
    ledger = Ledger(None, start_step=0)
    throughput = Throughput(ledger, partitioning.make_mesh(MeshShape(), jax.devices()[:1]))
    ledger.enter("data")
    assert throughput.row() == {}
    run(passing, throughput, ledger, steps=10)
    with ledger.during("look"):
        passing(100)
    throughput.row()
    run(passing, throughput, ledger, steps=10, data=0.3)
    row = throughput.row()
    assert row["data_seconds"] == pytest.approx(0.3, rel=0.15)
    assert row["device_seconds"] == pytest.approx(0.7, rel=0.15)
    assert row["step_seconds"] == pytest.approx(1.2, rel=0.15)
    assert sum(row[f"{name}_seconds"] for name in ("data", "device", "host")) == pytest.approx(row["step_seconds"])
    assert row["examples_per_second"] == pytest.approx(12 / row["step_seconds"])
    assert row["frames_per_second"] == pytest.approx((8 * CONFIG.frames + 4) / row["step_seconds"])
    assert row["flops_per_second"] == pytest.approx(2 * 64**3 / row["step_seconds"])
    assert "mfu" not in row
    assert "TFLOP/s" in throughput.text()
    assert "MFU" not in throughput.text()


def test_mfu_is_of_the_peak_of_all_chips_and_compiling_does_not_count(passing, monkeypatch):
    monkeypatch.setattr(chips, "chip_of", lambda device: chips.CHIPS["h200"])
    ledger = Ledger(None, start_step=0)
    throughput = Throughput(ledger, partitioning.make_mesh(MeshShape(data=4), jax.devices()[:4]))
    assert throughput.row() == {}
    run(passing, throughput, ledger, steps=5, compiling=100.0)
    row = throughput.row()
    assert row["step_seconds"] < 2
    assert row["mfu"] == pytest.approx(row["flops_per_second"] / (4 * 989e12))
    assert "of 4 x cpu in bfloat16" in throughput.text()


def test_going_back_forgets_what_is_in_flight(passing):
    ledger = Ledger(None, start_step=0)
    throughput = Throughput(ledger, partitioning.make_mesh(MeshShape(), jax.devices()[:1]))
    run(passing, throughput, ledger, steps=3)
    throughput.row()
    ledger.went_back(0)
    throughput.restart()
    run(passing, throughput, ledger, steps=3)
    row = throughput.row()
    assert row["step_seconds"] > 0
    assert np.isfinite(list(row.values())).all()
