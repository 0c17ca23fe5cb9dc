"""Sources: captions find their files, and every way to get that wrong is said in one line."""

import csv
import importlib.util
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import WRONG_REQUEST, UserError
from imagen_video_jax.video.containers import EncodedMedia


def touch(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """Empty files: a source decodes nothing."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def manifest(folder: pathlib.Path, *rows, name="captions.jsonl") -> pathlib.Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def fails(path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        open_source(path, **options)
    assert caught.value.exit_code == WRONG_REQUEST
    assert "\n" not in str(caught.value)


def test_a_manifest_gives_each_file_its_captions_and_facts(tmp_path):
    touch(tmp_path, "b.mp4", "sub/a.MP4", "c.png")
    manifest(
        tmp_path,
        {"path": "b.mp4", "caption": "a ball", "shape": "ball"},
        {"path": "./sub/a.MP4", "captions": ["one", "two"]},
        "",
        {"path": "b.mp4", "captions": ["it rolls", "a ball"], "shape": "cube", "speed": 2},
        {"path": "c.png", "caption": "a picture", "captions": None},
    )
    source = open_source(tmp_path)
    assert [(e.path.name, e.captions, e.id) for e in source.videos] == [
        ("b.mp4", ("a ball", "it rolls"), 0),
        ("a.MP4", ("one", "two"), 2),
    ]
    assert [(e.path.name, e.id) for e in source.images] == [("c.png", 1)]
    assert source.videos[0].facts == {"shape": "ball", "speed": 2}
    assert source.captions == ("a ball", "it rolls", "a picture", "one", "two")


def test_sidecars_hold_a_caption_a_line_and_fill_what_the_manifest_leaves_out(tmp_path):
    touch(tmp_path, "a.mp4", "b.webm", "notes.md", ".hidden.mp4")
    (tmp_path / "a.txt").write_bytes("\ufefffrom the\f side\u2028car\r\n\r  second  \n".encode())
    (tmp_path / "b.txt").write_text("not used\n")
    manifest(tmp_path, {"path": "b.webm", "caption": "from the manifest"})
    assert [e.captions for e in open_source(tmp_path).videos] == [
        ("from the side car", "second"),
        ("from the manifest",),
    ]


def test_a_named_manifest_decides_which_files_belong(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    path = manifest(tmp_path, {"path": "c.mp4", "caption": "c"}, {"path": "a.mp4", "caption": "a"}, name="train.jsonl")
    source = open_source(path)
    assert [(e.path.name, e.captions[0], e.id) for e in source.videos] == [("a.mp4", "a", 0), ("c.mp4", "c", 1)]


def test_the_order_does_not_depend_on_the_disk(tmp_path):
    names = [f"{i:02d}/{j}.mp4" for i in (3, 1, 2) for j in (2, 1)]
    rows = [{"path": name, "caption": name} for name in names]
    manifest(touch(tmp_path / "a", *names), *rows)
    manifest(touch(tmp_path / "b", *reversed(names)), *reversed(rows))
    first, second = open_source(tmp_path / "a").videos, open_source(tmp_path / "b").videos
    assert [e.captions for e in first] == [e.captions for e in second] == [(name,) for name in sorted(names)]


def test_captions_are_one_clean_line(tmp_path):
    touch(tmp_path, "a.mp4")
    manifest(tmp_path, {"path": "a.mp4", "captions": [" a\tred\n ball\u0000\u001b[31m ", "\ud800 球", "", "  "]})
    captions = open_source(tmp_path).videos[0].captions
    assert captions == ("a red ball [31m", "球")
    assert all(caption.encode() for caption in captions)


def test_missing_and_empty_sources_say_what_was_looked_for(tmp_path):
    fails(tmp_path / "none", "no such file or folder")
    fails(tmp_path, r"holds no videos or images: looked for \.mp4, .*; it is empty")
    touch(tmp_path, "a.doc", "b.doc", "README")
    fails(tmp_path, "found 2 .doc, 1 no ending")
    fails(tmp_path / "a.doc", r"neither a folder nor a \.jsonl, \.csv or \.parquet manifest")
    fails(manifest(tmp_path, name="empty.jsonl"), "lists no files")


def test_captions_of_missing_files_are_counted(tmp_path):
    touch(tmp_path, "a.mp4")
    manifest(tmp_path, *({"path": f"{name}.mp4", "caption": "x"} for name in "abc"))
    fails(tmp_path, r"b\.mp4: described, but there is no such file \(captions\.jsonl:2\) \(1 more like this\)")


def test_files_without_captions_are_refused_unless_that_is_wanted(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.png")
    manifest(tmp_path, {"path": "a.mp4", "caption": "a"}, {"path": "b.mp4"})
    fails(tmp_path, r"2 of 3 files have no caption, the first is b\.mp4")
    source = open_source(tmp_path, captions_optional=True)
    assert [e.captions for e in source.videos + source.images] == [("a",), (), ()]


@pytest.mark.parametrize("name", ["../a.mp4", "sub/../../a.mp4", "/etc/a.mp4", "a\0.mp4"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    manifest(touch(tmp_path, "a.mp4"), {"path": "a.mp4", "caption": "x"}, {"path": name, "caption": "x"})
    fails(tmp_path, r"leaves the folder; .* \(captions\.jsonl:2\)")


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside = touch(tmp_path / "outside", "a.mp4")
    inside = touch(tmp_path / "inside", "b.mp4")
    os.symlink(outside / "a.mp4", inside / "link.mp4")
    fails(inside, r"link\.mp4: a link that leaves the folder", captions_optional=True)
    (inside / "link.mp4").unlink()
    os.symlink(outside, inside / "folder")
    fails(inside, "folder: a link to a folder", captions_optional=True)
    os.symlink(outside, tmp_path / "entrance")  # the source itself may be a link
    assert len(open_source(tmp_path / "entrance", captions_optional=True).videos) == 1


@pytest.mark.parametrize("name", ["captions.jsonl", "a.txt", "shard.tar"])
def test_captions_and_tars_that_lead_outside_or_are_pipes_are_never_opened(tmp_path, name):
    """Opening a pipe would wait for ever."""
    inside, outside = touch(tmp_path / "inside", "a.mp4"), tmp_path / "outside"
    outside.mkdir()
    if name == "shard.tar":
        (inside / "a.mp4").unlink()
        write_tar(outside / name, {"b.mp4": b"secret", "b.txt": b"secret"})
    else:
        (outside / name).write_text('{"path": "a.mp4", "caption": "secret"}')
    os.symlink(outside / name, inside / name)
    fails(inside, "a link that leaves the folder", captions_optional=True)
    (inside / name).unlink()
    os.mkfifo(inside / name)
    fails(inside, "not a regular file", captions_optional=True)
    (inside / name).unlink()
    os.symlink("nowhere", inside / name)
    if name != "a.txt":  # beside a clip it is as if it were not there
        fails(inside, "a link to nothing", captions_optional=True)
    os.mkfifo(tmp_path / "pipe.jsonl")
    fails(tmp_path / "pipe.jsonl", "neither a folder nor a regular file")


def test_a_sidecar_too_long_to_be_captions_is_not_read(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_bytes(b"word " * (1 << 18))
    fails(tmp_path, r"a\.txt: longer than 1048576 bytes")


def test_one_file_under_two_names_is_refused(tmp_path):
    touch(tmp_path, "a.mp4")
    os.symlink("a.mp4", tmp_path / "b.mp4")
    fails(tmp_path, r"b\.mp4: the same file as a\.mp4", captions_optional=True)


def test_of_a_file_and_its_link_the_described_one_is_kept_or_else_the_file(tmp_path):
    touch(tmp_path, "z.mp4")
    (tmp_path / "z.txt").write_text("a zed clip\n")
    os.symlink("z.mp4", tmp_path / "a.mp4")
    fails(tmp_path, r"a\.mp4: the same file as z\.mp4")
    manifest(tmp_path, {"path": "a.mp4", "caption": "by another name"})
    fails(tmp_path, r"z\.mp4: the same file as a\.mp4")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("[1]", "expected a JSON object, got list"),
        ('{"caption": "x"}', '"path" must be the name of a file, got None'),
        ('{"path": 3}', '"path" must be the name of a file, got 3'),
        ('{"path": "a.mp4", "caption": 3}', '"caption" must be text'),
        ('{"path": "a.mp4", "captions": "x"}', '"captions" a list'),
        ('{"path": "a.mp4", "caption": "x", "captions": "y"}', '"captions" a list'),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, match):
    manifest(touch(tmp_path, "a.mp4"), {"path": "a.mp4", "caption": "x"}, line)
    fails(tmp_path, rf"captions\.jsonl:2: .*{match}")


def test_text_that_is_not_utf8_and_files_that_are_no_video_are_named(tmp_path):
    touch(tmp_path, "a.mp4", "a.flac")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    fails(tmp_path, r"a\.txt: not UTF-8")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "captions.jsonl").write_bytes(b'{"path": "a.mp4", "caption": "caf\xe9"}')
    fails(tmp_path, r"captions\.jsonl:1: not UTF-8")
    manifest(tmp_path, {"path": "a.flac", "caption": "x"})
    fails(tmp_path, r"a\.flac: not one of .* \(captions\.jsonl:1\)")


def test_a_folder_may_mix_videos_and_images(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(touch(tmp_path, "b.gif") / "a.webp")
    source = open_source(tmp_path, captions_optional=True)
    assert [e.path.name for e in source.videos] == ["b.gif"]
    assert [e.path.name for e in source.images] == ["a.webp"]
    assert [e.is_image for e in source.videos + source.images] == [False, True]


def test_csv_and_parquet_manifests_say_what_jsonl_says(tmp_path):
    touch(tmp_path, "a,b.mp4", "c.mp4", "d.png")
    rows = [
        {"path": "a,b.mp4", "caption": 'a "red"\nball', "shape": "ball"},
        {"path": "c.mp4", "caption": "a cube"},
        {"path": "a,b.mp4", "caption": "it rolls"},
        {"path": "d.png", "caption": "球"},
    ]
    paths = [manifest(tmp_path, *rows, name="m.jsonl"), tmp_path / "m.csv"]
    with open(paths[1], "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["path", "caption", "shape"])
        writer.writeheader()
        writer.writerows(rows)
    if importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        paths.append(tmp_path / "m.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), paths[2])
    first, *others = [open_source(path) for path in paths]
    assert [e.captions for e in first.videos] == [('a "red" ball', "it rolls"), ("a cube",)]
    assert first.videos[0].facts == {"shape": "ball"}
    for other in others:
        assert other.videos == first.videos
        assert other.images == first.images
        assert other.videos[0].facts == {"shape": "ball"}


def test_csv_mistakes_are_named(tmp_path):
    touch(tmp_path, "a.mp4")
    path = tmp_path / "m.csv"
    path.write_text("file,caption\na.mp4,x\n")
    fails(path, "its first line must name the columns")
    path.write_text("path,caption\na.mp4,x,y\n")
    fails(path, r"m\.csv:2: has more fields")
    path.write_bytes(b"path,caption\na.mp4,caf\xe9\n")
    fails(path, r"m\.csv:2: not UTF-8")


def test_a_row_that_says_nothing_new_is_a_mistake(tmp_path):
    touch(tmp_path, "a.mp4")
    row = {"path": "a.mp4", "caption": "a ball"}
    manifest(tmp_path, row, {"path": "./a.mp4", "caption": "a  ball"})
    fails(tmp_path, r"captions\.jsonl:2: says nothing that row 1 does not say of 'a\.mp4'")


def write_tar(path, members: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_tar_members_that_share_a_name_are_one_example(tmp_path):
    write_tar(tmp_path / "1.tar", {"b.mp4": b"bytes of b", "b.txt": b"two\nthree\n", "b.pickle": b"never read"})
    write_tar(
        tmp_path / "0.tar",
        {"c.png": b"c", "c.json": b'{"caption": "a picture", "size": 3}', "a.x.mp4": b"a", "a.x.txt": b"one"},
    )
    source = open_source(tmp_path)
    assert [(e.path.name, e.captions, e.id) for e in source.videos] == [
        ("a.x.mp4", ("one",), 0),
        ("b.mp4", ("two", "three"), 1),
    ]
    assert (source.images[0].captions, source.images[0].facts) == (("a picture",), {"size": 3})
    assert source.videos[1].media() == EncodedMedia("b.mp4", b"bytes of b")
    assert open_source(tmp_path / "0.tar").videos == source.videos[:1]


def test_links_in_a_tar_are_never_followed_and_a_cut_tar_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("passwords.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert open_source(tmp_path, captions_optional=True).videos == ()
    write_tar(tmp_path / "a.tar", {"a.txt": b"a", "a.mp4": b"x" * 10_000})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:5000])
    fails(tmp_path, r"a\.tar: cannot be read as a tar file")


def test_a_mixture_numbers_its_examples_through_and_refuses_weights_of_zero(tmp_path):
    for folder in ("a", "b"):
        touch(tmp_path / folder, "1.mp4", "2.mp4")
        manifest(tmp_path / folder, *({"path": f"{i}.mp4", "caption": f"{folder}{i}"} for i in (1, 2)))
    source = open_source(f"{tmp_path}/a*3, {tmp_path}/b")
    assert [(e.id, e.part, e.captions[0]) for e in source.videos] == [
        (0, 0, "a1"), (1, 0, "a2"), (2, 1, "b1"), (3, 1, "b2"),
    ]  # fmt: skip
    assert source.weights == (3.0, 1.0)
    for weight, match in (("0", "must be above 0, got 0"), ("-1", "must be above 0, got -1"), ("x", "no number")):
        fails(f"{tmp_path}/a*{weight},{tmp_path}/b", match)


@pytest.mark.parametrize("name", ["http://x.org/a.mp4", "pipe:0", "concat:a.mp4|b.mp4", "x" * 5000 + ".mp4", "x" * 300])
def test_a_described_path_is_only_ever_a_name_in_the_folder(tmp_path, name):
    manifest(touch(tmp_path, "a.mp4"), {"path": "a.mp4", "caption": "x"}, {"path": name, "caption": "x"})
    fails(tmp_path, r"no such file|leaves the folder|not one of")
