"""The two sides of the accelerator benchmark: equal networks, a step that runs, what is printed."""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import accelerator
from experiments.benchmarks.sides import common, jax_side
from imagen_video_jax.functional import parameter_count
from imagen_video_jax.stages.stage import Stage


def workload(network: str, **changes) -> common.Workload:
    asked = {"blocks": 1, "attention": "xla", "remat": False, "state_dtype": None, "batch": 1}
    return common.workload(argparse.Namespace(network=network, **asked | changes))


def tiny(blocks: int) -> common.Workload:
    """One level on two frames: with a middle alone (no blocks before and after) its step compiles in seconds."""
    work = workload("16", blocks=blocks)
    network = dataclasses.replace(work.stage.network, text_width=8, embedding_width=16, dtype="float32", remat=False)
    stage = dataclasses.replace(work.stage, frames=2, height=2, width=4, text_length=4, network=network)
    return dataclasses.replace(work, stage=stage)


def test_the_step_of_the_jax_side_keeps_its_state_in_place_and_says_what_it_took():
    row = common.timed(jax_side.build(tiny(blocks=0)), seconds=0.01)
    assert row["ms_fastest"] <= row["ms_median"]
    assert row["clips_per_second"] == pytest.approx(1e3 / row["ms_back_to_back"], rel=0.02, abs=0.02)
    assert row["parameters"] > 0
    assert row["skipped"] == 0
    assert np.isfinite(row["loss"])
    assert json.loads(json.dumps(row)) == row


def test_a_random_state_is_laid_out_as_training_lays_it_out():
    work = tiny(blocks=0)
    stage = Stage(work.stage)
    state = jax_side.random_state(stage, work)
    assert jax.tree.map(lambda leaf: leaf.shape, state.params) == jax.tree.map(
        lambda a: a.shape, stage.network.abstract
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optimizer[1])} == {jnp.dtype("int32"), jnp.dtype("bfloat16")}


def test_the_torch_network_has_the_parameters_and_the_shapes_of_this_one():
    torch = pytest.importorskip("torch", reason="needs torch")
    from experiments.benchmarks.sides import torch_side
    from experiments.benchmarks.sides.torch_unet import VideoUNet

    work = workload("small")
    with torch.device("meta"):
        theirs = VideoUNet(work.stage.network)
    ours = parameter_count(Stage(work.stage).network.abstract)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == ours
    for products in (False, True):
        row = common.timed(torch_side.build(tiny(blocks=1), 1e-6, products=products, compiled=False), seconds=0.01)
        assert np.isfinite(row["loss"])


def test_too_little_memory_ends_with_one_line_and_another_error_with_its_own(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accelerator", "--side", "jax", "--network", "16"])

    def fail(message):
        def build(*_):
            raise RuntimeError(message)

        monkeypatch.setattr(accelerator, "build", build)
        return accelerator.main()

    assert fail("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.\nmore") == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError, match="another"):
        fail("another")


def test_the_ratio_is_of_rounds_that_took_turns(capsys):
    rows = [({"side": "jax", "ms_back_to_back": 2.0}, {"side": "torch", "ms_back_to_back": ms}) for ms in (2, 3, 5)]
    assert accelerator.report(rows) == 0
    assert "jax is 1.50 times as fast as torch (rounds 1.00, 1.50, 2.50)" in capsys.readouterr().out
