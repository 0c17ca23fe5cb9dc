"""A workdir goes on with the settings it was trained with, also after the program got new ones."""

import dataclasses
import pathlib

import pytest

from imagen_video_jax.data.examples import Example, Source
from imagen_video_jax.errors import UserError
from imagen_video_jax.training.agreement import contents_of
from imagen_video_jax.training.optimizer import OptimizerConfig
from imagen_video_jax.training.resume import as_dict, check_goes_on, identity, meta_of, note_other_data
from imagen_video_jax.training.start import rate_changes
from imagen_video_jax.training.train_config import TrainConfig
from tests.stages.stage_kinds import NAMES, tiny

CONFIG = TrainConfig(tiny(NAMES[1]), scale="tiny")


def goes_on(stored: dict, config: TrainConfig) -> None:
    check_goes_on(pathlib.Path("run"), {"identity": stored}, config)


def test_the_same_settings_go_on_and_another_one_is_named():
    goes_on(identity(CONFIG), CONFIG)
    goes_on(identity(CONFIG), dataclasses.replace(CONFIG, steps=7))
    with pytest.raises(UserError, match=r"seed: 0 -> 1\)"):
        goes_on(identity(CONFIG), dataclasses.replace(CONFIG, seed=1))


def test_a_setting_that_is_new_had_its_default_before():
    old = {name: value for name, value in identity(CONFIG).items() if name != "optimizer.state_dtype"}
    goes_on(old, CONFIG)
    changed = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(state_dtype="bfloat16"))
    with pytest.raises(UserError, match=r"optimizer\.state_dtype: float32 -> bfloat16"):
        goes_on(old, changed)


def test_a_setting_that_is_no_more_is_named():
    with pytest.raises(UserError, match=r"stage\.old: 3 -> None"):
        goes_on(identity(CONFIG) | {"stage.old": 3}, CONFIG)


@pytest.mark.parametrize(
    ("decay", "steps", "changes"), [("cosine", 7, True), ("cosine", 6, False), ("constant", 7, False)]
)
def test_only_a_run_whose_rate_jumps_gets_a_new_guard(decay, steps, changes):
    config = dataclasses.replace(CONFIG, steps=6, optimizer=OptimizerConfig(decay=decay))
    assert rate_changes(as_dict(config), dataclasses.replace(config, steps=steps)) == changes


def test_data_that_changed_between_two_runs_are_noted_and_not_refused(tmp_path, capsys):
    (tmp_path / "0.mp4").write_bytes(b"a clip")

    def contents(caption: str) -> str:
        return contents_of(Source("data", (Example(path=tmp_path / "0.mp4", captions=(caption,), id=0),), ()))

    meta = {"step": 7} | meta_of(CONFIG, {}, contents("a cat"), seconds=0.0, left_out=0)
    note_other_data(meta, contents("a cat"))
    note_other_data({"step": 7}, contents("a cat"))  # of a version that noted nothing
    assert capsys.readouterr().err == ""
    note_other_data(meta, contents("a dog"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint 7 was trained on other data (1 videos, 0 images, " in line
    (tmp_path / "0.mp4").write_bytes(b"another clip")
    note_other_data(meta, contents("a cat"))
    assert "other data" in capsys.readouterr().err
