"""Convolutions of images side by side: equal to those of images apart, with their gradients, and on a CPU alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, partitioning
from imagen_video_jax.models import convolution

PADDINGS = {"same": ((1, 1), (1, 1)), "uneven": ((1, 1), (0, 2)), "rows_without": ((0, 0), (1, 1))}


@pytest.fixture(params=[(34, 33), (34, 130), (130, 34)], ids="{0[0]}to{0[1]}".format)
def inputs(request):
    keys, (C, D) = jax.random.split(jax.random.key(0)), request.param
    return jax.random.normal(keys[0], (3, 4, 5, C)), 0.1 * jax.random.normal(keys[1], (3, 3, C, D))


def loss_with(padding):
    return lambda x, kernel: jnp.sum(jnp.sin(convolution.convolve(x, kernel, 1, padding)))


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
def test_values_and_gradients_are_those_of_images_apart(inputs, padding, monkeypatch):
    found = jax.jit(jax.value_and_grad(loss_with(padding), argnums=(0, 1)))(*inputs)
    monkeypatch.setattr(convolution, "NARROW", (0, 0))
    wanted = jax.jit(jax.value_and_grad(loss_with(padding), argnums=(0, 1)))(*inputs)
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-3)


def widths(inputs, platform: str) -> list[int]:
    """Of the rows that the program's convolutions read, forward and back to the images."""
    program = jax.jit(jax.grad(loss_with(PADDINGS["same"]))).trace(*inputs).lower(lowering_platforms=(platform,))
    lines = [line for line in program.as_text().splitlines() if "stablehlo.convolution" in line]
    return [int(line.rsplit(": (tensor<")[1].split("x")[2]) for line in lines]


def test_side_by_side_where_outputs_are_few_and_the_program_is_for_a_cpu(inputs):
    C, D = inputs[1].shape[2:]
    assert widths(inputs, "cpu") == [18 if outputs < convolution.NARROW[1] else 5 for outputs in (D, C)]
    assert widths(inputs, "tpu") == widths(inputs, "cuda") == [5, 5]


def test_images_of_several_devices_stay_apart(inputs):
    with partitioning.activate(partitioning.make_mesh(partitioning.MeshShape(data=2), jax.devices()[:2])):
        assert widths(inputs, "cpu") == [5, 5]


def test_flops_are_those_of_the_plain_convolution_and_its_two_gradients(inputs, monkeypatch):
    found = chips.count(jax.grad(loss_with(PADDINGS["same"]), argnums=(0, 1)), *inputs)
    monkeypatch.setattr(convolution, "NARROW", (0, 0))
    assert found == chips.count(jax.grad(loss_with(PADDINGS["same"]), argnums=(0, 1)), *inputs)


def test_a_first_convolution_has_no_gradient_of_its_images_unasked(inputs):
    x, kernel = inputs[0][..., :6], inputs[1][:, :, :6]
    plain = chips.count(lambda x, kernel: convolution.convolve(x, kernel, 1, PADDINGS["same"]), x, kernel)
    assert chips.count(jax.grad(loss_with(PADDINGS["same"]), argnums=1), x, kernel).flops == 2 * plain.flops
