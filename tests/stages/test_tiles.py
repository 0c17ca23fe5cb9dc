"""A network called in tiles gives what it gives whole, where it cannot see further than the overlap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.stages.tiles import Tiling, in_tiles
from tests.stages.stage_kinds import NAMES, smallest

VIDEO = np.random.default_rng(0).normal(size=(2, 11, 12, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [(4, 0, 0), (3, 8, 0), (5, 4, 8), (99, 99, 99)])
def test_what_sees_no_further_than_the_overlap_is_the_same_in_tiles(size):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 3, 3)).astype(np.float32)

    def blur(video, others):
        y = video * others["mask"][:, :, None, None, None] + others["low"]
        return jax.lax.conv_general_dilated(y, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    others = {"low": VIDEO[::-1], "mask": np.linspace(0, 1, 22, dtype=np.float32).reshape(2, 11), "none": None}
    tiled = jax.jit(lambda video: in_tiles(blur, Tiling(size, (1, 4, 4)), video, others))(VIDEO)
    np.testing.assert_allclose(tiled, blur(VIDEO, others), atol=1e-4)


def test_a_super_resolution_stage_samples_alike_in_tiles_of_frames():
    config = smallest(NAMES[6])
    network = dataclasses.replace(config.network, spatial_attention=(False,))
    sampler = dataclasses.replace(config.sampler, steps=2, guidance=2.0)
    config = dataclasses.replace(config, network=network, sampler=sampler, crop=None, frames=12, height=8, width=16)
    params = jax.jit(Stage(config).init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * np.random.default_rng(leaf.size).normal(size=leaf.shape), params)
    rng = np.random.default_rng(0)
    given = {
        "text_BLD": rng.normal(size=(1, config.text_length, network.text_width)).astype(np.float32),
        "text_mask_BL": np.ones((1, config.text_length), bool),
        "low_BTHWC": rng.uniform(-1, 1, (1, *config.input_size[:3], 3)).astype(np.float32),
    }

    def sample(tiling):
        stage = Stage(config, tiling)
        return jax.jit(lambda p, g: stage.sample(p, **g, index_B=jnp.arange(1), seed=0))(params, given)

    whole = sample(Tiling())
    # Two blocks, so two temporal convolutions: a frame sees two frames to either side.
    np.testing.assert_allclose(sample(Tiling((4, 0, 0), (2, 0, 0))), whole, atol=1e-4)
    assert np.abs(np.asarray(sample(Tiling((4, 0, 0), (0, 0, 0))) - whole)).max() > 1e-3
    assert np.abs(np.asarray(whole)).max() > 0.3


def test_tiles_leave_whole_what_a_network_attends_over_and_fit_its_down_sampling():
    base, last = (Stage(smallest(name)).config.network for name in (NAMES[0], NAMES[6]))
    assert Tiling((4, 8, 8), (1, 4, 4)).of(base).size == (0, 0, 0)
    assert Tiling((4, 8, 8), (1, 4, 4)).of(last).size == (4, 0, 0)
    free = dataclasses.replace(last, spatial_attention=(False,))
    assert Tiling((4, 8, 8), (1, 4, 4)).of(free).size == (4, 8, 8)
    with pytest.raises(UserError, match="divisible by 4"):
        Tiling((0, 6, 8)).of(free)
