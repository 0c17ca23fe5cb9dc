"""Convolutions whose frames and height lie on several devices: values and gradients of one device, edges exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from imagen_video_jax import chips, functional, partitioning
from imagen_video_jax.models.blocks import halves
from imagen_video_jax.models.layers import KEEPING, GroupNorm, kept, multiply, spatial_convolution, temporal_convolution
from imagen_video_jax.partitioning import MeshShape

WEIGHTS_SHARDED = MeshShape(data=1, fsdp=2, frames=2, height=2)


def program(convolution, mesh):
    """x, kernel -> y and the gradients of something of it."""

    def run(x_BTHWC, kernel):
        with partitioning.activate(mesh):
            x = partitioning.constrain(x_BTHWC, "batch", "frames", "height")
            y, back = jax.vjp(convolution, x, kernel)
            return y, *back(jnp.sin(y))

    return run


def assert_equal_on(shape, convolution, kernel_size, size, *, exchanged=True):
    """Holds a convolution of a batch of `size` (B, T, H, W) on a mesh against one device."""
    rng, mesh = np.random.default_rng(0), partitioning.make_mesh(shape)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((*size, 8), (*kernel_size, 8, 16)))
    names = (*(None for _ in kernel_size), "conv_in", "conv_out")
    placed = jax.device_put(kernel, NamedSharding(mesh, partitioning.spec_of(mesh, kernel.shape, names)))
    compiled = jax.jit(program(convolution, mesh)).lower(x, placed).compile()
    for ours, one in zip(compiled(x, placed), jax.jit(program(convolution, None))(x, kernel), strict=True):
        np.testing.assert_allclose(ours, one, atol=3e-6 * np.abs(one).max())
    text = compiled.as_text()
    assert (" collective-permute(" in text) == exchanged
    assert " all-to-all(" not in text


@pytest.mark.parametrize(
    ("shape", "batch"),
    [(WEIGHTS_SHARDED, 2), (WEIGHTS_SHARDED, 1), (MeshShape(data=1, tensor=2, frames=2, height=2), 2)],
    ids=["kernel inputs sharded", "and the batch whole", "kernel outputs sharded"],
)
def test_what_lies_over_frames_and_height_is_convolved_as_on_one_device(shape, batch):
    def both(x, kernel):
        return spatial_convolution(x, kernel, 1) + temporal_convolution(x, kernel[:, 1])

    assert_equal_on(shape, both, (3, 3), (batch, 8, 4, 3))


@pytest.mark.parametrize(("rows", "exchanged"), [(8, True), (6, False)], ids=["even shards", "shards of three rows"])
def test_a_stride_takes_the_same_pixels_on_any_mesh(rows, exchanged):
    def halve(x, kernel):
        return spatial_convolution(x, kernel, 2)

    assert_equal_on(WEIGHTS_SHARDED, halve, (3, 3), (2, 4, rows, 5), exchanged=exchanged)


def test_flops_are_those_of_the_whole_video_on_any_mesh():
    x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 6, 16), np.float32), jax.ShapeDtypeStruct((3, 16, 16), np.float32)
    for shape in (WEIGHTS_SHARDED, MeshShape(data=1, tensor=2, frames=2, height=2)):
        cost = chips.count(program(temporal_convolution, partitioning.make_mesh(shape)), x, kernel)
        assert cost.flops == pytest.approx(3 * 2 * 2 * 8 * 8 * 6 * 16 * 16 * 3, rel=0.2)


@pytest.mark.parametrize(("kind", "summed"), [("cpu", 1), ("TPU v5p", 4)])
def test_a_product_over_channels_has_the_gradients_of_the_sum_it_is(kind, summed):
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.normal(size=size) for size in ((2, 3, 4, 5, 16), (16, 8), (2, 3, 4, 5, 8)))
    with partitioning.for_device(kind):

        def gradients(x, kernel, g):
            return jax.vjp(multiply, x, kernel)[1](g)

        y = multiply(*map(jnp.float32, (x, kernel)))
        of_x, of_kernel = gradients(*map(jnp.float32, (x, kernel, g)))
        products = [e for e in jax.make_jaxpr(gradients)(x, kernel, g).eqns if e.primitive.name == "dot_general"]
    np.testing.assert_allclose(y, np.einsum("bthwi,io->bthwo", x, kernel), atol=1e-5)
    np.testing.assert_allclose(of_x, np.einsum("bthwo,io->bthwi", g, kernel), atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("bthwi,bthwo->io", x, g), atol=1e-4)
    assert max(len(e.params["dimension_numbers"][0][0]) for e in products) == summed  # axes, in the kernel's gradient


@pytest.mark.parametrize("kind", ["cpu", "TPU v5p"])
def test_halves_are_those_of_a_split_with_its_gradient(kind):
    x = np.random.default_rng(0).normal(size=(2, 3, 1, 1, 8)).astype(np.float32)
    x[0, 0, 0, 0, 4] = np.inf  # stays in its half

    def gradient(parts):
        return jax.grad(lambda x: sum(jnp.sum(jnp.sin(n * part)) for n, part in enumerate(parts(x), 1)))(x)

    def split(x):
        return jnp.split(x, 2, axis=-1)

    with partitioning.for_device(kind):
        for ours, exact in zip(halves(x), split(x), strict=True):
            np.testing.assert_array_equal(ours, exact)
        np.testing.assert_array_equal(gradient(halves), gradient(split))


def test_what_is_kept_is_computed_once_for_all_that_read_it():
    def two_readers(x):
        y = kept(x * 3 + 1)  # cheap, so that it would be computed in both
        return jnp.sin(y), y[::-1] * 2

    text = jax.jit(two_readers, compiler_options=KEEPING).lower(jnp.ones((64, 64))).compile().as_text()
    assert text.count(" add(") == 1


def test_a_normalisation_in_half_precision_is_exact_where_the_mean_is_large():
    x = 16.0 + np.random.default_rng(0).normal(size=(1, 1, 8, 8, 32))
    x = jnp.asarray(x, jnp.bfloat16)
    network = functional.split(lambda rngs: GroupNorm(32))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), network.abstract) | {"scale": jnp.ones(32)}
    exact = network.apply(params, x.astype(jnp.float32))
    found = network.apply(params, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=2**-8 * np.abs(exact).max())
