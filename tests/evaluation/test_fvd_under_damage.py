"""The study experiments/studies/fvd_under_damage.py with features that cost nothing."""

import json

import numpy as np
import pytest

from experiments.studies import fvd_under_damage as study
from imagen_video_jax.evaluation.features import Extractor


def looks(video_THWC):
    """Where the light is in every frame, how it moves, and how sharp the frames are."""
    video = video_THWC.astype(np.float32)
    light = video.reshape(len(video), 96, 2, 80, 3).mean((1, 3, 4))
    sharp = np.abs(np.diff(video, axis=2)).mean((1, 2, 3))
    return np.concatenate([light.ravel(), np.diff(light, axis=0).ravel(), 10 * sharp])[None]


@pytest.fixture(scope="module")
def clips():
    return study.clips_of(4)


def test_a_set_is_at_distance_zero_from_itself_and_damage_of_every_kind_takes_it_further_away(clips, tmp_path):
    rows = study.table(clips, Extractor("i3d", "1", study.FRAMES, looks), tmp_path)
    assert rows == json.loads((tmp_path / "table.json").read_text())
    assert len(rows) == 17
    assert rows[0]["fvd"] < 1e-3
    found = study.curves(rows)
    assert {name: len(own) for name, own in found.items()} == dict.fromkeys(study.DAMAGES, 5)
    assert all(study.grows(own) for own in found.values()), study.markdown(rows)
    assert study.plot(rows).count("<circle") == 20
    assert study.markdown(rows).count("| yes |") == 4
    # A dip is said.
    found["blur"][2]["fvd"] = 0.0
    assert study.markdown(rows).count("| no |") == 1


def test_a_stopped_study_goes_on_and_no_clip_is_looked_at_twice(clips, tmp_path, monkeypatch):
    seen = []

    def counted(video_THWC):
        if len(seen) == 9:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append(video_THWC.shape)
        return video_THWC.mean((1, 2, 3))[None]

    extractor = Extractor("i3d", "1", study.FRAMES, counted)
    with pytest.raises(KeyboardInterrupt):
        study.table(clips[:3], extractor, tmp_path)
    study.table(clips[:3], extractor, tmp_path)
    assert len(seen) - 1 == 17 * 3


def test_shuffling_and_freezing_leave_the_frames_as_they_are(clips):
    for i, clip in enumerate(clips):
        rng = np.random.default_rng(i)
        shuffled = study.shuffle(clip, 16, rng)
        assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in clip)
        np.testing.assert_array_equal(study.freeze(clip, 4, rng)[:8], clip[[0, 0, 0, 0, 4, 4, 4, 4]])
        np.testing.assert_array_equal(study.shuffle(clip, 1, rng), clip)
    flat = np.full((1, 12, 20, 3), 90, np.uint8)
    np.testing.assert_array_equal(study.blur(flat, 4, rng), flat)
    assert np.std(study.noise(flat, 8, rng).astype(float)) == pytest.approx(8, rel=0.2)
