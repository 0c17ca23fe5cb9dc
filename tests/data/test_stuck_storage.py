"""Storage that hangs: a file whose reading never ends is noticed, named and left behind, and the work goes on.

Reads are stuck in the decoding processes alone, by a module that Python imports when it starts.
"""

import functools
import json
import time

import numpy as np
import pytest

from imagen_video_jax.data import loading
from imagen_video_jax.data.batches import open_batches
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.prepare import prepare
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video

STUCK = """
import builtins, time
real = builtins.open
def open(path, *arguments, **options):
    if "stuck" in str(path):
        time.sleep(3600)
    return real(path, *arguments, **options)
builtins.open = open
"""


class Embeddings:
    width = 4

    def lookup(self, caption):
        return np.ones((1, self.width), np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "start"))
    isolated.close_all()
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, name in enumerate(("a", "stuck", "z")):
        write_video(folder / f"{name}.mp4", np.full((8, 16, 16, 3), 60 * number, np.uint8), fps=8)
        (folder / f"{name}.txt").write_text(name)
    yield folder
    isolated.close_all()


def test_prepare_quarantines_a_file_whose_reading_hangs_within_a_minute(folder, tmp_path, monkeypatch):
    assert 2 * isolated.STUCK_SECONDS < 60
    monkeypatch.setattr(isolated, "STUCK_SECONDS", 1.0)
    began = time.monotonic()
    statistics = prepare(str(folder), tmp_path / "out", workers=2)
    assert time.monotonic() - began < 60
    assert statistics["kept"] == 2
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert row["path"] == "stuck.mp4"
    assert "could not be read within 1 s" in row["reason"]
    # The storage is well again: the file is examined once more, though nothing about it has changed.
    monkeypatch.delenv("PYTHONPATH")
    isolated.close_all()
    assert prepare(str(folder), tmp_path / "out", workers=2)["kept"] == 3


def test_training_replaces_a_file_whose_reading_hangs_and_names_it(folder, monkeypatch):
    assert 2 * isolated.SECONDS <= 60
    monkeypatch.setattr(loading.isolated, "read", functools.partial(isolated.read, seconds=1.0))
    examples, spec = open_source(folder).videos, ClipSpec(4, 8, 8, 8.0)
    options = {"batch_size": 3, "seed": 0, "embeddings": Embeddings(), "text_length": 2}
    with open_batches(examples, spec, **options) as batches:
        batch = next(batches)
        assert batch.valid_B.all()
        assert list(batches.skipped) == [str(folder / "stuck.mp4")]
