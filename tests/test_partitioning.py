"""Frames and height really are sharded: sampling moves edges between devices, never whole activations."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, partitioning
from imagen_video_jax.compiling import devices_of
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from tests.stages.stage_kinds import NAMES, tiny

# What sampling has beside the denoiser: guidance in a doubled batch, dynamic clipping, fresh noise, resize.
SAMPLER = {"name": "ancestral", "steps": 2, "guidance": 2.0, "clip": "dynamic", "percentile": 90.0}


def sampler_of(stage, mesh):
    """A program params, text, mask, low -> videos, under a mesh."""

    def run(params, text_BLD, text_mask_BL, low_BTHWC):
        with partitioning.activate(mesh):
            low = partitioning.constrain(low_BTHWC, "batch", "frames", "height")
            index_B = jnp.arange(len(text_BLD))
            return stage.sample(
                params, text_BLD=text_BLD, text_mask_BL=text_mask_BL, index_B=index_B, seed=0, low_BTHWC=low
            )

    return jax.jit(run)


@pytest.mark.parametrize(
    ("name", "shape", "pixels"),
    [
        (NAMES[6], MeshShape(data=2, frames=2, height=2), False),
        (NAMES[4], MeshShape(frames=2, height=4), True),
    ],
    ids=["spatial_sr", "temporal_sr_with_attention_over_pixels"],
)
def test_sharded_sampling_equals_unsharded_and_gathers_no_activation(name, shape, pixels):
    config = tiny(name)
    network = dataclasses.replace(
        config.network, patch=1, channels=(8, 32), head_width=8, spatial_attention=(False, pixels)
    )
    sampler = dataclasses.replace(config.sampler, **SAMPLER)
    config = dataclasses.replace(
        config, network=network, sampler=sampler, crop=None, frames=8, height=16, width=20, text_length=4
    )
    stage = Stage(config)
    params = jax.jit(stage.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * np.random.default_rng(leaf.size).normal(size=leaf.shape), params)
    rng = np.random.default_rng(0)
    low = rng.uniform(-1, 1, (2, *config.input_size[:3], 3)).astype(np.float32)
    text = rng.normal(size=(2, 4, network.text_width)).astype(np.float32)
    arguments = (params, text, np.ones((2, 4), bool), low)

    compiled = sampler_of(stage, partitioning.make_mesh(shape)).lower(*arguments).compile()
    program = compiled.as_text()
    assert re.search(r" collective-permute(-start)?\(", program), "the edges of shards have to be exchanged"
    gathers = [line.strip()[:200] for line in program.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    assert not gathers
    expected = sampler_of(stage, None)(*arguments)
    np.testing.assert_allclose(compiled(*arguments), expected, atol=2e-4)
    assert np.abs(np.asarray(expected)).max() > 0.3


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarging_is_the_general_bilinear_resize(factor):
    from imagen_video_jax.video import frames

    video = np.random.default_rng(0).normal(size=(2, 2, 5, 7, 3)).astype(np.float32)
    shape = (2, 2, 5 * factor, 7 * factor, 3)
    general = jax.image.resize(video, shape, method="linear", antialias=True)
    np.testing.assert_allclose(frames.resize(video, *shape[2:4]), general, atol=1e-5)


def test_a_mesh_that_the_devices_cannot_make_is_refused():
    with pytest.raises(UserError, match="needs 16 devices, there are 8"):
        partitioning.make_mesh(MeshShape(data=4, fsdp=4))
    with pytest.raises(UserError, match="at least 1"):
        partitioning.make_mesh(MeshShape(tensor=0))


def test_a_mesh_axis_may_lie_along_a_part_of_a_torus_axis():
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'imagen_video_jax[plan]'")
    devices = devices_of(chips.parse_topology("v5p:4x4x4"))
    mesh = partitioning.make_mesh(MeshShape(fsdp=8), devices)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == (8, 8)


def test_a_batch_lands_in_its_slots_wherever_the_mesh_repeats_it():
    mesh = partitioning.make_mesh(MeshShape(data=2, fsdp=2, frames=2))
    assert partitioning.batch_slots(mesh, 8).tolist() == list(range(8))
    array = partitioning.put_batch(mesh, np.arange(8))
    np.testing.assert_array_equal(array, np.arange(8))
    assert all(shard.data.size == 2 for shard in array.addressable_shards)
    np.testing.assert_array_equal(partitioning.put_own(mesh, (0.5, 2)), np.tile([0.5, 2.0], (8, 1)))


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What arranging devices asks of one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_only_the_data_axis_crosses_slices():
    devices = [FakeDevice(number, number % 2) for number in range(8)]
    arranged = partitioning._over_slices([4, 2, 1, 1, 1], 2, devices)
    assert arranged.shape == (4, 2, 1, 1, 1)
    slices = np.vectorize(lambda device: device.slice_index)(arranged)[..., 0, 0, 0]
    assert (slices == slices[:, :1]).all()
    assert sorted(slices[:, 0]) == [0, 0, 1, 1]
    assert len({device.id for device in arranged.flat}) == 8
    with pytest.raises(UserError, match="divisible by the number of slices, 2"):
        partitioning._over_slices([1, 8, 1, 1, 1], 2, devices)
