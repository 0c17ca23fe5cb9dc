"""The demo's prompts are what they are said to be, and its report is one file that plays offline."""

import json
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
