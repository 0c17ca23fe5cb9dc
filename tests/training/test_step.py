"""The train step: the same on one device and on eight, whole and in parts, and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import partitioning
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.optimizer import OptimizerConfig, direction, learning_rate
from imagen_video_jax.training.state import abstract_state, initial_state, shardings_of
from imagen_video_jax.training.step import StepConfig, gradients_of, make_train_step
from tests.stages.stage_kinds import NAMES, random_batch, smallest

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup=2)


def batches_of(config, *, size=8, seed=0):
    return {
        "video": random_batch(config, size=size, seed=seed),
        "image": random_batch(config, size=size, images=True, seed=seed + 1),
    }


def run(config, mesh_shape, devices, steps=3, kinds=("video", "image")):
    """Losses and the final state after some steps on a mesh."""
    stage, optimizer = Stage(config), direction(OPTIMIZER)
    mesh = partitioning.make_mesh(mesh_shape, jax.devices()[:devices])
    abstract = abstract_state(stage, optimizer, mesh)
    state = jax.jit(lambda key: initial_state(stage, optimizer, key), out_shardings=shardings_of(abstract))(
        jax.random.key(0)
    )

    def traced(*arguments):
        with partitioning.activate(mesh):
            return make_train_step(stage, OPTIMIZER, StepConfig())(*arguments)

    step, losses = jax.jit(traced), []
    for number in range(steps):
        batches = batches_of(config, seed=number)
        batch = partitioning.put_batch(mesh, {kind: batches[kind] for kind in kinds})
        state, metrics = step(state, batch, jax.random.key(1), jnp.zeros(()))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("name", [NAMES[0], NAMES[1]])
def test_eight_devices_equal_one(name):
    config = smallest(name)
    losses, state = run(config, MeshShape(), 1)
    sharded_losses, sharded_state = run(config, MeshShape(data=2, fsdp=4), 8)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    kernels = [leaf for leaf in jax.tree.leaves(sharded_state.params) if leaf.ndim == 4]
    assert any(not kernel.sharding.is_fully_replicated for kernel in kernels)
    assert int(state.step) == int(sharded_state.step) == 3


def test_accumulated_gradients_are_the_gradients_of_the_whole_batch():
    stage = Stage(smallest(NAMES[0]))
    params = jax.jit(stage.init)(jax.random.key(0))
    batches = {"image": jax.tree.map(jnp.asarray, batches_of(stage.config)["image"])}
    results = [
        jax.jit(
            lambda p, b, parts=parts: gradients_of(stage.loss, p, b, jax.random.key(1), StepConfig(accumulate=parts))
        )(params, batches)
        for parts in (1, 4)
    ]
    (loss, _), whole = results[0]
    (loss_in_parts, _), parts = results[1]
    np.testing.assert_allclose(loss, loss_in_parts, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


def test_the_step_learns_one_batch_and_is_traced_once():
    config = smallest(NAMES[0], text_drop=0.0)
    stage, optimizer = Stage(config), OptimizerConfig(learning_rate=3e-3, warmup=1)
    traces = []
    inner = make_train_step(stage, optimizer, StepConfig(ema_decay=0.9))

    def counted(*arguments):
        traces.append(1)
        return inner(*arguments)

    step = jax.jit(counted)
    state = jax.jit(lambda key: initial_state(stage, direction(optimizer), key))(jax.random.key(0))
    # A flat clip: what a network of any size can learn in seconds.
    batch = random_batch(config, size=8)
    flat = dataclasses.replace(batch, video_BTHWC=np.full_like(batch.video_BTHWC, 200))
    losses = []
    for _ in range(60):
        state, metrics = step(state, {"video": flat}, jax.random.key(1), jnp.zeros(()))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    assert len(traces) == 1


def test_ema_follows_the_parameters_and_metrics_name_the_noise_levels():
    config = smallest(NAMES[0])
    _, state = run(config, MeshShape(), 1, steps=1, kinds=("image",))
    stage = Stage(config)
    start = jax.jit(lambda key: initial_state(stage, direction(OPTIMIZER), key))(jax.random.key(0))
    moved = jax.tree.leaves(jax.tree.map(lambda a, b, c: (a - b, c - b), state.params, start.params, state.ema))
    params, ema = moved[0::2], moved[1::2]
    for change, follow in zip(params, ema):
        np.testing.assert_allclose(follow, 0.9 * change, atol=1e-6)  # the first step's decay is 1 / 10


def test_learning_rate_warms_up_and_decays_by_progress():
    config = OptimizerConfig(learning_rate=1.0, warmup=10, decay="cosine")
    assert float(learning_rate(config, 0, 0.0)) == pytest.approx(0.1)
    assert float(learning_rate(config, 9, 0.0)) == pytest.approx(1.0)
    assert float(learning_rate(config, 100, 0.5)) == pytest.approx(0.5)
    assert float(learning_rate(config, 100, 1.0)) == pytest.approx(0.0, abs=1e-6)
