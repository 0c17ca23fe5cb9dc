"""The embedded data set: what a scene says is what its pixels show, at every size and rate, again and again."""

import colorsys
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from imagen_video_jax.data.motion_shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    STYLES,
    WORDS,
    captions_of,
    held_out_combinations,
    make_scene,
    paraphrase_of,
    render,
    scene_of,
    write_motion_shapes,
)
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.files import read_media
from imagen_video_jax.video.frames import resize_uint8

BASE = {"frames": 8, "height": 12, "width": 20, "fps": 3.0}


def coloured(video_THWC):
    """How much of each pixel belongs to the shape: backgrounds have no hue, shapes do."""
    video_THWC = video_THWC.astype(float)
    return np.clip((video_THWC.max(-1) - video_THWC.min(-1)) / 60, 0, 1)


def centroids(video_THWC):
    """(x, y) of the shape per frame, as fractions of the frame; y points down."""
    weight_THW = coloured(video_THWC)
    _, H, W = weight_THW.shape
    total_T = weight_THW.sum((1, 2))
    x_T = (weight_THW.sum(1) @ (np.arange(W) + 0.5)) / total_T / W
    y_T = (weight_THW.sum(2) @ (np.arange(H) + 0.5)) / total_T / H
    return x_T, y_T


def areas(video_THWC):
    return coloured(video_THWC).mean((1, 2))


def hue(rgb):
    return 360 * colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255))[0]


def hue_gap(a, b):
    return abs((a - b + 180) % 360 - 180)


def test_a_scene_is_a_pure_function_of_seed_index_and_split():
    assert make_scene(1, 2) == make_scene(1, 2)
    every = itertools.product((1, 2), range(20), ("train", "validation"), (False, True))
    assert len({make_scene(seed, i, split=split, image=image) for seed, i, split, image in every}) == 2 * 20 * 2 * 2
    np.testing.assert_array_equal(render(make_scene(1, 2), **BASE), render(make_scene(1, 2), **BASE))


def test_a_scene_never_changes_between_versions():
    """A data set that is half written, and published scores, rely on it; if it must change, raise VERSION."""
    scene = make_scene(0, 0)
    assert (scene.shape, scene.colour, scene.motion, scene.background) == ("ring", "red", "spin", "grey")
    assert captions_of(scene, 1) == ["on a grey background, a small red ring spins"]


def test_held_out_combinations_are_a_tenth_and_never_occur_in_training_or_validation():
    held_out = set(held_out_combinations())
    assert len(held_out) == round(len(SHAPES) * len(COLOURS) * len(MOTIONS) / 10)
    for split, image in itertools.product(("train", "validation"), (False, True)):
        scenes = [make_scene(0, i, split=split, image=image) for i in range(1500)]
        assert not any(scene.held_out for scene in scenes)
    assert all(make_scene(0, i, split="held_out").held_out for i in range(300))


def test_every_label_and_pair_of_labels_is_still_seen_in_training():
    held_out = set(held_out_combinations())
    seen = [c for c in itertools.product(SHAPES, COLOURS, MOTIONS) if c not in held_out]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        counts = {}
        for c in seen:
            counts[c[first], c[second]] = counts.get((c[first], c[second]), 0) + 1
        sizes = (len(SHAPES), len(COLOURS), len(MOTIONS))
        assert len(counts) == sizes[first] * sizes[second]
        assert min(counts.values()) >= 5


def test_training_scenes_use_every_label_and_a_tenth_are_words():
    scenes = [make_scene(5, i) for i in range(4000)]
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.shape for s in scenes} == {*SHAPES, "word"}
    assert {s.motion for s in scenes} == {*MOTIONS, "appear"}
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {s.size for s in scenes} == {*SIZES, ""}
    assert {s.word for s in scenes} == {*WORDS, ""}
    assert 0.07 < np.mean([s.shape == "word" for s in scenes]) < 0.13
    assert {s.style for s in scenes} == {"plain"}
    assert {make_scene(5, i, image=True).style for i in range(100)} == set(STYLES)


@pytest.mark.parametrize("index", range(12))
def test_the_same_motion_shows_at_any_frame_rate_and_size(index):
    scene = make_scene(11, index, split="held_out")
    full, base = render(scene), render(scene, **BASE)
    smaller = resize_uint8(full[::8], 12, 20)
    np.testing.assert_allclose(centroids(base), centroids(smaller), atol=0.02)
    assert np.abs(base.astype(float) - smaller).mean() < 7


