"""The analytic model of memory, on programs whose need can be counted by hand (sizes in bytes, no padding)."""

import jax
import jax.numpy as jnp
import pytest

from imagen_video_jax import memory_model

N = 64
SQUARE = N * N * 4.0  # bytes of a float32 array


def usage(
    function, count: int, *, weights: int = 0, gathered: float = 0.0, result: float | None = None, ahead: bool = False
) -> memory_model.Usage:
    """Of a function of `count` squares, the first `weights` of which are parameters sharded over many chips."""
    square = jax.ShapeDtypeStruct((N, N), jnp.float32)
    given = [index < weights for index in range(count)]
    return memory_model.usage_of(
        jax.make_jaxpr(function)(*[square] * count),
        weights=given,
        whole=[SQUARE] * count,
        gathered=[gathered * own for own in given],
        results=[result],
        size_of=memory_model.plain_bytes,
        ahead=ahead,
    )


def peak_of(*arguments, **options) -> float:
    return usage(*arguments, **options).peak


@pytest.mark.parametrize(
    ("function", "squares"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: (a @ b) @ b, 2),  # what a product reads lives beside what it makes
        (lambda a, b: ((a @ b) @ b) @ b, 2),  # and not longer
        (lambda a, b: jnp.tanh(2.0 * (a @ b)) @ b, 2),  # element-wise values are computed where they are read
        (lambda a, b: jnp.where(a > 0, a @ b, -1e9) @ b, 2),  # and so are constants
        (lambda a, b: (a @ b) @ (b @ a), 3),
    ],
)
def test_the_peak_is_what_lives_at_once(function, squares):
    assert peak_of(function, 2) == squares * SQUARE


def test_sharded_weights_are_whole_one_after_the_other_in_a_loop_too():
    def once(first, second, x):
        return (x @ first) @ second

    def looped(first, second, x):
        return jax.lax.scan(lambda x, _: (once(first, second, x), None), x, length=3)[0]

    # A weight beside the input and the product of one layer.
    assert peak_of(once, 3, weights=2, gathered=SQUARE) == 3 * SQUARE
    # The loop's result lies beside what its body needs.
    assert peak_of(looped, 3, weights=2, gathered=SQUARE) == 4 * SQUARE


def test_weights_that_are_gathered_ahead_lie_there_until_they_are_first_read():
    def once(first, second, third, x):
        return ((x @ first) @ second) @ third

    assert peak_of(once, 4, weights=3, gathered=SQUARE) == 3 * SQUARE
    # Three beside the first layer's product.
    assert peak_of(once, 4, weights=3, gathered=SQUARE, ahead=True) == 4 * SQUARE

    def again(first, second, third, x):
        return ((once(first, second, third, x) @ third) @ second) @ first

    # Later readings gather anew: one beside what one layer reads and makes.
    assert usage(again, 4, weights=3, gathered=SQUARE, ahead=True).peak == 4 * SQUARE


def test_a_result_that_is_constant_leaves_nothing_behind_for_the_next_program():
    def masked(a, b):
        return jnp.where(a > 0, a @ b, -1e9) @ b

    before = usage(masked, 2)
    usage(lambda a: jnp.zeros_like(a), 1, result=100 * SQUARE)
    assert usage(masked, 2) == before
