"""The scorer picks the caption that is true of a clip, also in other words, and tells a single wrong fact."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from experiments.studies.train_scorer import FACTS, all_said, fits, neighbour, picks, said_of
from imagen_video_jax.data.motion_shapes import captions_of, make_scene, render, scene_of
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.scorer import WEIGHTS, Scorer
from imagen_video_jax.video.frames import resize_uint8

COUNT = 60


@pytest.fixture(scope="module")
def scorer():
    return Scorer.load()


@pytest.fixture(scope="module")
def clips():
    """Half of combinations that were in no video and no caption of its training."""
    scenes = [make_scene(51, i, split=split) for split in ("held_out", "validation") for i in range(COUNT // 2)]
    return scenes, [render(scene, frames=32, height=48, width=80, fps=12.0) for scene in scenes]


@pytest.mark.parametrize("paraphrase", [False, True])
def test_it_picks_the_caption_among_50_and_against_one_with_a_wrong_fact(scorer, clips, paraphrase):
    scenes, videos = clips
    scores = picks(scorer, videos, scenes, paraphrase=paraphrase, pool=50, seed=0)
    assert scores["pool"]["accuracy"] >= 0.9
    assert scores["pair"]["accuracy"] >= 0.9


def test_it_still_picks_right_what_has_been_through_12x20_pixels_at_3_fps(scorer, clips):
    scenes, videos = clips
    small = [resize_uint8(video_THWC[::4], 12, 20) for video_THWC in videos]
    assert picks(scorer, small, scenes, paraphrase=False, pool=50, seed=0)["pool"]["accuracy"] >= 0.8


def test_noise_scores_no_caption_high_and_captions_of_other_clips_are_picked_at_chance(scorer, clips):
    scenes, videos = clips
    strangers = [make_scene(99, i) for i in range(COUNT)]
    assert picks(scorer, videos, strangers, paraphrase=False, pool=50, seed=0)["pool"]["accuracy"] < 0.1


def test_features_are_unit_vectors_that_do_not_depend_on_the_company(scorer, clips):
    scenes, videos = clips
    texts = [captions_of(scene, 1)[0] for scene in scenes]
    video_ND, text_ND = scorer.video_features(videos[:34]), scorer.text_features(texts[:34])
    for features, alone in (
        (video_ND, scorer.video_features(videos[33:34])),
        (text_ND, scorer.text_features(texts[33:34])),
    ):
        assert (features.shape, features.dtype) == ((34, 64), np.float32)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(alone[0], features[33], atol=1e-5)
    assert scorer.video_features([]).shape == scorer.text_features([]).shape == (0, 64)


def test_unknown_words_case_and_punctuation_change_nothing(scorer):
    plain, dressed = scorer.text_features(["a red circle moves left", "A red, QZXY circle moves left!"])
    np.testing.assert_allclose(plain, dressed, atol=1e-5)
    assert np.isfinite(scorer.text_features(["", "qzxy", "red " * 100])).all()


def test_the_weights_are_small_and_damage_to_them_is_a_one_line_error(tmp_path):
    assert WEIGHTS.stat().st_size < 3_000_000
    with pytest.raises(UserError, match="cannot be read"):
        Scorer.load(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        Scorer.load(tmp_path / "cut.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        Scorer.load(tmp_path / "plain.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors", {"words": '["a"]'})
    with pytest.raises(UserError, match="another network"):
        Scorer.load(tmp_path / "other.safetensors")


# What the training calls right and wrong.


def test_a_caption_fits_every_video_of_which_what_it_mentions_is_true():
    black, grey = (scene_of(colour="pink", motion="up", background=ground) for ground in ("black", "grey"))
    other = scene_of(colour="pink", motion="down", background="black")
    said = [said_of(black, text, paraphrase=False) for text in ("a circle", "a circle on a black background")]
    videos = [said_of(scene, "", paraphrase=False) for scene in (black, grey, other)]
    facts = np.array([one.facts for one in videos])
    fit = fits(facts, np.array([one.facts for one in said]), np.array([one.mentioned for one in said]))
    np.testing.assert_array_equal(fit, [[True, True], [True, False], [False, False]])


def test_the_captions_of_a_still_image_say_nothing_of_motion():
    said = all_said(scene_of(colour="pink", image=True))[0]
    assert dict(zip(FACTS, said.mentioned)) == {
        "shape": True, "colour": True, "motion": False, "word": False, "style": False,
        "size": "small" in said.caption, "background": "background" in said.caption,
    }  # fmt: skip


def test_a_neighbour_differs_in_one_fact_and_is_never_held_out():
    rng = np.random.default_rng(0)
    changed = set()
    for index in range(200):
        scene = make_scene(3, index, image=index % 3 == 0)
        other = neighbour(scene, rng)
        different = {f.name for f in dataclasses.fields(scene) if getattr(scene, f.name) != getattr(other, f.name)}
        assert len(different) == 1
        assert different <= set(FACTS)
        assert not other.held_out
        changed |= different
    assert changed == set(FACTS)
