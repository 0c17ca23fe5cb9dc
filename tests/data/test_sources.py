"""Sources: captions find their files, and every way to get that wrong is said in one line."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import WRONG_REQUEST, UserError


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
        {"path": "c.png", "caption": "a picture"},
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
    (tmp_path / "a.txt").write_text("\ufefffrom the sidecar\n\n  second  \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("not used\n")
    manifest(tmp_path, {"path": "b.webm", "caption": "from the manifest"})
    assert [e.captions for e in open_source(tmp_path).videos] == [
        ("from the sidecar", "second"),
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
    fails(tmp_path / "a.doc", r"neither a folder nor a \.jsonl")
    fails(manifest(tmp_path, name="empty.jsonl"), "lists no files")


def test_captions_of_missing_files_are_counted(tmp_path):
    touch(tmp_path, "a.mp4")
    manifest(tmp_path, *({"path": f"{name}.mp4", "caption": "x"} for name in "abc"))
    fails(tmp_path, r"2 of 3 captioned files are missing, the first is b\.mp4")


def test_files_without_captions_are_refused_unless_that_is_wanted(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.png")
    manifest(tmp_path, {"path": "a.mp4", "caption": "a"}, {"path": "b.mp4"})
    fails(tmp_path, r"2 of 3 files have no caption, the first is b\.mp4")
    source = open_source(tmp_path, captions_optional=True)
    assert [e.captions for e in source.videos + source.images] == [("a",), (), ()]


@pytest.mark.parametrize("name", ["../a.mp4", "sub/../../a.mp4", "/etc/a.mp4", "a\0.mp4"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    manifest(touch(tmp_path, "a.mp4"), {"path": "a.mp4", "caption": "x"}, {"path": name, "caption": "x"})
    fails(tmp_path, r"captions\.jsonl:2: .*leaves the folder")


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside = touch(tmp_path / "outside", "a.mp4")
    inside = touch(tmp_path / "inside", "b.mp4")
    os.symlink(outside / "a.mp4", inside / "link.mp4")
    fails(inside, r"link\.mp4 is a link that leaves the folder", captions_optional=True)
    (inside / "link.mp4").unlink()
    os.symlink(outside, inside / "folder")
    fails(inside, "folder is a link to a folder", captions_optional=True)
    os.symlink(outside, tmp_path / "entrance")  # the source itself may be a link
    assert len(open_source(tmp_path / "entrance", captions_optional=True).videos) == 1


def test_one_file_under_two_names_is_refused(tmp_path):
    touch(tmp_path, "a.mp4")
    os.symlink("a.mp4", tmp_path / "b.mp4")
    fails(tmp_path, r"a\.mp4 and b\.mp4 are the same file", captions_optional=True)


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
    fails(tmp_path, r"a\.txt is not UTF-8")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "captions.jsonl").write_bytes(b'{"path": "a.mp4", "caption": "caf\xe9"}')
    fails(tmp_path, r"captions\.jsonl is not UTF-8")
    manifest(tmp_path, {"path": "a.flac", "caption": "x"})
    fails(tmp_path, r"'a\.flac' in the manifest is not one of")


def test_a_folder_may_mix_videos_and_images(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(touch(tmp_path, "b.gif") / "a.webp")
    source = open_source(tmp_path, captions_optional=True)
    assert [e.path.name for e in source.videos] == ["b.gif"]
    assert [e.path.name for e in source.images] == ["a.webp"]
    assert [e.is_image for e in source.videos + source.images] == [False, True]
