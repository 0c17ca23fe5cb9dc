"""Durable files: all or nothing, and no damage goes unnoticed."""

import os
import random
import subprocess
import sys

import pytest

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    storage.write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), storage.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert storage.read_json(target) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_folder_never_appears(tmp_path):
    with pytest.raises(RuntimeError), storage.atomic_folder(tmp_path / "7") as temporary:
        (temporary / "data").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_every_single_bit_flip_and_cut_is_named(tmp_path):
    folder = tmp_path / "step"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(range(256)))
    (folder / "sub" / "b").write_bytes(os.urandom(100))
    storage.write_manifest(folder)
    assert storage.damaged_files(folder) == []
    rng = random.Random(0)
    for name in ("a", "sub/b", storage.MANIFEST):
        file = folder / name
        intact = file.read_bytes()
        for _ in range(30):
            damaged = bytearray(intact)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            assert any(name in line for line in storage.damaged_files(folder)), name
            file.write_bytes(intact[: rng.randrange(len(intact))])
            assert any(name in line for line in storage.damaged_files(folder)), name
        file.write_bytes(intact)
    (folder / "a").unlink()
    (folder / "new").touch()
    assert storage.damaged_files(folder) == [f"new: not listed in {storage.MANIFEST}", "a: missing"]


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    code = (
        "import pathlib\nfrom imagen_video_jax.storage import directory_lock\n"
        f"with directory_lock(pathlib.Path({str(tmp_path)!r})): pass"
    )
    with storage.directory_lock(tmp_path):
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"pid {os.getpid()}" in held.stderr
        with pytest.raises(UserError, match="in use"), storage.directory_lock(tmp_path):
            pass
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unwritable_folders_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        storage.writable_folder(tmp_path / "file" / "below")
