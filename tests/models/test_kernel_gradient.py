"""The kernel gradient by a product: equal to that of the plain convolution, and on a CPU alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips
from imagen_video_jax.models import kernel_gradient

PADDING = ((1, 1), (0, 2))


def loss(x, kernel):
    return jnp.sum(jnp.sin(kernel_gradient.convolve(x, kernel, 1, PADDING)))


@pytest.fixture(params=[(64, 128), (130, 64)])
def inputs(request):
    keys, (C, D) = jax.random.split(jax.random.key(0)), request.param
    return jax.random.normal(keys[0], (2, 3, 5, C)), 0.1 * jax.random.normal(keys[1], (3, 3, C, D))


def test_gradients_are_those_of_the_plain_convolution(inputs, monkeypatch):
    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)
    monkeypatch.setattr(kernel_gradient, "LEAST_CHANNELS", (1000, 1000))
    wanted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-3)


def test_a_program_for_a_tpu_or_gpu_has_the_convolution_in_place_of_the_product(inputs):
    traced = jax.jit(jax.grad(loss, argnums=1)).trace(*inputs)
    for platform, product in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.dot_general" in text) == product, platform
        assert text.count("stablehlo.convolution") == (1 if product else 2), platform


def test_its_flops_are_those_of_the_plain_convolution_and_its_two_gradients(inputs, monkeypatch):
    found = chips.count(jax.grad(loss, argnums=(0, 1)), *inputs)
    monkeypatch.setattr(kernel_gradient, "LEAST_CHANNELS", (1000, 1000))
    assert found == chips.count(jax.grad(loss, argnums=(0, 1)), *inputs)
