"""Batches: one integer is the whole cursor, captions travel with their clips, bad files are replaced and named."""

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from imagen_video_jax.data import loading
from imagen_video_jax.data.batches import evaluation_batches, open_batches
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.loading import Decoded, Loader, Tally
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, WRONG_REQUEST, UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video

COUNT = 10
SPEC = ClipSpec(4, 8, 12, 6.0, crop="random")


def level_of(number: int) -> int:
    return 20 + 20 * number


def make_clip(path, number: int, frames: int = 24) -> None:
    """The left half is grey at the clip's own level; the right half darkens with time, so that windows differ."""
    video = np.full((frames, 16, 32, 3), level_of(number), np.uint8)
    video[:, :, 16:] = (np.arange(frames)[:, None, None, None] * 10).astype(np.uint8)
    write_video(path, video, fps=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(COUNT):
        make_clip(folder / f"{number}.mp4", number)
        rows.append({"path": f"{number}.mp4", "captions": [f"clip {number} wording {w}" for w in range(3)]})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    return open_source(folder).videos


class Embeddings:
    """Token 0 says which clip, token 1 which wording, then as many tokens as the wording's number."""

    width = 5

    def lookup(self, caption: str) -> np.ndarray:
        _, number, _, wording = caption.split()
        states = np.zeros((2 + int(wording), self.width), np.float32)
        states[0], states[1] = int(number), int(wording)
        return states


def open_(examples, **options):
    options = {"batch_size": 4, "seed": 1, "embeddings": Embeddings(), "text_length": 4, "threads": 0} | options
    return open_batches(examples, options.pop("spec", SPEC), **options)


def take(count, examples, **options) -> dict:
    """Fields of `count` batches, concatenated."""
    with open_(examples, **options) as batches:
        taken = [next(batches) for _ in range(count)]
    return {name: np.concatenate([getattr(b, name) for b in taken]) for name in vars(taken[0])}


def assert_same(first: dict, second: dict):
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_a_batch_is_what_batch_says(examples):
    with open_(examples) as batches:
        batch = next(batches)
    assert batch.check().video_BTHWC.shape == (4, 4, 8, 12, 3)
    assert (batch.fps_B == 6).all()
    assert batch.valid_B.all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_batches(examples, threads):
    assert_same(take(9, examples), take(9, examples, threads=threads))


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("processes", [2, 4])
def test_hosts_together_see_what_one_host_sees(examples, processes, start):
    whole = take(6, examples, start_step=start)
    parts = [take(6, examples, slots=slots, start_step=start) for slots in np.arange(4).reshape(processes, -1)]
    for name, value in whole.items():
        joined = np.concatenate([p[name].reshape(6, 4 // processes, *value.shape[1:]) for p in parts], axis=1)
        np.testing.assert_array_equal(joined.reshape(value.shape), value, err_msg=name)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 1000])
def test_any_step_can_be_resumed_from_its_number_alone(examples, start):
    """3 batches of 4 over 10 examples: resume points lie inside and across epochs."""
    with open_(examples, start_step=max(0, start - 2)) as batches:
        while batches.step < start:
            next(batches)
        assert batches.step == start
        expected = [next(batches) for _ in range(3)]
    resumed = take(3, examples, start_step=start, threads=2)
    assert_same({name: np.concatenate([getattr(b, name) for b in expected]) for name in vars(expected[0])}, resumed)


def test_the_cache_changes_nothing_but_time(examples):
    assert_same(take(9, examples, decoded=Decoded(0)), take(9, examples))
    assert_same(take(9, examples, decoded=Decoded(3 * 24 * 8 * 16 * 3)), take(9, examples))


def test_what_is_decoded_serves_the_next_run_too(examples, monkeypatch):
    decoded = Decoded()
    expected = take(9, examples, decoded=decoded)
    monkeypatch.setattr(loading, "decode", None)
    assert_same(expected, take(9, examples, decoded=decoded))


def test_each_epoch_shows_every_example_once_in_another_order(examples):
    ids = take(15, examples, batch_size=4)["id_B"].reshape(6, COUNT)
    assert (np.sort(ids, axis=1) == np.arange(COUNT)).all()
    assert len({tuple(row) for row in ids}) == 6


def test_the_seed_changes_the_order_and_no_shuffle_keeps_it(examples):
    assert (take(5, examples, seed=1)["id_B"] != take(5, examples, seed=2)["id_B"]).any()
    in_order = take(5, examples, shuffle=False)["id_B"]
    assert in_order.tolist() == [i % COUNT for i in range(20)]


def test_the_first_places_are_shared_evenly(examples):
    """Each example comes first about equally often over the seeds (a chi-square of 9 degrees, 99.9 % below 28)."""
    options = {"embeddings": Embeddings(), "text_length": 4}
    loaders = [Loader(examples, SPEC, Tally(1.0), seed=seed, **options) for seed in range(2000)]
    first = [int(loader._draw_order(0, 0)[0]) for loader in loaders]
    counts = np.bincount(first, minlength=COUNT)
    assert ((counts - 200) ** 2 / 200).sum() < 28


def test_a_caption_always_travels_with_its_clip(examples):
    seen = take(30, examples)
    numbers = seen["text_BLD"][:, 0, 0]
    np.testing.assert_array_equal(numbers, seen["id_B"])
    # A crop of the 16 wide cover shows 12 columns: the leftmost four always lie in the left half.
    levels = seen["video_BTHWC"][:, :, :, :3].mean(axis=(1, 2, 3, 4))
    assert np.abs(levels - level_of(numbers)).max() < 6
    # All wordings are used, and the mask counts their tokens (texts of 2 to 4 tokens).
    wordings = seen["text_BLD"][:, 1, 0]
    assert set(wordings) == {0, 1, 2}
    np.testing.assert_array_equal(seen["text_mask_BL"].sum(axis=1), 2 + wordings)
    assert (seen["text_BLD"][~seen["text_mask_BL"]] == 0).all()


def test_every_epoch_draws_new_windows_from_memory(examples):
    seen = take(50, examples[:1], batch_size=1)
    assert len({video.tobytes() for video in seen["video_BTHWC"]}) > 10


def test_long_texts_are_cut_and_missing_captions_become_the_null_text(folder, tmp_path):
    cut = take(5, open_source(folder).videos, text_length=2)
    assert cut["text_mask_BL"].all()
    make_clip(tmp_path / "a.mp4", 0)
    null = take(1, open_source(tmp_path, captions_optional=True).videos)
    assert (null["text_BLD"] == 0).all()
    assert null["text_mask_BL"].tolist() == [[True, False, False, False]] * 4


def copy_with_bad_files(folder, tmp_path, bad):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for number in bad:
        (tmp_path / f"{number}.mp4").write_bytes(b"<html>not found</html>")
    return open_source(tmp_path).videos


def test_a_bad_file_is_replaced_by_the_next_example_and_named_once(folder, examples, tmp_path):
    damaged = copy_with_bad_files(folder, tmp_path, [3, 4])
    with open_(damaged) as batches:
        got = np.concatenate([next(batches).id_B for _ in range(10)])
        assert set(batches.skipped) == {str(tmp_path / "3.mp4"), str(tmp_path / "4.mp4")}
        assert all("not an mp4" in reason for reason in batches.skipped.values())
    for row, due in zip(got.reshape(-1, COUNT), take(10, examples)["id_B"].reshape(-1, COUNT), strict=True):
        assert row.tolist() == [stand_in(due.tolist(), place) for place in range(COUNT)]


def stand_in(due: list[int], place: int) -> int:
    """What shows in the place of example `due[place]` when 3 and 4 cannot be read."""
    return next(number for number in due[place:] + due[:place] if number not in (3, 4))


def test_substitutes_do_not_depend_on_threads_hosts_or_resuming(folder, tmp_path):
    damaged = copy_with_bad_files(folder, tmp_path, [0, 5, 6])
    whole = take(8, damaged)
    assert_same(whole, take(8, damaged, threads=3))
    late = take(4, damaged, start_step=4)
    assert_same({name: value[16:] for name, value in whole.items()}, late)
    half = take(8, damaged, slots=(2, 3))
    np.testing.assert_array_equal(
        whole["video_BTHWC"].reshape(8, 4, -1)[:, 2:].reshape(16, -1), half["video_BTHWC"].reshape(16, -1)
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_when_no_file_reads_the_run_ends_with_its_own_exit_code(folder, tmp_path, threads):
    damaged = copy_with_bad_files(folder, tmp_path, range(COUNT))
    with (
        open_(damaged, threads=threads) as batches,
        pytest.raises(UserError, match=r"none of the 10 examples|10 of the 10 clips") as caught,
    ):
        next(batches)
    assert caught.value.exit_code == TOO_MUCH_BAD_DATA
    evaluated = evaluation_batches(damaged, SPEC, batch_size=4, embeddings=Embeddings(), text_length=4, threads=0)
    with pytest.raises(UserError) as caught:
        list(evaluated)
    assert caught.value.exit_code == TOO_MUCH_BAD_DATA


def test_a_missing_embedding_is_not_taken_for_a_bad_file(examples):
    class Empty(Embeddings):
        def lookup(self, caption):
            raise UserError(f"no embedding of {caption!r}")

    with open_(examples, embeddings=Empty(), threads=2) as batches, pytest.raises(UserError, match="no embedding"):
        next(batches)


def test_short_videos_are_repeated_or_skipped_and_either_is_counted(tmp_path):
    for number, frames in enumerate([24, 5]):
        make_clip(tmp_path / f"{number}.mp4", number, frames)
    short = open_source(tmp_path, captions_optional=True).videos
    with open_(short) as batches:
        assert {i for _ in range(3) for i in next(batches).id_B} == {0, 1}
        assert list(batches.repeated) == [str(tmp_path / "1.mp4")]
        assert not batches.skipped
    with open_(short, spec=ClipSpec(4, 8, 12, 6.0, short="skip")) as batches:
        assert {i for _ in range(3) for i in next(batches).id_B} == {0}
        assert "too short: 5 frames" in batches.skipped[str(tmp_path / "1.mp4")]


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_shows_each_example_once_in_order_and_marks_the_padding(folder, tmp_path, threads):
    damaged = copy_with_bad_files(folder, tmp_path, [2])
    options = {"batch_size": 4, "embeddings": Embeddings(), "text_length": 4, "threads": threads}
    batches = evaluation_batches(damaged, SPEC, **options)
    taken = list(batches)
    assert np.concatenate([b.id_B for b in taken]).tolist() == [0, 1, -1, 3, 4, 5, 6, 7, 8, 9, -1, -1]
    valid = np.concatenate([b.valid_B for b in taken])
    assert valid.tolist() == [True, True, False] + [True] * 7 + [False] * 2
    assert (np.concatenate([b.video_BTHWC for b in taken])[~valid] == 0).all()
    assert list(batches.skipped) == [str(tmp_path / "2.mp4")]
    again = list(evaluation_batches(damaged, SPEC, **options))
    assert all((a.video_BTHWC == b.video_BTHWC).all() for a, b in zip(taken, again, strict=True))


def test_images_are_clips_of_one_frame_without_a_rate(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (20, 30), (level_of(number),) * 3).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"clip {number} wording 0")
    images = open_source(tmp_path).images
    seen = take(3, images, spec=ClipSpec(1, 8, 12, 24.0))
    assert seen["video_BTHWC"].shape == (12, 1, 8, 12, 3)
    assert (seen["fps_B"] == 0).all()
    np.testing.assert_array_equal(seen["video_BTHWC"][:, 0, 0, 0, 0], level_of(seen["id_B"]))
    with pytest.raises(UserError, match=r"0\.png is an image, it cannot fill clips of 4 frames"):
        open_(images)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"text_length": 0}, "text_length at least 1"),
        ({"start_step": -1}, "start_step must be at least 0"),
    ],
)
def test_impossible_arguments_are_refused_at_once(examples, wrong, match):
    with pytest.raises(UserError, match=match):
        open_(examples, **wrong)
    with pytest.raises(UserError, match="no examples"):
        open_(())


