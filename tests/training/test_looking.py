"""Looking at a model on the way: every held-out clip counts once; a run on images alone goes on without."""

import contextlib
import dataclasses
import errno
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import partitioning
from imagen_video_jax.data.examples import Source
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training import looking
from imagen_video_jax.training.looking import Looks
from imagen_video_jax.training.step import OWN_LOSS, Objective
from imagen_video_jax.training.train_config import TrainConfig
from tests.stages.stage_kinds import NAMES, random_batch, tiny


@pytest.mark.parametrize("validation", [None, Source("validation", (), ())])
def test_without_videos_there_is_no_loss_and_no_sample(tmp_path, validation):
    config = TrainConfig(tiny(NAMES[0]))
    inputs = types.SimpleNamespace(source=Source("images", (), ()), validation=validation, embeddings=None)
    mesh = partitioning.make_mesh()
    looks = Looks(config, Stage(config.stage), OWN_LOSS, mesh, inputs, folder=tmp_path / "samples")
    assert looks.held_out_loss(state=None) == {}
    looks.write_samples(state=None, step=1)
    assert not (tmp_path / "samples").exists()


def test_a_last_batch_that_is_not_full_counts_by_its_clips(tmp_path, monkeypatch):
    def by_id(stage, params, frozen, batch, key, slot_B, slots):
        return batch.id_B.astype(jnp.float32), jnp.zeros(len(slot_B))

    config, mesh = TrainConfig(tiny(NAMES[0])), partitioning.make_mesh()
    full = dataclasses.replace(random_batch(config.stage, size=8), id_B=np.ones(8, np.int32))
    last = dataclasses.replace(full, id_B=np.full(8, 3, np.int32), valid_B=np.arange(8) < 1)
    inputs = types.SimpleNamespace(validation=Source("nine clips", videos=("not read",), images=()))
    looks = Looks(config, Stage(config.stage), Objective(loss=by_id), mesh, inputs, folder=tmp_path)
    monkeypatch.setattr(looks, "_evaluation_batches", lambda *_: contextlib.nullcontext(iter([full, last])))
    found = looks.held_out_loss(types.SimpleNamespace(ema={}, frozen={}))
    assert found["loss_video"] == found["loss_video_middle"] == pytest.approx((8 * 1 + 3) / 9)
    assert np.isnan(found["loss_video_noisy"])


@pytest.mark.parametrize("name", [NAMES[0], NAMES[6]])
def test_held_out_clips_are_as_large_as_training_clips_and_samples_whole(name, tmp_path, monkeypatch):
    config, sizes = TrainConfig(tiny(name)), []
    clips = Source("a clip", videos=("not read",), images=())
    inputs = types.SimpleNamespace(source=clips, validation=clips, embeddings=None)
    looks = Looks(config, Stage(config.stage), OWN_LOSS, partitioning.make_mesh(), inputs, folder=tmp_path)

    def batches(source, size, spec):
        sizes.append((spec.frames, *spec.size))
        return contextlib.nullcontext(iter([jax.tree.map(np.asarray, random_batch(config.stage, size=8))]))

    monkeypatch.setattr(looks, "_evaluation_batches", batches)
    monkeypatch.setattr(looks, "_evaluate", lambda *_: {}, raising=False)
    monkeypatch.setattr(looks, "_sample", lambda *_: np.zeros((8, 2, 8, 8, 3), np.float32))
    looks.held_out_loss(types.SimpleNamespace(ema={}, frozen={}))
    looks.write_samples(types.SimpleNamespace(ema={}), step=1)
    stage = config.stage
    assert sizes == [(stage.train_frames, *stage.train_size), (stage.frames, stage.height, stage.width)]


def test_samples_that_cannot_be_written_are_said_and_stop_no_training(tmp_path, monkeypatch, capsys):
    config, clips = TrainConfig(tiny(NAMES[0])), Source("a clip", videos=("not read",), images=())
    inputs = types.SimpleNamespace(source=clips, validation=None, embeddings=None)
    looks = Looks(config, Stage(config.stage), OWN_LOSS, partitioning.make_mesh(), inputs, folder=tmp_path / "samples")
    batch = jax.tree.map(np.asarray, random_batch(config.stage, size=8))
    monkeypatch.setattr(looks, "_evaluation_batches", lambda *_: contextlib.nullcontext(iter([batch])))
    monkeypatch.setattr(looks, "_sample", lambda *_: np.zeros((8, 2, 8, 8, 3), np.float32))

    def write(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(looking, "write_video", write)
        looks.write_samples(types.SimpleNamespace(ema={}), step=1)
    (tmp_path / "samples").rmdir()
    (tmp_path / "samples").write_text("in the way")
    looks.write_samples(types.SimpleNamespace(ema={}), step=2)
    first, second = capsys.readouterr().err.splitlines()
    assert "00000001.mp4 cannot be written" in first
    assert "00000002.mp4 cannot be written" in second
    assert "training goes on" in first
