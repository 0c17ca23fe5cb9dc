"""The judge reads real clips nearly without error, and a wrong label does not pass."""

import dataclasses
import itertools

import numpy as np
import pytest
import safetensors.numpy

from imagen_video_jax.data.motion_shapes import COLOURS, MOTIONS, SHAPES, WORDS, make_scene, render, scene_of
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.judge import ATTRIBUTES, WEIGHTS, Judge, canonical, rate
from imagen_video_jax.video.frames import resize_uint8

COUNT = 100
SEEN = tuple(name for name in ATTRIBUTES if name != "word")  # words have a test of their own


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.fixture(scope="module")
def clips():
    """Scenes the judge never saw, half of them of combinations it never saw, at the final size."""
    scenes = [make_scene(31, i, split=split) for split in ("held_out", "validation") for i in range(COUNT)]
    return scenes, [render(scene) for scene in scenes]


def base_view(video_THWC):
    """8x12x20 at 3 fps, brought back up."""
    return np.repeat(resize_uint8(resize_uint8(video_THWC[::8], 12, 20), 96, 160), 8, axis=0)


def test_it_reads_98_of_100_real_clips_right_at_the_final_size(judge, clips):
    scenes, videos = clips
    scores = judge.score(videos, scenes)
    assert scores["colour"]["of"] == 2 * COUNT
    for name in SEEN:
        assert scores[name]["accuracy"] >= 0.98, name


def test_it_reads_95_of_100_right_when_a_clip_has_been_through_12x20_pixels_at_3_fps(judge, clips):
    scenes, videos = clips
    scores = judge.score([base_view(video) for video in videos], scenes)
    for name in SEEN:
        assert scores[name]["accuracy"] >= 0.95, name


def test_it_reads_small_clips_as_they_are(judge, clips):
    scenes, videos = clips
    small = [resize_uint8(video_THWC[::8], 12, 20) for video_THWC in videos[:COUNT]]
    assert judge.score(small, scenes[:COUNT])["all"]["accuracy"] >= 0.95


def test_labels_that_belong_to_other_clips_score_near_chance(judge, clips):
    scenes, videos = clips
    strangers = [make_scene(99, i, split="held_out") for i in range(COUNT)]
    scores = judge.score(videos[:COUNT], strangers)
    for name, names in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
        assert scores[name]["accuracy"] < 1 / len(names) + 0.12, name
    assert scores["all"]["accuracy"] <= 0.03


def test_it_sees_when_a_single_fact_is_wrong(judge):
    asked = scene_of(shape="star", colour="blue", motion="left", size="large")
    for name, other in (("shape", "circle"), ("colour", "red"), ("motion", "right")):
        made = dataclasses.replace(asked, **{name: other})
        scores = judge.score([render(made)], [asked])
        assert {n: scores[n]["accuracy"] for n in ("colour", "shape", "motion", "all")} == {
            n: float(n not in (name, "all")) for n in ("colour", "shape", "motion", "all")
        }


def test_a_clip_reads_the_same_at_every_length_and_size(judge):
    scene = scene_of(shape="pyramid", colour="green", motion="up", size="large")
    sizes = [(8, 12, 20, 3.0), (16, 24, 40, 6.0), (32, 48, 80, 12.0), (64, 96, 160, 24.0)]
    readings = judge.read([render(scene, frames=T, height=H, width=W, fps=fps) for T, H, W, fps in sizes])
    for reading in readings:
        assert (reading.shape, reading.colour, reading.motion) == ("pyramid", "green", "up")
        assert set(reading.confidence) == set(ATTRIBUTES)
        assert min(reading.confidence.values()) > 0.5


def test_one_video_reads_as_it_does_among_others(judge, clips):
    _, videos = clips
    among = judge.read(videos[:40])
    alone = judge(videos[39])
    assert (alone.shape, alone.colour, alone.motion) == (among[39].shape, among[39].colour, among[39].motion)
    assert alone.confidence == pytest.approx(among[39].confidence, abs=1e-5)


def test_it_tells_the_styles_of_images_apart(judge):
    scenes = [make_scene(41, i, split="validation", image=True) for i in range(COUNT)]
    scores = judge.score([render(scene, frames=1) for scene in scenes], scenes)
    assert scores["style"]["accuracy"] >= 0.9
    assert scores["colour"]["accuracy"] >= 0.95


def test_it_reads_the_words_of_text_clips_and_sees_none_elsewhere(judge, clips):
    texts = [scene_of(word=word, colour=colour) for word, colour in zip(WORDS, itertools.cycle(COLOURS))]
    videos = [render(scene) for scene in texts]
    assert judge.score(videos, texts)["word"]["accuracy"] >= 0.95
    assert judge.score([base_view(video) for video in videos], texts)["word"]["accuracy"] >= 0.8
    scenes, videos = clips
    wordless = [video for scene, video in zip(scenes, videos) if not scene.word]
    assert np.mean([reading.word == "" for reading in judge.read(wordless)]) >= 0.98


def test_plain_rows_of_labels_serve_as_scenes_and_missing_labels_are_not_scored(judge):
    video_THWC = render(scene_of(colour="pink", shape="cube"))
    scores = judge.score([video_THWC], [{"colour": "pink", "shape": ""}])
    assert scores["colour"] == scores["all"] == rate(1, 1)
    assert set(scores) == {"colour", "all"}


def test_noise_gives_a_reading_without_confidence(judge):
    rng = np.random.default_rng(0)
    readings = judge.read([rng.integers(0, 256, (64, 96, 160, 3), dtype=np.uint8) for _ in range(8)])
    assert np.mean([reading.confidence["shape"] for reading in readings]) < 0.9


def test_the_interval_of_a_rate_holds_the_rate_and_stays_in_range():
    """Wilson's interval for 10 of 10 is [0.7225, 1], for 5 of 10 [0.2366, 0.7634]."""
    assert rate(10, 10)["interval"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert rate(5, 10)["interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)


def test_frames_are_chosen_over_the_whole_length():
    video_THWC = np.zeros((16, 24, 40, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None]
    np.testing.assert_array_equal(canonical(video_THWC)[:, 0, 0, 0], np.arange(0, 16, 2))
    assert canonical(video_THWC[:1]).shape == (8, 24, 40, 3)
    with pytest.raises(ValueError, match="expected uint8"):
        canonical(video_THWC.astype(np.float32))


def test_the_weights_are_small_and_damage_to_them_is_a_one_line_error(tmp_path):
    assert WEIGHTS.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="cannot be read"):
        Judge.load(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        Judge.load(tmp_path / "cut.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="another network"):
        Judge.load(tmp_path / "other.safetensors")
