"""A workdir goes on with the settings it was trained with, also after the program got new ones."""

import dataclasses
import pathlib

import pytest

from imagen_video_jax.errors import UserError
from imagen_video_jax.training.optimizer import OptimizerConfig
from imagen_video_jax.training.resume import as_dict, check_goes_on, identity
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
