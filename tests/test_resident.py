"""Training from the device's memory: every example with its own caption, and the same run however often it stops."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.miniature import resident
from imagen_video_jax import checkpoint
from imagen_video_jax.data.embed_captions import embed_data
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.errors import DIVERGED, UserError
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training import guard
from imagen_video_jax.training.inputs import Inputs
from imagen_video_jax.training.optimizer import OptimizerConfig
from imagen_video_jax.training.teachers import find_teacher, weights_of
from imagen_video_jax.training.train_config import TrainConfig
from tests.stages.stage_kinds import NAMES, smallest
from tests.text.fake_encoder import WIDTH, FakeEncoder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("resident")
    write_motion_shapes(folder / "data", clips=5, images=4, seed=0, frames=32, height=12, width=20, workers=1)
    stage = smallest(NAMES[0])
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text_width=WIDTH))
    embed_data([str(folder / "data")], folder / "embeddings", FakeEncoder(max_length=12))
    return TrainConfig(
        stage,
        scale="tiny",
        data=str(folder / "data"),
        embeddings=str(folder / "embeddings"),
        batch_size=3,
        image_batch_size=2,
        steps=4,
        checkpoint_every=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=1),
        mesh=MeshShape(data=1),
    )


def test_every_example_is_drawn_with_one_of_its_own_captions(config):
    inputs = Inputs(config)
    examples, texts = resident.read(config, inputs)
    assert {kind: held.video_NTHWC.shape[:2] for kind, held in examples.items()} == {"video": (5, 4), "image": (4, 1)}
    for kind, of in (("video", inputs.source.videos), ("image", inputs.source.images)):
        batch = examples[kind].draw(jax.device_put(texts), jax.random.key(0), 64).check()
        assert set(np.asarray(batch.id_B)) == set(range(len(of)))
        said = set()
        for number, text_LD, mask_L in zip(*map(np.asarray, (batch.id_B, batch.text_BLD, batch.text_mask_BL))):
            own = {inputs.embeddings.lookup(caption).tobytes() for caption in of[number].captions}
            assert text_LD[mask_L].tobytes() in own
            assert not text_LD[~mask_L].any()
            said.add(text_LD.tobytes())
        assert len(said) > len(of), "more than one caption of an example is used"


def test_stopped_and_run_again_it_is_the_same_run(config, tmp_path):
    def params_after(*lengths: int) -> dict[str, bytes]:
        workdir = tmp_path / "-".join(map(str, lengths))
        for steps in lengths:
            resident.train(dataclasses.replace(config, steps=steps), workdir, updates=2)
        found = find_teacher(str(workdir), config.stage.name)
        weights = weights_of(found.path, config.stage.name, Stage(found.stage).network.abstract)
        return {name: np.asarray(leaf).tobytes() for name, leaf in checkpoint.flatten(weights).items()}

    whole, two, first = params_after(4), params_after(2, 4), params_after(2)
    assert whole == two
    assert whole != first


def test_a_cooled_run_that_is_made_longer_starts_with_a_new_guard(config, tmp_path):
    cooled = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, decay="cosine"))
    for steps, counted in ((2, 2), (4, 2), (4, 2)):
        resident.train(dataclasses.replace(cooled, steps=steps), tmp_path, updates=2)
        newest = checkpoint.require_newest(tmp_path)
        assert int(newest.name) == steps
        assert int(checkpoint.restore(newest, "guard", guard.initial())["counted"]) == counted


def test_steps_that_are_no_multiple_of_a_call_are_refused(config, tmp_path):
    for updates in (3, 0, -2):
        with pytest.raises(UserError, match=f"multiple of the updates of a call, got 4 and {updates}"):
            resident.train(config, tmp_path / "new", updates=updates)
    assert not (tmp_path / "new").exists()


def test_a_run_whose_updates_do_not_count_ends_and_saves_nothing(config, tmp_path):
    step = dataclasses.replace(config.step, guard=guard.GuardConfig(in_a_row=2))
    diverging = dataclasses.replace(config.optimizer, learning_rate=1e38)
    with pytest.raises(UserError, match="training diverged before step") as raised:
        resident.train(dataclasses.replace(config, optimizer=diverging, step=step), tmp_path, updates=4)
    assert raised.value.exit_code == DIVERGED
    assert not checkpoint.committed_steps(tmp_path / "checkpoints")


def test_several_devices_are_refused_with_the_field_to_set(config, tmp_path):
    several = dataclasses.replace(config, mesh=MeshShape(data=2), batch_size=2)
    with pytest.raises(UserError, match=r"one device, the mesh has 2; add --config\.mesh\.data=1"):
        resident.train(several, tmp_path, updates=2)


def test_data_without_what_the_batches_ask_for_are_refused(config, tmp_path):
    config = dataclasses.replace(config, batch_size=0, image_batch_size=2)
    inputs = Inputs(config)
    inputs.source = dataclasses.replace(inputs.source, images=())
    with pytest.raises(UserError, match="holds nothing to train on"):
        resident.read(config, inputs)
