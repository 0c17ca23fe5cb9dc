"""The train step: the same on one device and on eight, whole and in parts, and it learns."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, partitioning
from imagen_video_jax.collectives import groups_of
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.optimizer import OptimizerConfig, direction, learning_rate
from imagen_video_jax.training.state import abstract_state, initial_state, shardings_of
from imagen_video_jax.training.step import OWN_LOSS, StepConfig, gradients_of, make_train_step, means_of
from tests.stages.stage_kinds import NAMES, random_batch, smallest, tiny

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


def loss_and_gradients(config, params, batch, mesh=None, parts=1):
    """Of one video batch, on one device or laid over a mesh, everything in float32."""
    stage = Stage(config)

    def traced(params, batches):
        with partitioning.activate(mesh):
            loss = functools.partial(OWN_LOSS.loss, stage)
            return gradients_of(loss, params, {}, batches, jax.random.key(1), StepConfig(accumulate=parts))

    shardings = None
    if mesh is not None:
        batch = partitioning.put_batch(mesh, batch)
        shardings = partitioning.shardings_of(mesh, stage.network.abstract, stage.network.axes)
        params = jax.tree.map(jax.device_put, params, shardings)
    compiled = jax.jit(traced, out_shardings=(None, shardings)).lower(params, {"video": batch}).compile()
    (loss, _), gradients = compiled(params, {"video": batch})
    return float(loss), gradients, compiled.as_text()


def assert_close(gradients, expected, share=1e-5):
    """Within this share of the largest number of each array."""
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert np.abs(ours - theirs).max() <= share * max(np.abs(theirs).max(), 1e-3)


def perturbed(config):
    """Weights among which no projection is still zero: every layer has a gradient."""
    params = jax.jit(Stage(config).init)(jax.random.key(0))
    return jax.tree.map(lambda a: a + 0.05 * np.random.default_rng(a.size).normal(size=a.shape), params)


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=4), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_parts_on_many_devices_have_the_gradients_of_one_and_sum_them_over_data_once(shape):
    config = smallest(NAMES[0])
    batch, params = random_batch(config, size=16), perturbed(config)
    # Examples that do not count lie in one part of one device's share only.
    batch = dataclasses.replace(batch, valid_B=np.arange(16) > 2)
    expected_loss, expected, _ = loss_and_gradients(config, params, batch)
    loss, gradients, program = loss_and_gradients(config, params, batch, partitioning.make_mesh(shape), parts=2)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(gradients, expected, 2e-5)
    sums = [line for line in program.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    # Devices 0 to 3 are one part of the data axis.
    over_data = [line for line in sums if any(group.min() < 4 <= group.max() for group in groups_of(line, 8))]
    assert not any("/while/" in line for line in over_data)
    shapes = [re.findall(r"f32\[([\d,]*)\]", line.split(" all-reduce")[0]) for line in over_data]
    added = sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in itertools.chain(*shapes))
    shares = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(gradients))
    assert added == pytest.approx(shares, rel=0.02)


@pytest.mark.slow  # the convolutions alone are held against one device in tests/models/test_layers.py
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (NAMES[6], MeshShape(data=1, fsdp=2, frames=2, height=2)),
        (NAMES[5], MeshShape(data=1, tensor=2, frames=2, height=2)),
        (NAMES[6], MeshShape(data=2, frames=2, height=2)),
    ],
    ids=["spatial_sr", "temporal_sr", "over_data"],
)
def test_training_with_frames_and_height_over_devices_has_the_loss_and_gradients_of_one(name, shape):
    config = smallest(name, frames=8, height=16, width=8, crop=None, text_drop=0.0)
    batch, params = random_batch(config, size=2), perturbed(config)
    expected_loss, expected, _ = loss_and_gradients(config, params, batch)
    loss, gradients, program = loss_and_gradients(config, params, batch, partitioning.make_mesh(shape))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(gradients, expected)
    assert " collective-permute" in program, "the edges of shards have to be exchanged"


@pytest.mark.slow  # two train programs, compiled for this alone
def test_remat_that_keeps_products_has_the_loss_and_gradients_of_the_one_that_keeps_nothing():
    results, config = [], smallest(NAMES[0])
    batch, params = random_batch(config, size=2), perturbed(config)
    again = {}
    for policy in ("nothing", "products"):
        network = dataclasses.replace(config.network, remat=True, remat_policy=policy)
        changed = dataclasses.replace(config, network=network)
        results.append(loss_and_gradients(changed, params, batch))
        own = functools.partial(OWN_LOSS.loss, Stage(changed))
        cost = chips.count(
            lambda p, f=own: gradients_of(f, p, {}, {"video": batch}, jax.random.key(1), StepConfig()), params
        )
        again[policy] = cost.recomputed / cost.flops
    (expected_loss, expected, _), (loss, gradients, _) = results
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(gradients, expected)
    assert again["products"] < 0.02 < 0.15 < again["nothing"], "what is kept is not computed again"


def test_accumulated_gradients_are_the_gradients_of_the_whole_batch():
    stage = Stage(smallest(NAMES[0]))
    params = jax.jit(stage.init)(jax.random.key(0))
    loss = functools.partial(OWN_LOSS.loss, stage)
    batches = {"image": jax.tree.map(jnp.asarray, batches_of(stage.config)["image"])}
    results = [
        jax.jit(
            lambda p, b, parts=parts: gradients_of(loss, p, {}, b, jax.random.key(1), StepConfig(accumulate=parts))
        )(params, batches)
        for parts in (1, 4)
    ]
    (loss, _), whole = results[0]
    (loss_in_parts, _), parts = results[1]
    np.testing.assert_allclose(loss, loss_in_parts, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_moments_are_laid_out_as_their_parameters(name):
    mesh = partitioning.make_mesh(MeshShape(data=1, fsdp=8))
    state = abstract_state(Stage(tiny(NAMES[0])), direction(OptimizerConfig(name=name)), mesh)

    def share_of_a_device(tree):
        leaves = jax.tree.leaves(tree)
        own = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        return own / sum(leaf.size for leaf in leaves)

    share = share_of_a_device(state.params)
    assert share < 0.2
    assert share_of_a_device(state.optimizer) == pytest.approx(
        share, abs=0.03
    )  # the small parameters, which are whole, have other moments


@pytest.mark.parametrize("parts", [1, 4])
def test_losses_by_noise_level_are_means_whatever_a_batch_is_cut_into(parts):
    """Where every example has a loss of one; times are stratified, so that a part holds only some noise levels."""

    def ones(params, frozen, batch, key, slot_B, slots):
        return params * jnp.ones(len(slot_B)), jnp.linspace(-10, 2.9, slots)[slot_B]

    batches = batches_of(smallest(NAMES[0]))
    (loss, sums), gradient = gradients_of(ones, 1.0, {}, batches, jax.random.key(1), StepConfig(accumulate=parts))
    assert loss == gradient == 1.5
    means = {name: float(value) for name, value in means_of(sums).items()}
    for kind in ("video", "image"):
        assert means[f"loss_{kind}"] == means[f"loss_{kind}_noisy"] == means[f"loss_{kind}_middle"] == 1.0
        assert np.isnan(means[f"loss_{kind}_clean"])


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
