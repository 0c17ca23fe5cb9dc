"""Optimizers: every one takes steps of the same size at one learning rate, and Muon's kernels move orthogonally."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.training.optimizer import BFLOAT16_B2, OptimizerConfig, direction


def first_step(name: str, params, gradients):
    optimizer = direction(OptimizerConfig(name=name, clip=1e9))
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def some_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    # A gradient of quickly falling singular values, as real ones are.
    kernel = jax.random.normal(keys[0], (3, 3, 32, 48)) * jnp.exp(-jnp.arange(48) / 4)
    return {"kernel": kernel, "thin": jax.random.normal(keys[1], (64, 8)), "bias": jax.random.normal(keys[2], (48,))}


def test_muon_moves_a_kernel_by_the_same_length_in_every_direction():
    step = first_step("muon", jax.tree.map(jnp.zeros_like, some_gradients()), some_gradients())
    lengths = np.linalg.svd(np.asarray(step["kernel"]).reshape(-1, 48), compute_uv=False)
    assert lengths.min() > 0.5 * lengths.max()
    given = np.linalg.svd(np.asarray(some_gradients()["kernel"]).reshape(-1, 48), compute_uv=False)
    assert given.min() < 1e-3 * given.max()


def test_muon_leaves_vectors_and_thin_kernels_to_adam():
    params = jax.tree.map(jnp.zeros_like, some_gradients())
    muon, adam = (first_step(name, params, some_gradients()) for name in ("muon", "adam"))
    for leaf in ("thin", "bias"):
        # The same signs and one size; Muon's Adam looks ahead (Nesterov), so its first step is longer.
        ratio = np.asarray(muon[leaf] / adam[leaf])
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
        assert 1 <= ratio.flat[0] < 2


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_step_goes_down_the_gradient(name):
    gradients = some_gradients()
    step = first_step(name, jax.tree.map(jnp.zeros_like, gradients), gradients)
    for leaf, gradient in gradients.items():
        assert float(jnp.vdot(step[leaf], gradient)) > 0


def test_moments_kept_in_bfloat16_take_half_the_bytes_and_go_the_same_way():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(32, 16)), jnp.float32)}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        step = direction(OptimizerConfig(state_dtype=dtype))
        state = step.init(params)
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert len(moments) == 2
        assert {leaf.dtype.name for leaf in moments} == {dtype}
        for number in range(3):
            gradients = jax.tree.map(lambda p, n=number: p * (1 + 0.1 * n), params)
            updates[dtype], state = step.update(gradients, state, params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} == {dtype}
    np.testing.assert_allclose(updates["bfloat16"]["kernel"], updates["float32"]["kernel"], rtol=0.02)
    with pytest.raises(ValueError, match="state_dtype must be one of"):
        OptimizerConfig(state_dtype="int8")


def test_second_moments_kept_in_bfloat16_decay_or_are_refused():
    config = OptimizerConfig(state_dtype="bfloat16", b2=BFLOAT16_B2)
    step, gradients = direction(config), {"bias": jnp.linspace(0.5, 1.0, 16)}
    _, state = step.update(gradients, step.init(gradients), gradients)
    for _ in range(2000):  # 0.996^2000 is 0.0004
        _, state = update(step, jax.tree.map(jnp.zeros_like, gradients), state)
    second = state[1].nu["bias"].astype(jnp.float32)
    assert float(jnp.max(second)) < 0.01 * (1 - BFLOAT16_B2) * 0.25
    for wrong in ({"b2": 0.999}, {"name": "muon", "b2": 0.999}, {"name": "adafactor"}):
        OptimizerConfig(**wrong)
        with pytest.raises(ValueError, match="too coarse for the second moments"):
            OptimizerConfig(state_dtype="bfloat16", **wrong)


@functools.partial(jax.jit, static_argnums=0)
def update(step, gradients, state):
    return step.update(gradients, state, gradients)
