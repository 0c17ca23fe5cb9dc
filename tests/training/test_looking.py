"""Looking at a model on the way asks for videos; a run on images alone goes on without."""

import types

import pytest

from imagen_video_jax import partitioning
from imagen_video_jax.data.examples import Source
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.looking import Looks
from imagen_video_jax.training.step import OWN_LOSS
from imagen_video_jax.training.train_config import TrainConfig
from tests.stages.stage_kinds import NAMES, tiny


@pytest.mark.parametrize("validation", [None, Source("validation", (), ())])
def test_without_videos_there_is_no_loss_and_no_sample(tmp_path, validation):
    config = TrainConfig(tiny(NAMES[0]))
    inputs = types.SimpleNamespace(source=Source("images", (), ()), validation=validation, embeddings=None)
    mesh = partitioning.make_mesh()
    looks = Looks(config, Stage(config.stage), OWN_LOSS, mesh, inputs, folder=tmp_path / "samples")
    assert looks.held_out_loss(state=None) == {}
    looks.write_samples(state=None, step=1)
    assert not (tmp_path / "samples").exists()
