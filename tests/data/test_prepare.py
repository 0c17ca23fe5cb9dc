"""prepare: every good file kept as it is, every bad one named, whatever the folder holds and however it is stopped."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from imagen_video_jax.cli import main
from imagen_video_jax.data import examine, records
from imagen_video_jax.data.examine import PrepareSettings
from imagen_video_jax.data.prepare import prepare
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import FAILED, STOPPED_AFTER_SAVING, TOO_MUCH_BAD_DATA, WRONG_REQUEST, UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import read_media, write_video
from imagen_video_jax.video.reading import MediaError
from tests.data.hostile_folder import BAD_LINES, CODECS, encode, make_hostile_folder, picture

COMMAND = [sys.executable, "-m", "imagen_video_jax"]
# Runs a command and writes to a file what its largest process took, in KiB. A process of its own, since what a large
# one starts counts as being as large.
MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@pytest.fixture(scope="module", autouse=True)
def _no_processes_left():
    yield
    isolated.close_all()


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def shards_of(out) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.array_record"))}


def media_records(out) -> list[dict]:
    found = []
    for path in sorted(out.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        found += [records.unpack(record) for record in reader.read_all()]
        reader.close()
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return make_hostile_folder(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def prepared(hostile, tmp_path_factory):
    """The hostile folder, prepared by the command in a process of its own, watched where strace is there."""
    out = tmp_path_factory.mktemp("prepared")
    watch = ["strace", "-f", "--seccomp-bpf", "-e", "trace=open,openat", "-o", str(out.parent / "opened.txt")]
    command = [*COMMAND, "prepare", "--source", str(hostile.folder), "--out", str(out), "--seconds-per-file", "20"]
    command = [*(watch if shutil.which("strace") else []), *command]
    measured = [sys.executable, "-c", MEASURE, str(out.parent / "peak.txt"), *command]
    done = subprocess.run(measured, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "clips kept" in done.stdout
    return out


def as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def test_encoding_for_a_test_leaves_the_worker_its_priority(tmp_path):
    before = os.sched_getscheduler(0)
    encode(tmp_path / "av1.mp4", picture(0), *CODECS["av1.mp4"])
    assert os.sched_getscheduler(0) == before


def test_every_good_file_is_kept_and_every_bad_one_is_named(hostile, prepared):
    kept = {row["path"]: row for row in rows_of(prepared / "records.jsonl")}
    quarantined = {row["path"]: row["reason"] for row in rows_of(prepared / "quarantine.jsonl")}
    good = {as_text(name): shape for name, shape in hostile.good.items()}
    assert not {name: quarantined[name] for name in good if name in quarantined}
    assert set(good) <= set(kept)
    shapes = {name: tuple(kept[name]["facts"][fact] for fact in ("frames", "height", "width")) for name in good}
    assert shapes == good
    assert set(hostile.bad) <= set(quarantined)
    assert all(reason and "\n" not in reason for reason in quarantined.values())
    assert set(kept) - set(good) <= set(hostile.either)
    # Every file of the folder is accounted for.
    statistics = json.loads((prepared / "statistics.json").read_text())
    assert list(statistics["duplicate_of"]) == hostile.duplicates
    assert set(hostile.either) <= set(kept) | set(quarantined)
    assert statistics["kept"] == len(kept) == len(media_records(prepared))
    assert statistics["dropped"] == sum(statistics["dropped_by_reason"].values())


def test_records_hold_the_files_as_they_were_with_all_their_captions(hostile, prepared):
    found = {row["path"]: row for row in media_records(prepared)}
    for name in hostile.good:
        assert found[as_text(name)]["media"] == (hostile.folder / name).read_bytes(), name
    assert found["vp8.webm"]["captions"] == ["about vp8.webm", "said twice"]
    assert found["av1.mp4"]["captions"] == ["from the sidecar", "[31m"]
    assert found["copy of h264.mp4"]["captions"] == ["about copy of h264.mp4", "said twice", "the copy"]
    assert found["vp8.webm"]["facts"]["n"] == 1


def test_the_prepared_folder_reads_like_the_files(hostile, prepared):
    examples = open_source(prepared)
    by_name = {example.path.relative_to(prepared).as_posix(): example for example in examples.videos + examples.images}
    for name in ("h264 high10.mp4", "rotated.mp4", "variable.mkv", "moving.gif", "deep.png", "turned.jpeg"):
        ours, theirs = read_media(by_name[name].media()), read_media(hostile.folder / name)
        assert ours.fps == theirs.fps
        np.testing.assert_array_equal(ours.frames_THWC, theirs.frames_THWC)
    shown = read_media(by_name["ffv1.mkv"].media()).frames_THWC.astype(int)
    seed = 1 + list(CODECS).index("ffv1.mkv")
    assert np.abs(shown - picture(seed)).mean() < 8  # the codec is lossless, halved colour resolution is not


def test_bad_caption_lines_are_named_by_their_line(prepared):
    lines = [row for row in rows_of(prepared / "quarantine.jsonl") if row["path"] == "captions.jsonl"]
    assert len(lines) == len(BAD_LINES) + 1
    assert len({row["line"] for row in lines}) == len(lines)


def test_nothing_outside_the_folder_is_read_and_memory_stays_small(hostile, prepared):
    assert 0 < int((prepared.parent / "peak.txt").read_text()) < 1 << 20
    secret = hostile.outside.read_bytes()
    assert all(secret != row["media"] for row in media_records(prepared))
    if not shutil.which("strace"):
        pytest.skip("needs strace to see which files are opened")
    opened = (prepared.parent / "opened.txt").read_text()
    assert "vp8.webm" in opened
    assert "secret.mp4" not in opened
    assert "/etc/passwd" not in opened
    assert "/dev/zero" not in opened


def test_a_second_run_does_nothing_twice(hostile, prepared, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in prepared.glob("*.array_record")}
    monkeypatch.setattr(examine.isolated, "scan", None)
    monkeypatch.setattr(records, "write_shard", None)
    prepare(str(hostile.folder), prepared, PrepareSettings(seconds_per_file=20))
    assert {path: path.stat().st_mtime_ns for path in prepared.glob("*.array_record")} == before


def test_killed_five_times_it_writes_the_same_shards(hostile, prepared, tmp_path):
    command = [*COMMAND, "prepare", "--source", str(hostile.folder), "--out", str(tmp_path), "--seconds-per-file", "20"]
    progress = []
    for number in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = tmp_path / ".prepare" / "journal.jsonl"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if lines >= 12 * (number + 1):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        progress.append(journal.read_bytes().count(b"\n"))
    assert progress == sorted(progress)
    assert progress[0] > 0
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert shards_of(tmp_path) == shards_of(prepared)
    for name in ("records.jsonl", "quarantine.jsonl"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_sigterm_ends_it_at_once_and_it_goes_on(small, tmp_path, monkeypatch):
    """A file whose decoding hangs is not waited for."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.getcwd()]))
    encode(small / "hang.mp4", picture(9))
    command = [*COMMAND, "prepare", "--source", str(small), "--out", str(tmp_path / "out"), "--workers", "2"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
    journal = tmp_path / "out" / ".prepare" / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait() == STOPPED_AFTER_SAVING
    assert time.monotonic() - began < 10
    assert (tmp_path / "said").read_text().splitlines() == ["stopped; run the same command again to go on"]
    (small / "hang.mp4").unlink()
    assert prepare(str(small), tmp_path / "out")["kept"] == 2


@pytest.fixture
def small(tmp_path):
    """Three clips, one of them bad."""
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(2):
        encode(folder / f"{number}.mp4", picture(number))
        (folder / f"{number}.txt").write_text(f"clip {number}")
    (folder / "2.mp4").write_bytes(b"<html>")
    return folder


def fails(match, *arguments, code=WRONG_REQUEST, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepare(*arguments, **options)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def test_nothing_to_read_and_nothing_good_have_their_own_exit_codes(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.doc").touch()
    assert main(["prepare", "--source", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == WRONG_REQUEST
    assert "found 1 .doc" in capsys.readouterr().err
    assert main(["prepare", "--source", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == WRONG_REQUEST
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "captions.jsonl").write_text('{"path": "gone.mp4", "caption": "x"}\n')
    fails("holds no videos or images to read; the first: gone", str(tmp_path / "b"), tmp_path / "out2")
    (tmp_path / "b" / "a.mp4").write_bytes(b"<html>")
    assert main(["prepare", "--source", str(tmp_path / "b"), "--out", str(tmp_path / "out3")]) == TOO_MUCH_BAD_DATA
    assert {row["path"] for row in rows_of(tmp_path / "out3" / "quarantine.jsonl")} == {"a.mp4", "gone.mp4"}
    assert json.loads((tmp_path / "out3" / "statistics.json").read_text())["kept"] == 0


def test_files_may_be_added_and_only_they_are_examined(small, tmp_path, monkeypatch):
    prepare(str(small), tmp_path / "out")
    encode(small / "00.mp4", picture(7))
    seen = []
    scan = isolated.scan
    monkeypatch.setattr(isolated, "scan", lambda media, **rest: seen.append(media.name) or scan(media, **rest))
    assert prepare(str(small), tmp_path / "out")["kept"] == 3
    assert seen == ["00.mp4"]
    assert [e.path.name for e in open_source(tmp_path / "out").videos] == ["0.mp4", "00.mp4", "1.mp4"]


def test_another_request_for_the_same_folder_is_refused(small, tmp_path):
    prepare(str(small), tmp_path / "out")
    fails("min_fps: 0.0 -> 3", str(small), tmp_path / "out", PrepareSettings(min_fps=3))
    fails("lies inside the source", str(small), small / "out")
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    (tmp_path / "out" / "statistics.json").write_text(json.dumps(statistics | {"version": 99}))
    with pytest.raises(UserError, match="was prepared in format 99, this program reads 1"):
        open_source(tmp_path / "out")


def test_a_shard_with_a_flipped_bit_is_named_and_written_anew(small, tmp_path, capsys):
    prepare(str(small), tmp_path / "out", PrepareSettings(shard_bytes=1))
    before = shards_of(tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.array_record"))
    data, written = bytearray(second.read_bytes()), first.stat().st_mtime_ns
    data[len(data) // 2] ^= 4
    second.write_bytes(data)
    prepare(str(small), tmp_path / "out", PrepareSettings(shard_bytes=1))
    assert shards_of(tmp_path / "out") == before
    assert first.stat().st_mtime_ns == written
    assert f"{second} is damaged; it is written anew" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "3", '{"train-00000-of-00001.array_record": 3}'])
def test_notes_of_another_shape_are_named_or_made_anew(small, tmp_path, text):
    out = tmp_path / "out"
    kept = prepare(str(small), out)["kept"]
    (out / ".prepare" / "shards-train.json").write_text(text)
    assert prepare(str(small), out)["kept"] == kept
    assert len(open_source(out).videos) == kept
    (out / ".prepare" / "request.json").write_text("[]")
    fails(r"request\.json is damaged", str(small), out)


def test_a_prepared_folder_that_lost_something_is_refused(small, tmp_path):
    prepare(str(small), tmp_path / "out", PrepareSettings(shard_bytes=1))
    first, second = sorted((tmp_path / "out").glob("*.array_record"))
    data = second.read_bytes()
    second.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"00001-of-00002\.array_record (is damaged|holds 0 of its 1 records)"):
        open_source(tmp_path / "out")
    second.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_source(tmp_path / "out")
    second.write_bytes(data)
    (tmp_path / "out" / "records.jsonl").unlink()
    with pytest.raises(UserError, match=r"no records\.jsonl: run imagen-video prepare again"):
        open_source(tmp_path / "out")
    assert first.exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "match"),
    [
        ("records.jsonl", '{"shard"', '{"sha"rd"', r"records\.jsonl line 1 is not one that prepare writes"),
        ("records.jsonl", '"path"', '"pith"', "line 1 is not"),
        ("records.jsonl", '"record": 1', '"record": 99', "line 2 is not"),
        ("records.jsonl", '"captions": ["clip 0"]', '"captions": null', "line 1 is not"),
        ("records.jsonl", '"shard": "train', '"shard": "../p/train', "line 1 is not"),
        ("records.jsonl", '"facts": {', '"facts": 3, "more": {', "line 1 is not"),
        ("records.jsonl", '{"shard"', "\udcff", "line 1 is not"),
        ("statistics.json", '"shards"', '"shreds"', "does not say what the shards hold"),
        ("statistics.json", '"train-', '"../p/train-', "names a shard '../p/train-"),
        ("statistics.json", "{", "[{", "cannot be read as JSON"),
    ],
)
def test_a_damaged_index_is_one_line(small_prepared, tmp_path, name, old, new, match):
    out = shutil.copytree(small_prepared, tmp_path / "out")
    text = (out / name).read_text()
    assert old in text
    (out / name).write_text(text.replace(old, new, 1), errors="surrogateescape")
    with pytest.raises(UserError, match=match) as caught:
        open_source(out)
    assert "\n" not in str(caught.value)


def test_an_index_that_lost_lines_is_refused(small_prepared, tmp_path):
    out = shutil.copytree(small_prepared, tmp_path / "out")
    (out / "records.jsonl").write_text((out / "records.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="lists 1 of 2 records"):
        open_source(out)


@pytest.fixture(scope="module")
def small_prepared(tmp_path_factory):
    source = tmp_path_factory.mktemp("small")
    for number in range(2):
        Image.fromarray(picture(number, 1)[0]).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"clip {number}")
    prepare(str(source), source.parent / "small_prepared")
    return source.parent / "small_prepared"


def test_a_stated_sha256_tells_a_flipped_bit_that_decodes(small, tmp_path):
    whole = (small / "0.mp4").read_bytes()
    rows = [
        {"path": f"{n}.mp4", "sha256": hashlib.sha256((small / f"{n}.mp4").read_bytes()).hexdigest()} for n in (0, 1)
    ]
    (small / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place = whole.index(b"x264 - core")  # a text inside the stream: nothing decodes differently
    (small / "0.mp4").write_bytes(whole[:place] + b"y" + whole[place + 1 :])
    assert len(read_media(small / "0.mp4").frames_THWC) == 10
    assert prepare(str(small), tmp_path / "out")["kept"] == 1
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "out" / "quarantine.jsonl")}
    assert reasons["0.mp4"] == "its content is not that of the sha256 stated for it"
    (small / "captions.jsonl").unlink()  # the statement was wrong after all
    assert prepare(str(small), tmp_path / "out")["kept"] == 2


def test_a_caption_written_after_it_was_missed_is_found_by_the_next_run(small, tmp_path):
    settings = PrepareSettings(require_captions=True)
    (small / "1.txt").unlink()
    assert prepare(str(small), tmp_path / "out", settings)["kept"] == 1
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "out" / "quarantine.jsonl")}
    assert reasons["1.mp4"] == "has no caption"
    (small / "1.txt").write_text("now it has one")
    assert prepare(str(small), tmp_path / "out", settings)["kept"] == 2


def test_every_flipped_bit_of_the_clips_in_a_shard_is_noticed(small_prepared, tmp_path):
    """ArrayRecord has checksums of its chunks."""
    out = shutil.copytree(small_prepared, tmp_path / "out")
    (shard,) = out.glob("*.array_record")
    whole, media = shard.read_bytes(), media_records(out)[0]["media"]
    first = whole.index(media)
    for place in np.random.default_rng(0).integers(first, first + len(media), 20):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(MediaError, match=r"record 0 cannot be read \(.*hash mismatch"):
            open_source(out).images[0].media()


def test_a_slip_in_the_source_leaves_the_folder_free_for_the_right_one(small, tmp_path):
    for wrong, match in ((tmp_path / "smal", "no such file or folder"), (tmp_path / "empty", "it is empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        fails(match, str(wrong), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    fails("is a mixture, which only training shows", f"{small}*1,{small}*2", tmp_path / "out")
    assert prepare(str(small), tmp_path / "out")["kept"] == 2


def test_validation_is_chosen_by_content_and_shares_no_clip(tmp_path):
    for number in range(24):
        path = tmp_path / "source" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 1)[0]).save(path)
    (tmp_path / "source" / "copy.png").write_bytes(path.read_bytes())
    prepare(str(tmp_path / "source"), tmp_path / "out", PrepareSettings(validation=0.3))
    sides = [
        {row["sha256"]: row["path"] for row in rows_of(tmp_path / "out" / part / "records.jsonl")}
        for part in ("", "validation")
    ]
    assert len(sides[0]) + len(sides[1]) == 24
    assert 2 <= len(sides[1]) <= 14
    assert not set(sides[0]) & set(sides[1])
    # The choice of a clip does not depend on what else there is.
    for path in list((tmp_path / "source").iterdir())[::2]:
        path.unlink()
    prepare(str(tmp_path / "source"), tmp_path / "half", PrepareSettings(validation=0.3))
    for row in rows_of(tmp_path / "half" / "records.jsonl"):
        assert row["sha256"] in sides[0]
    assert len(open_source(tmp_path / "out" / "validation").images) == len(sides[1])


def test_filters_drop_what_they_say_and_cuts_make_clips_of_scenes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    film = np.concatenate([picture(1, 20), 255 - picture(1, 20), picture(3, 4)])
    film[20:40] = (np.arange(20)[:, None, None, None] + 200).astype(np.uint8)
    write_video(source / "film.mp4", film, fps=10)
    write_video(source / "slow.mp4", picture(4), fps=2)
    write_video(source / "short.mp4", picture(5, 3), fps=10)
    statistics = prepare(str(source), tmp_path / "a", PrepareSettings(min_fps=5, min_seconds=0.5))
    assert (statistics["kept"], statistics["dropped_by_reason"]) == (1, {"filtered": 2})
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "a" / "quarantine.jsonl")}
    assert reasons == {
        "short.mp4": "filtered: 0.30 s, 0.5 s or more wanted",
        "slow.mp4": "filtered: 2 frames/s, at least 5 wanted",
    }
    prepare(str(source), tmp_path / "b", PrepareSettings(cut=0.5, min_seconds=0.5, min_fps=5))
    found = {example.path.name: example for example in open_source(tmp_path / "b").videos}
    assert list(found) == ["film.mp4#0-20.mp4", "film.mp4#20-40.mp4"]
    part = read_media(found["film.mp4#20-40.mp4"].media()).frames_THWC
    assert part.shape == (20, 48, 64, 3)
    assert np.abs(part.astype(int) - film[20:40]).mean() < 4


