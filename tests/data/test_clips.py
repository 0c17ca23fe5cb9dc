"""Clips: fixed size, rate and length, cut by the seed alone."""

import numpy as np
import pytest

from imagen_video_jax.data.clips import ClipSpec, ShortClipError, cut_clip, frames_needed, is_short
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.cover import cover, cover_size
from imagen_video_jax.video.files import Video, read_video


def clock(count=64, height=32, width=48, fps=24.0) -> Video:
    """Every pixel of frame t is 3 t: a clip tells which frames it is made of."""
    return Video(
        np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 3, (count, height, width, 3)), fps
    )


def shown(clip_THWC) -> list[int]:
    assert (clip_THWC == clip_THWC[:, :1, :1, :1]).all()
    return (clip_THWC[:, 0, 0, 0] // 3).tolist()


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_clip_has_the_size_and_the_rate_of_the_spec():
    clip = cut_clip(clock(), ClipSpec(8, 12, 20, 3.0), rng())
    assert (clip.shape, clip.dtype) == ((8, 12, 20, 3), np.uint8)
    frames = shown(clip)
    assert np.diff(frames).tolist() == [8] * 7


def test_every_window_and_every_phase_of_the_frame_skip_occurs():
    starts = {shown(cut_clip(clock(), ClipSpec(8, 12, 20, 3.0), rng(seed)))[0] for seed in range(200)}
    assert starts == set(range(64 - 57 + 1))


def test_a_clip_that_fits_exactly_starts_at_the_first_frame():
    video = clock(57)
    assert frames_needed(ClipSpec(8, 12, 20, 3.0), 24) == 57
    assert not is_short(video, ClipSpec(8, 12, 20, 3.0))
    assert shown(cut_clip(video, ClipSpec(8, 12, 20, 3.0), rng(3)))[0] == 0


def test_a_short_video_repeats_its_last_frame_or_is_refused():
    spec = ClipSpec(8, 12, 20, 24.0)
    assert is_short(clock(5), spec)
    assert shown(cut_clip(clock(5), spec, rng())) == [0, 1, 2, 3, 4, 4, 4, 4]
    with pytest.raises(ShortClipError, match=r"5 frames at 24 frames/s, 8 at 24 need 8"):
        cut_clip(clock(5), ClipSpec(8, 12, 20, 24.0, short="skip"), rng())


def test_a_single_frame_has_no_rate():
    spec = ClipSpec(1, 12, 20, 24.0)
    assert spec.fps == 0
    assert cut_clip(Video(np.zeros((1, 9, 9, 3), np.uint8), 0.0), spec, rng()).shape == (1, 12, 20, 3)
    # A video then shows any one of its frames.
    assert {shown(cut_clip(clock(6), spec, rng(seed)))[0] for seed in range(60)} == set(range(6))


def test_the_seed_decides_and_nothing_else():
    video = Video(rng().integers(0, 256, (40, 30, 50, 3)).astype(np.uint8), 24.0)
    spec = ClipSpec(4, 20, 20, 8.0, crop="random")
    np.testing.assert_array_equal(cut_clip(video, spec, rng(5)), cut_clip(video, spec, rng(5)))
    assert any((cut_clip(video, spec, rng(5)) != cut_clip(video, spec, rng(seed))).any() for seed in range(6, 9))


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (720, 1280), (1280, 720), (7, 501), (12, 20)])
@pytest.mark.parametrize("target", [(12, 20), (20, 12), (24, 24)])
def test_the_frame_covers_the_target_with_its_aspect_and_no_more(size, target):
    height, width = cover_size(*size, height=target[0], width=target[1])
    assert height >= target[0]
    assert width >= target[1]
    assert height == target[0] or width == target[1]
    assert abs(height * size[1] / size[0] - width) <= max(1, size[1] / size[0])


