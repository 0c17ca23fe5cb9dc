"""Standard normal noise: an example's key alone decides it, and a device makes no more than its own part."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def normal(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 noise [B, *shape]: `jax.random.normal(key, shape)` for each key (of jax's default generator)."""
    return jax.lax.platform_dependent(
        keys_B,
        cpu=lambda keys_B: jax.vmap(lambda key: _on_cpu(jax.random.key_data(key), shape))(keys_B),
        default=lambda keys_B: jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys_B),
    )


def _on_cpu(words_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same bits in a quarter of the time, which was a fifth of a network call of the miniature's last stage.

    jax rolls Threefry's rounds into a loop that carries everything through memory. Unrolled, they are one vector loop
    with what follows, if the axes of pixels and channels are one; the two halves of that axis are made in a loop, or
    the compiler would join it with what uses the noise, which has three channels in its innermost loop.
    """
    outer, last = shape[:-2], math.prod(shape[-2:])
    half = -(-last // 2)

    def make(number):
        place = jax.lax.broadcasted_iota(jnp.uint32, (*outer, half), len(outer)) + number * jnp.uint32(half)
        for axis in range(len(outer)):
            stride = jnp.uint32(math.prod(outer[axis + 1 :]) * last)
            place += jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis) * stride
        high, low = threefry(words_2[0], words_2[1], jnp.zeros_like(place), place)
        # 23 bits of mantissa: in [1, 2), less 1, stretched to the open interval from -1 to 1.
        floats = jax.lax.bitcast_convert_type(((high ^ low) >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
        least = np.nextafter(np.float32(-1.0), np.float32(0.0))
        uniform = jnp.maximum(least, floats * (np.float32(1.0) - least) + least)
        return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)

    halves = jax.lax.map(make, jnp.arange(2, dtype=jnp.uint32))
    return jnp.moveaxis(halves, 0, -2).reshape(*outer, 2 * half)[..., :last].reshape(shape)


def threefry(key_1, key_2, x_1, x_2):
    """Threefry-2x32 of 20 rounds: two words (uint32) for two (Salmon et al. 2011)."""
    keys = (key_1, key_2, key_1 ^ key_2 ^ jnp.uint32(0x1BD11BDA))
    x_1, x_2 = x_1 + keys[0], x_2 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x_1 = x_1 + x_2
            x_2 = ((x_2 << rotation) | (x_2 >> (32 - rotation))) ^ x_1
        x_1 = x_1 + keys[(group + 1) % 3]
        x_2 = x_2 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x_1, x_2
