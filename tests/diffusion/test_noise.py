"""Noise is that of jax.random, number by number."""

import jax
import numpy as np
import pytest

from imagen_video_jax.diffusion.noise import normal


@pytest.mark.parametrize("shape", [(4, 6, 10, 3), (7,), (2, 5)])
def test_noise_is_that_of_jax_for_every_key(shape):
    keys = jax.random.split(jax.random.key(3), 5)
    expected = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    np.testing.assert_array_equal(normal(keys, shape), expected)
    np.testing.assert_array_equal(jax.jit(normal, static_argnums=1)(keys, shape), expected)