@pytest.mark.parametrize("shape", SHAPES)
def test_motions_move_the_pixels_as_they_say(shape):
    def clip(motion, size):
        return render(scene_of(shape=shape, motion=motion, size=size), **BASE)

    for size in SIZES:
        for motion, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
            way = np.diff(centroids(clip(motion, size))[axis])
            assert (sign * way > 0).all(), motion
            assert abs(way.sum()) > 0.3, motion
        grown, shrunk, still = areas(clip("grow", size)), areas(clip("shrink", size)), areas(clip("still", size))
        assert grown[-1] > 2.5 * grown[0]
        assert shrunk[0] > 2.5 * shrunk[-1]
        assert abs(still[-1] / still[0] - 1) < 0.25
        y_T = centroids(clip("bounce", size))[1]
        assert np.ptp(y_T) > 0.3
        assert np.sum(np.diff(np.sign(np.diff(y_T))) != 0) >= 2  # it turns round at least twice


@pytest.mark.parametrize("shape", SHAPES)
def test_spinning_changes_the_picture_from_frame_to_frame_far_more_than_standing_still(shape):
    spin, still = (render(scene_of(shape=shape, motion=motion), **BASE).astype(float) for motion in ("spin", "still"))
    moved, rested = (np.abs(np.diff(video, axis=0)).mean() for video in (spin, still))
    assert moved > 4 * rested
    x_T, _ = centroids(spin.astype(np.uint8))
    assert np.ptp(x_T) < 0.15  # it stays where it is


def test_even_small_shapes_are_a_third_of_the_frame():
    for shape in SHAPES:
        inside_HW = coloured(render(dataclasses.replace(scene_of(shape=shape), extent=0.0), frames=1))[0] > 0.5
        height, width = np.ptp(np.nonzero(inside_HW.any(1))), np.ptp(np.nonzero(inside_HW.any(0)))
        assert max(height, width) + 1 >= 96 / 3, shape


def test_large_shapes_are_larger_than_small_ones():
    assert max(SIZES["small"]) * 1.25 < min(SIZES["large"])


@pytest.mark.parametrize("colour", COLOURS)
def test_hue_of_every_shape_is_nearest_to_its_own_colour(colour):
    hues = {name: hue(rgb) for name, rgb in COLOURS.items()}
    for shape in SHAPES:
        video_THWC = render(scene_of(shape=shape, colour=colour), **BASE)
        mean = video_THWC[coloured(video_THWC) > 0.9].mean(0)
        assert min(hues, key=lambda name: hue_gap(hues[name], hue(mean))) == colour


def test_colours_are_far_apart_in_hue_and_stand_out_from_every_background():
    for a, b in itertools.combinations(COLOURS.values(), 2):
        assert hue_gap(hue(a), hue(b)) > 20
    for rgb, levels in itertools.product(COLOURS.values(), BACKGROUNDS.values()):
        for level in levels:
            assert np.linalg.norm(np.array(rgb) - level) > 95


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_antialiased(shape):
    """Moving by a tenth of a pixel changes the covered area smoothly, not by whole pixels."""
    frame_HWC = render(scene_of(shape=shape, background="white"), frames=1)[0]
    share = coloured(frame_HWC)
    soft = ((share > 0.05) & (share < 0.95)).sum()
    assert soft > 10
    shifts = [coloured(render(dataclasses.replace(scene_of(shape=shape), x=x), frames=1))[0] for x in (0, 0.002)]
    change = np.abs(shifts[0] - shifts[1])
    assert 0 < change.max() < 0.4


def test_solids_have_faces_of_different_brightness_and_flat_shapes_one():
    for shape in SHAPES:
        video_THWC = render(scene_of(shape=shape, size="large"), frames=1)
        red = video_THWC[..., 0][coloured(video_THWC) > 0.99]
        levels = np.percentile(red, [10, 90])
        assert (np.ptp(levels) > 40) == (shape in ("cube", "pyramid", "cylinder")), shape


def test_the_letters_of_a_word_appear_one_after_the_other():
    area_T = areas(render(scene_of(word="HELLO")))
    steps = np.nonzero(np.diff(area_T))[0]
    assert area_T[0] > 0
    assert len(steps) == 4
    assert (np.diff(area_T) >= 0).all()
    assert steps[-1] < 64 * 2 / 3


def test_styles_change_the_picture_but_keep_the_hue():
    hues = {name: hue(rgb) for name, rgb in COLOURS.items()}
    for style, colour in itertools.product(STYLES[1:], COLOURS):
        scene = scene_of(shape="square", size="large", colour=colour, style=style, image=True)
        styled, plain = render(scene, frames=1), render(dataclasses.replace(scene, style="plain"), frames=1)
        assert np.abs(styled.astype(float) - plain).mean() > 2
        strong = styled[coloured(styled) > 0.9]
        assert hue_gap(hue(np.median(strong, axis=0)), hues[colour]) < 15, (style, colour)


