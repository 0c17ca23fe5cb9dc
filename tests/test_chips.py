"""Counting FLOPs from a jaxpr, and names of slices."""

import functools

import jax
import jax.numpy as jnp
import pytest

from imagen_video_jax import chips
from imagen_video_jax.errors import UserError


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_matrix_product_costs_two_flops_per_multiply_and_add():
    assert chips.count(lambda a, b: a @ b, shape(3, 5), shape(5, 7)).flops == 2 * 3 * 5 * 7


def test_a_scan_costs_as_often_as_it_turns_and_a_branch_what_the_dearest_costs():
    def twice(a):
        return jax.lax.scan(
            lambda x, _: (jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y, x), None), a, length=6
        )

    assert chips.count(twice, shape(4, 4)).flops == 6 * 2 * 4**3


def test_a_loop_of_constant_length_is_counted_whole_and_another_is_said_to_be_unknown():
    def loop(limit, a):
        return jax.lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1, c[1] @ c[1]), (0, a))

    assert chips.count(functools.partial(loop, 5), shape(4, 4)) == chips.Cost(flops=5 * 2 * 4**3)
    unknown = chips.count(loop, jax.ShapeDtypeStruct((), jnp.int32), shape(4, 4))
    assert unknown == chips.Cost(flops=2 * 4**3, unknown_loops=1)


def test_what_rematerialisation_repeats_is_counted_apart():
    def loss(block, w, x):
        return block(block(x, w), w).sum()

    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    w, x = shape(8, 8), shape(4, 8)
    plain = chips.count(jax.grad(functools.partial(loss, layer)), w, x)
    remat = chips.count(jax.grad(functools.partial(loss, jax.checkpoint(layer))), w, x)
    assert plain.recomputed == 0
    assert remat.recomputed > 0
    assert remat.useful == plain.flops == plain.useful


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 2)])
def test_convolutions_and_their_gradients_cost_what_the_compiler_counts(size, stride):
    def loss(kernel, x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (y * y).sum()

    kernel, x = shape(*size, 3, 5), shape(2, 12, 9, 3)
    counted = chips.count(jax.grad(loss, argnums=(0, 1)), kernel, x).flops
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernel, x).cost_analysis()["flops"]
    # The compiler also counts the element-wise work.
    assert compiled - 4 * 2 * 12 * 9 * 5 <= counted <= compiled


def test_every_listed_slice_can_be_named():
    for chip in chips.CHIPS.values():
        for topology in chips.slices(chip):
            assert chips.parse_topology(str(topology)) == topology
    assert chips.parse_topology("v5p:4x4x4").chips == 64
    assert chips.parse_topology("H200:8").chips == 8


@pytest.mark.parametrize(
    "text", ["v9:2x2", "v5e", "v5e:2", "v5e:3x3", "v5p:4x4", "h100:2x2", "h100:0", "v5p:2x2x-1", ""]
)
def test_an_unknown_topology_is_answered_with_the_known_ones(text):
    with pytest.raises(UserError, match="known"):
        chips.parse_topology(text)


def test_a_device_is_recognised_by_the_longest_kind_that_fits():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100"}
    assert {kind: chips.chip_of(Device(kind)).name for kind in kinds} == kinds
    assert chips.chip_of(Device("cpu")) is None
