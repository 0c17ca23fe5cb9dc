"""The page of a sweep, made of rows written by hand."""

import itertools
import re

import pytest

from imagen_video_jax.evaluation import sweep_report
from imagen_video_jax.evaluation.scenes import Prompts

PROMPTS = Prompts(("a red circle", "a <b>"))


def row(sampler="ddim", guidance=0.0, seed=0, low=None, **metrics):
    return {
        "stage": "base",
        "step": 5,
        "ema": True,
        "sampler": sampler,
        "steps": 4,
        "guidance": guidance,
        "guidance_low": low,
        "seed": seed,
        "prompts": PROMPTS.digest,
        "videos": 2,
        "real_videos": 2,
        "size": [8, 12, 20, 3.0],
        "samples": f"samples/{sampler}-{guidance:g}-{seed}-{low}",
        "seconds": 1.0,
        "metrics": {"judge_style": 1.0, "motion_real": 3.0} | metrics,
        "notes": [],
        "config": {"cascade": "my/cascade.json"},
    }


@pytest.fixture
def rows():
    made = [row(s, w, judge=j, motion=2 + w) for (s, w), j in zip(CELLS, (0.1, 0.4, 0.2, 0.2, 0.4, 0.3))]
    for one in made:
        one["metrics"]["judge_interval"] = [0.0, 0.9]
    return made


CELLS = list(itertools.product(("ddim", "ancestral"), (0.0, 1.0, 3.0)))


def page(tmp_path, rows, **left_out):
    return sweep_report.page(tmp_path, rows, PROMPTS, left_out, {}, 2)


def test_the_table_tells_cells_apart_by_what_differs_and_marks_the_best_value_where_there_is_one(tmp_path, rows):
    table = page(tmp_path, rows).split("<h2>")[1]
    assert "(step 5, EMA, 4 calls, constant, seed 0 in every cell)" in page(tmp_path, rows)
    assert re.findall(r"<tr><td>([^<]*)", table)[:2] == ["ancestral, w 0", "ancestral, w 1"]
    assert re.findall(r'<td class="best">([\d.]+)', table) == ["0.4", "0.4"], (
        "judge; motion has no better, style is alike"
    )
    assert re.findall("<th>([^<]*)", table) == [
        "cell",
        "judge_style ↑",
        "judge ↑",
        "motion",
        "seconds",
    ]


def test_videos_of_a_prompt_stand_in_a_grid_with_the_real_one_and_what_is_missing_is_said(tmp_path, rows):
    for one in rows[1:]:
        folder = tmp_path / one["samples"]
        folder.mkdir(parents=True)
        for i in range(2):
            (folder / f"{i:06d}.mp4").write_bytes(b"mp4")
    real = tmp_path / sweep_report.shown_folder(PROMPTS, rows[0]["size"])
    real.mkdir()
    (real / "000000.mp4").write_bytes(b"real")
    found = page(tmp_path, rows)
    grids = re.findall(r'<table class="grid">.*?</table>', found)
    assert [grid.count("<video") for grid in grids] == [6, 5]
    assert [grid.count("(removed)") for grid in grids] == [1, 1]
    assert re.findall("<th>([^<]*)</th>", grids[0]) == [
        "",
        "as it really looks",
        "w 0",
        "w 1",
        "w 3",
        "ancestral",
        "ddim",
    ]
    assert "<h3>a &lt;b&gt;</h3>" in found


def test_oscillating_weights_are_cells_of_their_own(tmp_path):
    rows = [row(guidance=w, low=low, judge=w / 20) for w in (6.0, 15.0) for low in (1.0, None)]
    for one in rows:
        (tmp_path / one["samples"]).mkdir(parents=True)
        (tmp_path / one["samples"] / "000000.mp4").write_bytes(b"mp4")
    found = page(tmp_path, rows)
    assert re.findall(r"<tr><td>([^<]*)", found)[:4] == [
        f"w {w}, {how}" for w in (6, 15) for how in ("constant", "and 1 in turn")
    ]
    grid = re.findall(r'<table class="grid">.*?</table>', found)[0]
    assert grid.count("<video") == 4
    # Where only the lower weight differs, it is what goes from left to right.
    found = page(tmp_path, rows[:2])
    assert re.findall("<th>([^<]*)</th>", found.split('<table class="grid">')[1].split("</tr>")[0]) == [
        "", "constant", "and 1 in turn"
    ]  # fmt: skip


def test_samples_of_other_prompts_in_the_same_folder_are_not_shown_under_these(tmp_path, rows):
    old = row("dpmpp_2m", 7.0, judge=0.0) | {"prompts": "another"}
    found = page(tmp_path, [*rows, old])
    assert "dpmpp_2m, w 7" in found.split("<h2>")[1]
    assert "w 7" not in found.split("in every cell</h2>")[1].split("<h2>")[0]


def test_a_chart_per_metric_that_differs_with_shares_from_zero_to_one(tmp_path, rows):
    over = page(tmp_path, rows).split("<h2>Over the guidance weight")[1]
    assert re.findall('aria-label="(.*?)"', over) == ["judge by guidance weight w", "motion by guidance weight w"]
    assert over.count("<polyline") == 4
    assert over.split("</svg>")[0].count(">1</text>") >= 1
    assert ">1.2</text>" not in over.split("</svg>")[0]
    assert "The same in every cell: judge_style (1)." in over
    assert "<title>ddim: 0.4 (0 to 0.9) at 1</title>" in over