def test_captions_name_colour_shape_and_motion_and_differ():
    stems = {motion: motion for motion in ("left", "right", "up", "down", "spin")}
    stems |= {"bounce": "bounc", "grow": "grow|bigger", "shrink": "shrink|smaller", "appear": "appear|one by one"}
    stems |= {"still": "still|not move|one place"}
    for i in range(300):
        scene = make_scene(3, i)
        captions = captions_of(scene, 4)
        assert len(set(captions)) == 4
        for caption in captions:
            assert scene.colour in caption
            assert (scene.word or scene.shape) in caption
            assert re.search(stems[scene.motion], caption)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $", caption), caption
            mentioned = [size for size in SIZES if size in caption.split()]
            assert mentioned in ([], [scene.size])


def test_some_captions_mention_size_and_background_and_some_do_not():
    captions = [captions_of(make_scene(3, i), 1)[0] for i in range(400)]
    for word, low, high in (("background", 0.3, 0.7), ("large", 0.1, 0.4)):
        assert low < np.mean([word in caption for caption in captions]) < high


def test_captions_of_images_name_the_style_and_no_motion():
    for i in range(200):
        scene = make_scene(3, i, image=True)
        for caption in captions_of(scene, 2):
            assert scene.style.split()[0] in caption or scene.style == "plain"
            assert not re.search("still|move|stays", caption)


def test_paraphrases_use_no_word_of_the_captions_but_the_smallest():
    scenes = [make_scene(0, i, image=image) for i in range(3000) for image in (False, True)]
    taught = set(re.findall(r"[a-z-]+", " ".join(caption for scene in scenes for caption in captions_of(scene, 2))))
    small = {"a", "an", "the", "of", "with", "on", "in", "up", "by"}
    texts = {
        paraphrase_of(scene_of(shape=shape, colour=colour, motion=motion))
        for shape, colour, motion in itertools.product(SHAPES, COLOURS, MOTIONS)
    }
    assert len(texts) == len(SHAPES) * len(COLOURS) * len(MOTIONS)
    for text in texts:
        assert not set(re.findall(r"[a-z-]+", text)) & taught - small


def test_a_label_that_does_not_exist_is_a_one_line_error():
    with pytest.raises(UserError, match=r"colour must be one of red, .* got 'beige'"):
        scene_of(colour="beige")
    with pytest.raises(UserError, match="split must be one of"):
        make_scene(0, 0, split="test")
    with pytest.raises(UserError, match="must not be negative"):
        make_scene(-1, 0)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SMALL = {"clips": 5, "images": 3, "seed": 7, "frames": 8, "height": 24, "width": 40, "fps": 3.0}


def test_a_written_data_set_is_complete_labelled_and_reads_back(tmp_path):
    calls = []
    write_motion_shapes(tmp_path, workers=1, progress=lambda done, total: calls.append((done, total)), **SMALL)
    assert calls == [(i, 8) for i in range(1, 9)]
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for i, row in enumerate(rows[:5]):
        scene = dataclasses.replace(make_scene(7, i), seconds=8 / 3)
        assert row["caption"] == row["captions"][0]
        assert len(row["captions"]) == 2
        assert {name: row[name] for name in scene.labels()} == scene.labels()
        media = read_media(tmp_path / row["path"])
        frames_THWC = render(scene, frames=8, height=24, width=40, fps=3.0)
        assert media.fps == 3.0
        assert media.frames_THWC.shape == frames_THWC.shape
        assert np.abs(media.frames_THWC.astype(float) - frames_THWC).mean() < 2
    assert read_media(tmp_path / rows[5]["path"]).fps == 0
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["held_out"] == [list(c) for c in held_out_combinations()]
    assert (metadata["clips"], metadata["images"], metadata["seed"]) == (5, 3, 7)


def test_a_run_after_an_interruption_leaves_the_same_bytes_as_an_uninterrupted_one(tmp_path):
    def interrupt(done, total):
        if done == 4:
            raise KeyboardInterrupt

    write_motion_shapes(tmp_path / "whole", workers=1, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        write_motion_shapes(tmp_path / "parts", workers=1, progress=interrupt, **SMALL)
    assert not (tmp_path / "parts/captions.jsonl").exists()
    write_motion_shapes(tmp_path / "parts", workers=2, **SMALL)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_data_set_can_be_extended_but_not_mixed_with_another(tmp_path):
    write_motion_shapes(tmp_path, workers=1, **SMALL)
    before = content(tmp_path)
    with pytest.raises(UserError, match="seed 7, not 8; choose another folder"):
        write_motion_shapes(tmp_path, workers=1, **SMALL | {"seed": 8})
    with pytest.raises(UserError, match="already holds 5 clips"):
        write_motion_shapes(tmp_path, workers=1, **SMALL | {"clips": 4})
    assert content(tmp_path) == before
    write_motion_shapes(tmp_path, workers=1, **SMALL | {"clips": 6})
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 9


def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="frames must be at least 1, got 0"):
        write_motion_shapes(tmp_path / "new", **SMALL | {"frames": 0})
    assert not (tmp_path / "new").exists()
