"""A disk that is really full costs what was being written and nothing else, and is said in one line."""

import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import checkpoint, steps, storage
from imagen_video_jax.cli import main
from imagen_video_jax.commands import cascade
from imagen_video_jax.errors import UserError
from imagen_video_jax.training.saver import Saver


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system that can be filled needs the right to mount one (root)")
    except FileNotFoundError:
        pytest.skip("a file system that can be filled needs mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_save_that_does_not_fit_is_said_and_leaves_room(small_disk, capsys):
    """2 MB of incompressible numbers a step: the second one does not fit beside the first."""
    rng = np.random.default_rng(0)
    trees = {"params": {"kernel": jnp.asarray(rng.normal(size=(500, 1000)), jnp.float32)}}
    folder = small_disk / "checkpoints"
    saver = Saver(folder, keep=3, committed=-1, report=lambda *_: None)
    saver.start(1, trees, {})
    saver.wait()
    saver.start(2, trees, {})
    saver.wait()
    text = capsys.readouterr().err
    assert "could not be saved" in text
    assert text.count("\n") == 1
    assert saver.committed == 1
    assert [path.name for path in folder.iterdir()] == ["1"], "the space of the failed save is free again"
    restored = checkpoint.restore(steps.newest(folder), "params", trees["params"])
    np.testing.assert_array_equal(restored["kernel"], trees["params"]["kernel"])


def test_files_and_locks_are_refused_in_one_line_and_nothing_is_left(small_disk, capsys, monkeypatch):
    storage.write_text(small_disk / "old.json", "old")
    with pytest.raises(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(os.urandom(1 << 16))
    monkeypatch.setattr(cascade, "run", lambda *_: storage.write_text(small_disk / "old.json", "new" * 10_000))
    assert main(["cascade", "--stage", "x", "--out", "y"]) == 2
    assert capsys.readouterr().err == f"error: cannot write {small_disk / 'old.json'}: No space left on device\n"
    assert (small_disk / "old.json").read_text() == "old"
    with (
        pytest.raises(UserError, match=r"cannot write to .*run: No space left"),
        storage.directory_lock(small_disk / "run"),
    ):
        pass
    assert sorted(path.name for path in small_disk.iterdir()) == ["fill", "old.json", "run"]
