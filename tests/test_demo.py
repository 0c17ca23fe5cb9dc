"""The demo's prompts are what they are said to be, and its report is one file that plays offline."""

import json
import os
import re

import numpy as np
import pytest

from imagen_video_jax import demo
from imagen_video_jax.data import motion_shapes
from imagen_video_jax.video.files import write_video


def test_prompts_are_seen_held_out_and_paraphrased():
    listed = demo.prompts()
    assert len(listed) >= 8
    assert [kind for _, kind in listed] == list(demo.PROMPTS)
    training = {
        caption for index in range(300) for caption in motion_shapes.captions_of(motion_shapes.make_scene(0, index), 2)
    }
    words = {word for caption in training for word in re.findall("[a-z]+", caption)}
    for text, kind in listed:
        unknown = set(re.findall("[a-z]+", text)) - words
        assert bool(unknown) == (kind == "paraphrase"), text
    held_out = {" ".join(c[:2]) for c in motion_shapes.held_out_combinations()}
    for text, kind in listed:
        if kind == "held_out":
            assert any(all(word in text for word in pair.split()) for pair in held_out)


@pytest.fixture
def finished(tmp_path):
    """A demo folder as it is before the report is written, with two prompts."""
    rows = []
    for number, (prompt, _) in enumerate(demo.prompts()[:2]):
        name = f"{number:04d}-000.mp4"
        rows.append({"prompt": prompt, "number": 0, "seed": 0, "path": name})
        folders = [tmp_path / "videos"]
        folders += [tmp_path / "stage_videos" / f"{i}_{stage}" for i, stage in enumerate(demo.stage_names(), 1)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_video(folder / name, np.full((4, 8, 8, 3), 99, np.uint8), fps=4)
    workdirs = []
    for number, stage in enumerate(demo.stage_names(), 1):
        workdirs.append(tmp_path / "stages" / f"{number}_{stage}")
        workdirs[-1].mkdir(parents=True)
        lines = [{"step": step, "kind": "train", "loss": 1 / step} for step in (1, 10, 20)]
        (workdirs[-1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path, workdirs, rows


def test_the_report_is_one_file_with_every_stage_and_no_link_to_anywhere(finished):
    out, workdirs, rows = finished
    scores = {"colour": {"accuracy": 0.5, "interval": [0.38, 0.62], "right": 32, "of": 64}}
    demo.write_report(out, workdirs, rows, {"minutes": 3, "scores": scores, "seconds": 1})
    page = (out / "report.html").read_text()
    for stage in demo.stage_names():
        assert stage in page
    assert page.count("<video") == len(rows) * (1 + len(workdirs))
    assert page.count("<polyline") == len(workdirs)
    assert "50%" in page
    assert "38% to 62%" in page
    # xmlns and data: URLs aside, nothing is fetched.
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page


def test_the_report_shows_the_shipped_miniature_beside_what_was_trained_on(finished):
    out, workdirs, rows = finished
    for row in rows:
        path = out / "miniature" / "videos" / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.full((4, 8, 8, 3), 99, np.uint8), fps=4)
    before = {"colour": {"accuracy": 0.25, "interval": [0.13, 0.41], "right": 16, "of": 64}}
    scores = {"colour": {"accuracy": 0.5, "interval": [0.38, 0.62], "right": 32, "of": 64}}
    demo.write_report(out, workdirs, rows, {"minutes": 3, "before": before, "scores": scores, "seconds": 1})
    page = (out / "report.html").read_text()
    assert page.count("<video") == len(rows) * (2 + len(workdirs))
    assert page.index("25%") < page.index("50%")


def test_what_was_sampled_and_judged_is_not_made_again_until_a_stage_trains_on(finished, monkeypatch):
    out, workdirs, rows = finished
    scores = {"colour": {"accuracy": 0.5}}
    manifest = workdirs[0] / "checkpoints" / "7" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    for path, text in (
        (manifest, "{}"),
        (out / "videos" / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        (out / "scores.json", json.dumps(scores)),
    ):
        path.write_text(text)
    os.utime(manifest, (1, 1))
    monkeypatch.setattr(demo, "sample_with", lambda *_, **__: "sampled again")
    assert demo.sample_prompts(None, out, seed=0) == rows
    assert demo.judge_base(None, out, seed=0) == scores
    later = (out / "scores.json").stat().st_mtime + 5
    os.utime(manifest, (later, later))
    assert demo.sample_prompts(None, out, seed=0) == "sampled again"