SITE = """
import os, time
from imagen_video_jax.video import reading

scan = reading.scan_media

def scan_media(media, **rest):
    name = os.path.basename(media)
    if name == "crash.mp4":
        os.abort()
    if name == "hang.mp4":
        time.sleep(1e9)
    if name == "grow.mp4":
        bytearray(1 << 36)
    return scan(media, **rest)

reading.scan_media = scan_media
"""


def test_files_that_hang_crash_or_grow_are_blamed_and_the_others_kept(small, tmp_path, monkeypatch):
    """The decoding processes are given a decoder that does so; the test's own process is not."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    for name in ("crash", "hang", "grow"):
        encode(small / f"{name}.mp4", picture(len(name)))
    settings = PrepareSettings(seconds_per_file=5, memory_per_file=1 << 30)
    statistics = prepare(str(small), tmp_path / "out", settings, workers=3)
    assert statistics["kept"] == 2
    rows = {row["path"]: row for row in rows_of(tmp_path / "out" / "quarantine.jsonl")}
    assert rows["crash.mp4"]["reason"] == "the decoder died of it (SIGABRT)"
    assert rows["hang.mp4"]["reason"] == "took longer than 5 s to decode"
    assert rows["hang.mp4"]["fix"] == "cut it into shorter clips"
    assert rows["grow.mp4"]["reason"] == "does not fit in memory"


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(full)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        source = tmp_path / "source"
        source.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (6, 96, 128, 3)).astype(np.uint8)
        for number in range(4):
            encode(source / f"{number}.mkv", np.roll(noise, number, 0), "ffv1", "matroska", "bgr0")
        command = [*COMMAND, "prepare", "--source", str(source), "--out", str(full)]
        failed = subprocess.run(command, capture_output=True, text=True)
        assert failed.returncode == FAILED
        (line,) = failed.stderr.splitlines()
        assert line.startswith(f"error: {full}")
        assert line.endswith(": No space left on device; run the same command again")
        assert not list(full.glob("*.array_record"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(full)], check=True)
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert len(open_source(full).videos) == 4
    finally:
        subprocess.run(["umount", str(full)], check=True)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"min_fps": -1.0}, "min_fps must be at least 0"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "min_seconds 3 is above max_seconds 2"),
        ({"cut": 2.0}, r"cut must be in \[0, 1\]"),
        ({"validation": 1.0}, r"validation in \[0, 1\)"),
        ({"seconds_per_file": 0.0}, "seconds_per_file must be above 0"),
    ],
)
def test_impossible_settings_are_refused(wrong, match):
    with pytest.raises(UserError, match=match):
        PrepareSettings(**wrong)