def test_closing_ends_the_reading_threads(examples):
    before = set(threading.enumerate())
    batches = open_(examples, threads=2)
    next(batches)
    reading = set(threading.enumerate()) - before
    assert reading
    batches.close()
    for thread in reading:
        thread.join(timeout=5)
        assert not thread.is_alive()


# Mixtures, buckets, too many bad files, and the whole matrix.


def shifted(examples, part, first_id):
    return tuple(dataclasses.replace(e, part=part, id=first_id + i) for i, e in enumerate(examples))


def test_a_mixture_shows_its_data_sets_by_weight_and_each_in_its_own_epochs(examples):
    both = (*shifted(examples[:6], 0, 0), *shifted(examples[6:], 1, 6))
    ids = take(12, both, weights=(2.0, 1.0))["id_B"]
    second = ids >= 6
    assert second.sum() == 16
    assert abs(second.reshape(12, 4).sum(axis=1) - 4 / 3).max() < 1
    for shown, members in ((ids[~second][:30], range(6)), (ids[second], range(6, 10))):
        for epoch in shown[: len(shown) // len(members) * len(members)].reshape(-1, len(members)):
            assert sorted(epoch) == list(members)
    np.testing.assert_array_equal(ids[32:], take(4, both, weights=(2.0, 1.0), start_step=8)["id_B"])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 1, 2, 3])
