"""Decoding in processes that may be killed: the same frames, and no file takes more than its own process along."""

import os
import pathlib
import signal
import time

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.video import isolated
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.files import MediaError, read_video, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "a b%20'c'.mp4"
    coarse = np.random.default_rng(0).integers(0, 256, (24, 6, 10, 3)).astype(np.uint8)
    write_video(path, coarse.repeat(8, 1).repeat(8, 2), fps=12)
    return path


@pytest.fixture(autouse=True)
def _no_processes_left():
    isolated.close_all()
    yield
    isolated.close_all()


def pids():
    return [decoder._process.pid for decoder in isolated._idle]


def test_another_process_reads_the_same_frames(clip):
    here = read_video(clip)
    for media in (clip, EncodedMedia(clip.name, clip.read_bytes())):
        there = isolated.read(media, height=12, width=20)
        assert there.fps == here.fps
        np.testing.assert_array_equal(there.frames_THWC, read_video(clip, covering=(12, 20)).frames_THWC)
        assert isolated.scan(media).facts == isolated.Facts(24, 48, 80, 12.0)
    part = isolated.read_part(clip, 5, 9, seconds=30, memory_bytes=1 << 30)
    np.testing.assert_array_equal(part.frames_THWC, here.frames_THWC[5:9])
    assert len(pids()) == 2  # one for each memory limit, used again


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_somebody_stops_or_kills_changes_nothing(clip, number):
    expected = isolated.read(clip, height=12, width=20)
    os.kill(pids()[0], number)
    began = time.monotonic()
    again = isolated.read(clip, height=12, width=20, seconds=2)
    assert time.monotonic() - began < 10
    np.testing.assert_array_equal(again.frames_THWC, expected.frames_THWC)


def test_a_file_that_takes_too_long_is_blamed_and_the_next_one_reads(clip):
    isolated.read(clip, height=12, width=20)
    with pytest.raises(MediaError, match="took longer than 0 s"):
        isolated.read(clip, height=12, width=20, seconds=0.0)
    assert not pids()
    assert len(isolated.read(clip, height=12, width=20).frames_THWC) == 24


def test_a_file_that_needs_too_much_memory_is_blamed(tmp_path):
    write_video(tmp_path / "long.mp4", np.zeros((300, 480, 640, 3), np.uint8), fps=10)
    with pytest.raises(MediaError, match="memory"):
        isolated.read(tmp_path / "long.mp4", height=480, width=640, memory_bytes=450 << 20)


def test_what_is_wrong_with_a_file_is_said_as_when_it_is_read_here(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"#EXTM3U\n/etc/passwd\n")
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match="not an mp4"):
        isolated.read(tmp_path / "a.mp4", height=8, width=8)
    with pytest.raises(MediaError, match="exceeds 33177600 pixels"):
        isolated.scan(tmp_path / "bomb.png")


def test_the_process_can_write_no_file_and_ends_with_its_parent(clip):
    isolated.read(clip, height=12, width=20)
    (pid,) = pids()
    limits = {
        line[:26].strip(): line[26:].split() for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
    }
    assert limits["Max file size"][:2] == ["0", "0"]
    assert limits["Max address space"][0] == str(isolated.MEMORY_BYTES)
    isolated._idle[0]._process.stdin.close()  # what the kernel does when a parent is killed
    isolated._idle[0]._process.wait(timeout=10)


def test_the_change_of_colours_shows_a_cut(tmp_path):
    video = np.zeros((12, 32, 32, 3), np.uint8)
    video[:6] = (200, 30, 30)
    video[6:] = (30, 30, 200)
    write_video(tmp_path / "a.mp4", video, fps=12)
    changes = isolated.scan(tmp_path / "a.mp4", changes=True).changes
    assert len(changes) == 11
    assert np.argmax(changes) == 5
    assert changes[5] > 0.9
    assert sorted(changes)[-2] < 0.1
