"""CLIP score and R-precision on features whose answer is known, and what is measured on pixels."""

import numpy as np
import pytest

from imagen_video_jax.evaluation import steadiness
from imagen_video_jax.evaluation.metrics import Options, VideoSet, measure
from imagen_video_jax.evaluation.retrieval import r_precision, similarity_scores


def test_the_score_is_a_hundred_times_the_mean_cosine_of_the_frames():
    text = np.array([[1.0, 0.0], [0.0, 2.0]])
    frames = [np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0]])]
    np.testing.assert_allclose(similarity_scores(frames, text), [50.0, 100 / np.sqrt(2)])


def test_r_precision_is_the_share_of_frames_that_find_their_caption():
    text = np.eye(4)
    captions = list("abcd")
    right = [np.eye(4)[[i]] for i in range(4)]
    assert r_precision(right, text, captions).tolist() == [1, 1, 1, 1]
    wrong = [np.eye(4)[[(i + 1) % 4]] for i in range(4)]
    assert r_precision(wrong, text, captions).tolist() == [0, 0, 0, 0]
    half = [np.eye(4)[[i, (i + 1) % 4]] for i in range(4)]
    assert r_precision(half, text, captions).tolist() == [0.5] * 4
    # Equal features find nothing: a tie is no hit.
    assert r_precision([np.ones((1, 4))] * 4, text, captions).tolist() == [0] * 4


def test_videos_of_the_same_caption_do_not_compete_and_chance_is_one_in_the_pool():
    assert r_precision([np.ones((1, 2))] * 3, np.array([[1.0, 0], [1, 0], [0, 1]]), ["a", "a", "b"])[0] == 0
    assert r_precision([np.array([[1.0, 0]])] * 2, np.array([[1.0, 0], [1, 0]]), ["a", "a"]).tolist() == [1, 1]
    rng = np.random.default_rng(0)
    videos, texts = [rng.normal(size=(1, 8)) for _ in range(2000)], rng.normal(size=(2000, 8))
    share = r_precision(videos, texts, [str(i) for i in range(2000)], pool=4).mean()
    assert share == pytest.approx(1 / 4, abs=0.03)


def still(frames=6, value=100):
    return np.full((frames, 4, 4, 3), value, np.uint8)


def test_a_still_video_has_no_drift_no_flicker_and_no_motion():
    assert steadiness.measures(still()).tolist() == [0, 0, 0]
    assert steadiness.measures(still(1)).tolist() == [0, 0, 0]


def test_steady_change_is_drift_and_not_flicker_and_pulsing_is_flicker():
    steady = np.stack([still(1, 100 + 2 * t)[0] for t in range(6)])
    assert steadiness.flicker(steady) == pytest.approx(0)
    assert steadiness.colour_drift(steady) == pytest.approx(np.sqrt(3) * 2 * np.mean([1, 2, 3, 4, 5]))
    assert steadiness.motion(steady) == pytest.approx(2)
    pulsing = np.stack([still(1, 100 + 4 * (t % 2))[0] for t in range(6)])
    assert steadiness.flicker(pulsing) == pytest.approx(np.sqrt(3) * 4)


def test_a_shape_that_moves_is_motion_alone():
    video = np.zeros((4, 8, 8, 3), np.uint8)
    for t in range(4):
        video[t, 2:4, t : t + 2] = 255
    drift, flicker, motion = steadiness.measures(video)
    assert (drift, flicker) == (0, 0)
    assert motion == pytest.approx(255 * 4 / 64)


def test_colour_shift_compares_each_frame_with_the_input_of_its_moment():
    low = np.stack([still(1, 10 * t)[0, :2, :2] for t in range(3)])
    assert steadiness.colour_shift(np.repeat(low, 2, axis=0).repeat(3, 1).repeat(3, 2), low) == 0
    shifted = np.repeat(low, 2, axis=0) + np.array([3, 0, 4], np.uint8)
    assert steadiness.colour_shift(shifted, low) == pytest.approx(5)


def test_the_judge_counts_a_video_only_where_its_labels_name_what_it_reads():
    features = {"judge": [np.zeros((1, 5))] * 3}
    labels = [{"colour": "red", "shape": "square"}, {"colour": "red"}, {"style": "flat"}]
    found = measure("judge", None, VideoSet(features, labels=labels), Options())
    # The third asks for no colour, shape or motion, so it is neither right nor wrong in them.
    assert (found["judge"], found["judge_colour"], found["judge_shape"]) == (0.5, 1.0, 0.0)
    only_style = measure("judge", None, VideoSet({"judge": [np.zeros((1, 5))]}, labels=labels[2:]), Options())
    assert "judge" not in only_style
