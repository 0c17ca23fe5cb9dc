"""inspect: the numbers are those of the folder, and the sheet shows its clips."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.cli import main
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, WRONG_REQUEST
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video


@pytest.fixture(autouse=True)
def _no_processes_left():
    yield
    isolated.close_all()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        write_video(folder / f"{number}.mp4", np.full((6, 32, 48, 3), 80 * number, np.uint8), fps=6)
        (folder / f"{number}.txt").write_text(f"grey number [bold]{number}\n")
    Image.new("RGB", (40, 30), "red").save(folder / "z.png")
    return folder


def run(*arguments) -> int:
    return main(["inspect", *map(str, arguments)])


def test_a_folder_and_what_was_prepared_of_it_show_a_table_and_a_sheet(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(folder, "--out", tmp_path / "a.png") == 0
    shown = capsys.readouterr().out
    assert "3, 1 without one" in shown
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 4 * 96
    (folder / "bad.mp4").write_bytes(b"<html>")
    assert main(["prepare", "--source", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert run(tmp_path / "out", "--out", tmp_path / "b.png", "--rows", 2) == 0
    shown = capsys.readouterr().out
    assert "32x48 (3), 30x40 (1)" in shown
    assert "not an mp4" in shown
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.height < 3 * 120
    file = tmp_path / "out" / "statistics.json"
    whole = json.loads(file.read_text())
    for damaged in ({name: value for name, value in whole.items() if name != "kept"}, whole | {"dropped_by_reason": 3}):
        file.write_text(json.dumps(damaged))
        assert run(tmp_path / "out", "--out", tmp_path / "c.png") == WRONG_REQUEST
        assert f"{file} is damaged" in capsys.readouterr().err


def test_unreadable_clips_are_named_and_nothing_readable_has_its_own_code(folder, tmp_path, capsys):
    (folder / "0.mp4").write_bytes(b"<html>")
    assert run(folder, "--out", tmp_path / "a.png") == 0
    assert "unreadable: " in capsys.readouterr().out
    for path in folder.glob("*.*"):
        path.write_bytes(b"x")
    assert run(folder, "--out", tmp_path / "a.png") == TOO_MUCH_BAD_DATA
    assert run(tmp_path / "none") == WRONG_REQUEST
    assert run(folder, "--out", tmp_path / "a.jpg") == WRONG_REQUEST
    assert run(folder, "--rows", 0) == WRONG_REQUEST
