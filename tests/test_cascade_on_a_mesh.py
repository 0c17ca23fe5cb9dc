"""`sample --mesh` and `--tile`: the same videos from weights, frames and height laid over devices, and in tiles."""

import jax
import numpy as np

from imagen_video_jax import partitioning
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import Member, placed
from imagen_video_jax.cli import main
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from tests.stages.stage_kinds import NAMES, smallest


def encoder(prompts):
    states = [np.random.default_rng(len(prompt)).normal(size=(3, 384)) for prompt in prompts]
    return np.stack(states).astype(np.float32), np.ones((len(prompts), 3), bool)


def test_a_cascade_on_a_mesh_samples_what_one_device_samples():
    stage = Stage(smallest(NAMES[5], frames=8, height=8, width=16))
    params = jax.jit(stage.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * np.random.default_rng(leaf.size).normal(size=leaf.shape), params)
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 16, 3), dtype=np.uint8)
    videos = []
    for mesh in (None, partitioning.make_mesh(MeshShape(data=1, fsdp=2, frames=2, height=2))):
        laid = params
        if mesh is not None:
            laid = jax.tree.map(
                lambda leaf, abstract: jax.device_put(leaf, abstract.sharding), params, placed(stage, mesh)
            )
            assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(laid))
        cascade = Cascade([Member(stage, laid, "")], encoder, mesh=mesh)
        videos.append(cascade.sample(["a", "bc"], video_BTHWC=video).astype(int))
    assert np.abs(videos[0] - videos[1]).max() <= 1
    assert videos[0].std() > 10


def test_what_is_no_mesh_or_tile_is_said(capsys, tmp_path):
    command = ["sample", "--cascade", "none.json", "--prompt", "a", "--out", str(tmp_path)]
    for arguments, says in (
        (["--mesh", "depth=2"], "--mesh must be AXIS=NUMBER[,...] with axes data, fsdp, tensor, frames, height"),
        (["--mesh", "frames=64"], "needs 64 devices, there are 8"),
        (["--tile", "16x32"], "--tile must be frames x height x width like 16x192x320, got '16x32'"),
    ):
        assert main([*command, *arguments]) == 2
        assert says in capsys.readouterr().err