def test_over_two_epochs_nothing_is_lost_or_repeated_wherever_it_resumes(examples, whole_run, processes, threads):
    """Hosts x threads x resume points: each run is cut once, at a step of its own, and goes on as if it were whole."""
    cut = 1 + (processes + threads) % 4
    rows = []
    for slots in np.arange(4).reshape(processes, -1):
        options = {"slots": slots, "threads": threads}
        before = take(cut, examples, **options)["id_B"]
        after = take(5 - cut, examples, start_step=cut, **options)["id_B"]
        rows.append(np.concatenate([before, after]))
    ids = np.concatenate([row.reshape(5, -1) for row in rows], axis=1).ravel()
    np.testing.assert_array_equal(ids, whole_run)
    assert (np.bincount(ids, minlength=COUNT) == 2).all()


@pytest.fixture(scope="module")
def whole_run(examples):
    return take(5, examples)["id_B"]


def portrait(folder):
    for number in range(3):
        video = np.full((24, 32, 16, 3), level_of(number), np.uint8)
        write_video(folder / f"{number}.mp4", video, fps=24)
    for number in range(3, 9):
        make_clip(folder / f"{number}.mp4", number)
    return open_source(folder, captions_optional=True).videos


def test_buckets_give_each_shape_batches_of_its_own_size(tmp_path):
    videos = portrait(tmp_path)
    options = {"sizes": ((8, 12), (12, 8)), "batch_size": 3}
    with open_(videos, **options) as batches:
        taken = [next(batches) for _ in range(9)]
    shapes = [batch.video_BTHWC.shape[2:4] for batch in taken]
    assert shapes.count((12, 8)) == 3
    assert shapes.count((8, 12)) == 6
    for batch, shape in zip(taken, shapes):
        assert (batch.id_B < 3).all() == (shape == (12, 8))
    # Two epochs of the wide ones, three of the high ones: every example as often as any other.
    assert (np.bincount(np.concatenate([batch.id_B for batch in taken])) == 3).all()
    with open_(videos, start_step=4, threads=2, **options) as batches:
        for expected in taken[4:]:
            assert_same(vars(expected), vars(next(batches)))
    with open_(videos, sizes=((8, 12),)) as batches:
        assert next(batches).video_BTHWC.shape == (4, 4, 8, 12, 3)