def test_a_centre_crop_is_centred_and_a_random_crop_goes_everywhere():
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, None, :, None], (4, 16, 48, 3))
    centred = cut_clip(Video(ramp, 8.0), ClipSpec(4, 16, 16, 8.0), rng())
    assert centred[0, 0, :, 0].tolist() == list(range(16, 32))
    spec = ClipSpec(4, 16, 16, 8.0, crop="random")
    assert {int(cut_clip(Video(ramp, 8.0), spec, rng(seed))[0, 0, 0, 0]) for seed in range(400)} == set(range(33))


def test_a_part_lies_anywhere_on_its_grid_inside_of_what_the_clip_would_be():
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, None, :, None], (4, 16, 48, 3))
    for crop, begins in (("centre", {8, 12, 16, 20}), ("random", set(range(41)))):
        spec = ClipSpec(4, 16, 32 - 12, 8.0, crop=crop, part=(12, 8), grid=4)
        clips = [cut_clip(Video(ramp, 8.0), spec, rng(seed)) for seed in range(400)]
        assert {clip.shape for clip in clips} == {(4, *spec.size, 3)} == {(4, 12, 8, 3)}
        assert {int(clip[0, 0, 0, 0]) for clip in clips} == ({14, 18, 22, 26} if crop == "centre" else begins)
    with pytest.raises(UserError, match="is not in a clip of 16 x 20"):
        ClipSpec(4, 16, 20, 8.0, part=(12, 24))


def test_left_stays_left():
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, None, :, None], (4, 16, 48, 3))
    for seed in range(50):
        clip = cut_clip(Video(ramp, 8.0), ClipSpec(4, 8, 16, 8.0, crop="random"), rng(seed))
        assert (np.diff(clip[0, 0, :, 0].astype(int)) >= 0).all()


def test_fine_stripes_become_grey_and_do_not_alias():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = cut_clip(Video(stripes, 0.0), ClipSpec(1, 8, 8), rng())
    assert np.abs(small[:, :, 1:-1].astype(int) - 128).max() <= 6


def test_a_covering_video_gives_the_same_clip_as_the_original():
    """What lets the cache keep small frames."""
    video = Video(rng().integers(0, 256, (30, 33, 57, 3)).astype(np.uint8), 24.0)
    covered = Video(cover(video.frames_THWC, height=12, width=20), 24.0)
    for crop in ("centre", "random"):
        spec = ClipSpec(6, 12, 20, 8.0, crop=crop)
        np.testing.assert_array_equal(cut_clip(video, spec, rng(1)), cut_clip(covered, spec, rng(1)))


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"height": 0}, {"fps": 0}, {"fps": float("nan")}, {"crop": "left"}, {"short": "stretch"}],
)
def test_impossible_specs_are_refused(wrong):
    with pytest.raises(UserError):
        ClipSpec(**{"frames": 8, "height": 12, "width": 20, "fps": 3.0, **wrong})


def test_a_real_film_becomes_a_clip(real_clips):
    video = read_video(real_clips["carphone_pristine"])
    assert video.frames_THWC.shape == (120, 144, 193, 3)  # stored 176 wide, with pixels wider than high
    assert video.fps == pytest.approx(30000 / 1001)
    clip = cut_clip(video, ClipSpec(16, 48, 80, 6.0), rng())
    assert clip.shape == (16, 48, 80, 3)
    assert 40 < clip.mean() < 215
    # Neighbouring frames of one shot are alike, yet not the same: time passes.
    assert 0.5 < np.abs(np.diff(clip.astype(int), axis=0)).mean() < 40


def test_padding_shows_the_whole_frame_within_black_bars():
    video = Video(np.full((6, 20, 20, 3), 200, np.uint8), 24.0)
    clip = cut_clip(video, ClipSpec(4, 12, 20, 24.0, crop="pad"), np.random.default_rng(0))
    assert clip.shape == (4, 12, 20, 3)
    assert (clip[:, :, 4:16] == 200).all()
    assert (clip[:, :, :4] == 0).all()
    assert (clip[:, :, 16:] == 0).all()
