"""The miniature in the package: whole, small, of seven trained stages; and what is said where it cannot be used."""

import json
import shutil

import pytest

from imagen_video_jax import shipped
from imagen_video_jax.data import motion_shapes
from imagen_video_jax.errors import NO_CHECKPOINT, UserError


def test_it_holds_the_seven_stages_of_the_mini_scale_in_24_mb_and_no_path_of_the_machine_that_made_it():
    folder = shipped.miniature()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6
    stages = json.loads((folder / "cascade.json").read_text())["stages"]
    assert len(stages) == 7
    for path in files:
        if path.suffix in (".json", ".md"):
            assert "/tmp" not in path.read_text()
            assert "/home" not in path.read_text()


def test_a_damaged_or_missing_one_says_how_to_get_another(tmp_path):
    shutil.copytree(shipped.FOLDER, tmp_path / "miniature")
    weights = next((tmp_path / "miniature").glob("*/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        UserError, match=r"damaged.*model\.safetensors.*--cascade FILE.*experiments\.miniature\.build"
    ) as found:
        shipped.miniature(tmp_path / "miniature")
    assert found.value.exit_code == NO_CHECKPOINT
    with pytest.raises(UserError, match="--cascade FILE"):
        shipped.miniature(tmp_path / "nothing")


def test_prompts_about_its_world_are_known_from_others():
    for index in range(200):
        scene = motion_shapes.make_scene(9, index, split="validation")
        assert not shipped.outside_note([*motion_shapes.captions_of(scene, 2), motion_shapes.paraphrase_of(scene)])
    note = shipped.outside_note(["a red circle", "a cat plays the piano", ""])
    assert "a cat plays the piano" in note
    assert "1 more" in note
    assert "\n" not in note