def test_a_bad_file_alone_in_its_data_set_and_size_is_replaced_by_another_of_that_size(tmp_path):
    videos = portrait(tmp_path)
    (tmp_path / "8.mp4").write_bytes(b"<html>")
    parts = tuple(dataclasses.replace(e, part=int(e.path.stem != "8" and e.id < 3)) for e in videos)
    mixed = tuple(dataclasses.replace(e, part=2 if e.path.stem == "8" else e.part) for e in parts)
    options = {"sizes": ((12, 8), (8, 12)), "batch_size": 3, "weights": (1.0, 1.0, 1.0)}
    with open_(mixed, **options) as batches:
        ids = np.concatenate([next(batches).id_B for _ in range(9)])
        assert list(batches.skipped) == [str(tmp_path / "8.mp4")]
    assert set(ids) == set(range(8))
    with open_(mixed, start_step=4, threads=2, **options) as batches:
        np.testing.assert_array_equal(np.concatenate([next(batches).id_B for _ in range(5)]), ids[12:])


def test_too_many_bad_files_end_the_run_but_a_few_or_short_ones_do_not(folder, tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.mp4").write_bytes((folder / f"{number % COUNT}.mp4").read_bytes())
    for number in range(9):
        (tmp_path / f"{number:02d}.mp4").write_bytes(b"<html>")
    videos = open_source(tmp_path, captions_optional=True).videos
    with open_(videos) as batches:
        for _ in range(20):
            next(batches)
        assert len(batches.skipped) == 9
    (tmp_path / "09.mp4").write_bytes(b"<html>")
    for threads in (0, 2):
        with (
            open_(videos, threads=threads) as batches,
            pytest.raises(UserError, match=r"10 of the .* are bad") as caught,
        ):
            for _ in range(20):
                next(batches)
        assert caught.value.exit_code == TOO_MUCH_BAD_DATA
    with open_(videos, bad_share=0.5) as batches:
        for _ in range(20):
            next(batches)
    short = ClipSpec(40, 8, 12, 6.0, short="skip")
    with (
        open_(videos[10:], spec=short) as batches,
        pytest.raises(UserError, match=r"30 examples .* short=repeat") as caught,
    ):
        next(batches)
    assert caught.value.exit_code == WRONG_REQUEST  # the files are good, the request does not fit them


def test_a_stopped_decoding_process_is_noticed_and_changes_no_batch(examples, monkeypatch):
    expected = take(6, examples, decoded=Decoded(0))
    isolated.close_all()  # each that is stopped takes its time
    monkeypatch.setattr(isolated.read, "__kwdefaults__", {**isolated.read.__kwdefaults__, "seconds": 5.0})
    with open_(examples, threads=1, prefetch=1, decoded=Decoded(0)) as batches:
        first = next(batches)
        for decoder in list(isolated._all):
            os.kill(decoder.pid, signal.SIGSTOP)
        began = time.monotonic()
        rest = [next(batches) for _ in range(5)]
        assert time.monotonic() - began < 60
    got = {name: np.concatenate([getattr(b, name) for b in [first, *rest]]) for name in vars(first)}
    assert_same(expected, got)
