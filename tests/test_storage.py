"""Durable files: all or nothing, and no damage goes unnoticed."""

import errno
import io
import os
import pathlib
import random
import subprocess
import sys

import pytest

from imagen_video_jax import cli, storage
from imagen_video_jax.commands.process import in_one_line
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


@pytest.mark.parametrize(
    "name", ["a" * 252, "空" * 80, "a." + "b" * 200, "\udcff[*]" * 20], ids=["long", "wide", "ending", "no text"]
)
def test_names_of_any_length_and_bytes_are_written_claimed_and_cleared(tmp_path, name):
    file = tmp_path / name
    storage.temporary_name(file).write_text("half")
    (other := storage.temporary_name(tmp_path / (name[:-1] + "x"))).write_text("of another file")
    note = tmp_path / f".{storage._short_name(file)}.claim"
    note.touch()
    storage.clear_claims(tmp_path)
    assert list(tmp_path.iterdir()) == [other], "what a killed maker left is gone, and nothing else"
    with storage.claim(file) as mine:
        assert mine
        storage.write_text(file, "whole")
    with storage.atomic_folder(tmp_path / (name[:-1] + "y")) as folder:
        (folder / "part").touch()
    assert file.read_text() == "whole"


@pytest.mark.parametrize("address", ["gs://bucket/a/c.json", "s3://bucket", "file:///x/c.json"])
def test_addresses_are_refused_where_a_local_folder_would_be_made_of_them(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda: storage.writable_folder(address),
        lambda: storage.write_text(pathlib.Path(address), ""),
        lambda: storage.directory_lock(pathlib.Path(address)).__enter__(),
        lambda: storage.claim(pathlib.Path(address)).__enter__(),
    ):
        with pytest.raises(UserError, match=r"cannot write to \w+://\w.*: outputs must be local folders"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [".", ""])
def test_a_file_without_a_name_is_one_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for use in (storage.temporary_name, lambda path: storage.claim(path).__enter__()):
        with pytest.raises(UserError, match=r"cannot write to \.: a file or folder with a name of its own is wanted"):
            use(pathlib.Path(path))


@pytest.mark.parametrize(
    ("code", "says"), [("EFBIG", "write"), ("ENOSPC", "write"), ("EIO", "read or write"), ("ESTALE", "read or write")]
)
def test_a_full_or_failing_disk_is_one_line_that_names_the_file_that_was_wanted(tmp_path, capsys, code, says):
    number, temporary = getattr(errno, code), None

    class NamedByLibrary(OSError):
        """As PyAV's: with a URL, which cannot be set."""

        filename = property(lambda self: f"file:{temporary}")

    def work():
        nonlocal temporary
        with storage.atomic_path(tmp_path / "a.mp4") as temporary:
            raise NamedByLibrary(number, os.strerror(number))

    assert in_one_line(work) == 2
    assert capsys.readouterr().err == f"error: cannot {says} {tmp_path / 'a.mp4'}: {os.strerror(number)}\n"


def test_a_damaged_note_of_a_hash_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "weights").write_bytes(b"1")
    right = storage.remembered_sha256(tmp_path / "weights")
    (note,) = storage.user_cache().glob("file_hashes/*")
    for damaged in (b"", b"\xff" * 64, right[:-1].encode(), right[:-1].encode() + b"g", b"\0" * 64):
        note.write_bytes(damaged)
        assert storage.remembered_sha256(tmp_path / "weights") == right
        assert note.read_text() == right
    assert storage.remembered([tmp_path / "weights"], "sha256", pytest.fail) == right


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", nobody)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        storage.user_cache()


def test_names_that_are_no_text_are_printed_with_escapes(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8"))
    monkeypatch.setattr(cli, "_run", lambda _: print("\udcff.json: 1 stages", flush=True))
    assert cli.main([]) == 0
    assert out.getvalue() == b"\\udcff.json: 1 stages\n"
