"""`imagen-video evaluate --config`: each cell has one row, whatever is killed, deleted or shared."""

import dataclasses
import json
import pathlib
import re
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from imagen_video_jax import checkpoint, configs, storage
from imagen_video_jax.cascade import Cascade, changed_sampler
from imagen_video_jax.cascade_file import join
from imagen_video_jax.cli import main
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import cell_samples, evaluate, scenes
from imagen_video_jax.evaluation.features import FeatureStore
from imagen_video_jax.evaluation.sweep import CONSTANT, SweepConfig, Trained, cells_of
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.resume import as_dict
from tests.stages.stage_kinds import NAMES, tiny

NETWORK = {"channels": (16,), "blocks": (1,), "spatial_attention": (False,), "text_attention": (True,)}
SIZE = 2  # videos per cell


def save(workdir, file, temporal, steps):
    """Checkpoints of a stage with random weights, as training leaves them; the EMA of step 2 holds NaN."""
    config = configs.training(f"experiments/{file}.py:tiny")
    network = dataclasses.replace(config.stage.network, temporal=(temporal,), **NETWORK)
    sampler = dataclasses.replace(config.stage.sampler, steps=1, guidance=0.0)
    config = dataclasses.replace(
        config, stage=dataclasses.replace(config.stage, network=network, sampler=sampler), scale="tiny"
    )
    params = Stage(config.stage).init(jax.random.key(0))
    meta = {"config": as_dict(config), "seconds": 0.0, "identity": {}, "encoder": None}
    for step in steps:
        ema = jax.tree.map(lambda leaf, step=step: leaf * (np.nan if step == 2 else 0.5 + step / 2), params)
        checkpoint.save(workdir / "checkpoints", step, {"params": params, "ema": ema}, meta)


def drawn_text(captions):
    """What stands in for a text encoder: noise that belongs to the caption."""
    rngs = [np.random.default_rng(list(caption.encode())) for caption in captions]
    return np.stack([rng.normal(size=(8, 384)) for rng in rngs]).astype(np.float32), np.ones((len(captions), 8), bool)


@pytest.fixture(scope="module", autouse=True)
def shared(tmp_path_factory):
    """A cache of their own for all tests, and programs that are compiled once: their stages are the same."""
    compiled, load = {}, Cascade.load

    def loaded(path, **options):
        cascade = load(path, **options)
        cascade._encoder, cascade._compiled = drawn_text, compiled
        return cascade

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(Cascade, "load", loaded)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two stages; the base with three checkpoints, of which the second holds NaN."""
    root = tmp_path_factory.mktemp("world")
    save(root / "base", "base_16f_24x40", "attention", (1, 2, 3))
    save(root / "tsr", "temporal_sr_32f_24x40", "convolution", (1,))
    join([str(root / "base"), str(root / "tsr")], root / "cascade.json")
    join([str(root / "base")], root / "base.json")
    return root


def fields(world, **values) -> list[str]:
    own = {"cascade": world / "base.json", "videos": SIZE, "batch": 1, "metrics": "(motion,judge)", "loss_clips": 0}
    return [f"--config.{name}={value}" for name, value in (own | values).items()]


def run(world, workdir, **values) -> int:
    request = ["evaluate", "--config", "experiments/evaluate.py:tiny", "--workdir", str(workdir)]
    return main([*request, *fields(world, **values)])


def rows_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


class Killed(BaseException):
    pass


def test_a_process_may_sample_with_several_of_its_devices_and_in_tiles(world, tmp_path, monkeypatch):
    spread, real = [], cell_samples.CellSampler._make_chunk

    def seen(self, cell, begin, *rest):
        real(self, cell, begin, *rest)
        weights = jax.tree.leaves(self.cascade.members[0].params)
        spread.append(max(len(leaf.sharding.device_set) for leaf in weights if not leaf.is_fully_replicated))

    base = {"cascade": world / "cascade.json", "checkpoints": "(1,)", "guidance": "(1,)", "batch": 2}
    assert run(world, tmp_path / "one", **base) == 0
    monkeypatch.setattr(cell_samples.CellSampler, "_make_chunk", seen)
    assert run(world, tmp_path / "two", **base | {"mesh.fsdp": 2}) == 0
    assert set(spread) == {2}
    monkeypatch.undo()
    # Over frames, tiles with enough around them are the whole; columns are the base's attention, which is never cut.
    tiles = {"tile": "(4,0,0)", "overlap": "(8,0,0)"}
    assert run(world, tmp_path / "tiles", **base | tiles) == 0
    one, two, tiled = (rows_of(tmp_path / name)[0] for name in ("one", "two", "tiles"))
    assert one["key"] == two["key"] != tiled["key"]
    for row in (two, tiled):
        assert row["metrics"]["motion"] == pytest.approx(one["metrics"]["motion"], rel=1e-3)


def test_twelve_cells_killed_twice_have_a_row_each_and_nothing_is_sampled_twice(world, tmp_path, monkeypatch):
    sweep = {"guidance": "(0,1)", "seeds": "(0,1,2)", "ema": "(True,False)"}
    made, real = [], cell_samples.CellSampler._make_chunk

    def counted(self, cell, begin, *rest):
        if len(made) in kill_at:
            kill_at.remove(len(made))
            raise Killed
        real(self, cell, begin, *rest)
        made.append((cell, begin))

    monkeypatch.setattr(cell_samples.CellSampler, "_make_chunk", counted)
    kill_at = [5, 14]
    for _ in range(2):
        with pytest.raises(Killed):
            run(world, tmp_path / "out", **sweep)
    assert 2 <= len(rows_of(tmp_path / "out")) < 12
    assert run(world, tmp_path / "out", **sweep) == 0
    rows = rows_of(tmp_path / "out")
    assert len({row["key"] for row in rows}) == len(rows) == 12
    assert len(made) == len(set(made)) == 12 * SIZE
    assert {(row["guidance"], row["seed"], row["ema"]) for row in rows} == {
        (w, seed, ema) for w in (0, 1) for seed in (0, 1, 2) for ema in (True, False)
    }
    # Run again, nothing is made; another value adds its cells alone; a value that stands twice adds none.
    assert run(world, tmp_path / "out", **sweep) == 0
    assert rows_of(tmp_path / "out") == rows
    assert run(world, tmp_path / "out", **(sweep | {"seeds": "(0,1,2,2,3)"})) == 0
    assert len(rows_of(tmp_path / "out")) == 16
    assert len(made) == 16 * SIZE
    row = rows[0]
    assert row["metrics"]["motion_interval"][0] <= row["metrics"]["motion"] <= row["metrics"]["motion_interval"][1]
    assert (row["videos"], row["real_videos"], row["step"], row["sampler"]) == (SIZE, SIZE, 3, "ddim")
    assert len(row["checkpoints"]["base_16f_24x40"]) == 64
    assert len(list((tmp_path / "out" / row["samples"]).glob("*.mp4"))) == SIZE


def test_values_that_stand_twice_are_said():
    config = SweepConfig("x", guidance=(0.0, 1.0, 0.0), seeds=(3, 3, 3))
    assert config.repeated() == [
        "guidance holds 0.0 twice or more: its cells are made once",
        "seeds holds 3 twice or more: its cells are made once",
    ]
    assert not SweepConfig("x", guidance=(0.0, 1.0)).repeated()


def test_a_cells_weight_is_constant_unless_the_sweep_oscillates():
    config = SweepConfig("x", guidance=(0.0, 6.0), guidance_low=(CONSTANT, 1.0))
    cells = cells_of(config, [Trained("", 1, "")])
    assert [cell.title for cell in cells] == [
        f"step 1, w {weight}, seed 0" for weight in ("0", "0 and 1 in turn", "6", "6 and 1 in turn")
    ]
    stage = tiny(NAMES[0])
    oscillating = dataclasses.replace(stage.sampler, guidance=15.0, guidance_low=1.0, opening=0.0, steps=4)
    stage = dataclasses.replace(stage, sampler=oscillating)
    assert changed_sampler(stage, {}).weights_S.tolist() == [15, 1, 15, 1]
    assert [changed_sampler(stage, cell.changes()).weights_S.tolist() for cell in cells] == [
        [0, 0, 0, 0], [0, 1, 0, 1], [6, 6, 6, 6], [6, 1, 6, 1]
    ]  # fmt: skip


def test_what_killed_processes_were_writing_of_a_cell_is_removed_and_nothing_else(tmp_path):
    store = FeatureStore(tmp_path)
    store.put("judge-1", "abc-000001", np.zeros(1))
    for name in (".abc-000000.npy.tmp-12-3", ".abd-000000.npy.tmp-12-3"):
        (tmp_path / "judge-1" / name).write_bytes(b"half")
    store.discard_partial("abc")
    assert sorted(p.name for p in (tmp_path / "judge-1").iterdir()) == [".abd-000000.npy.tmp-12-3", "abc-000001.npy"]


def test_a_file_among_the_rows_that_is_no_row_is_named(tmp_path):
    row = {"key": "abc", "finished": 1.5, "metrics": {}}
    storage.write_json(tmp_path / "abc.json", row)
    assert evaluate._read_row(tmp_path / "abc.json") == row
    for other in ({}, [], 1, row | {"key": "abd"}, row | {"finished": None}, row | {"metrics": 1}):
        storage.write_json(tmp_path / "abc.json", other)
        with pytest.raises(UserError, match=r"abc\.json is not the row of a cell; remove it"):
            evaluate._read_row(tmp_path / "abc.json")


def test_a_damaged_feature_of_a_sample_is_made_again_to_the_byte(world, tmp_path):
    assert run(world, tmp_path, guidance="(0,)") == 0
    (row,) = rows_of(tmp_path)
    file = next((tmp_path / "features").glob("pixels*/*.npy"))
    intact = file.read_bytes()
    file.write_bytes(bytes([*intact[:140], intact[140] ^ 1, *intact[141:]]))
    (tmp_path / "rows" / f"{row['key']}.json").unlink()
    assert run(world, tmp_path, guidance="(0,)") == 0
    assert file.read_bytes() == intact
    assert rows_of(tmp_path)[0]["metrics"] == row["metrics"]


def test_a_bundle_is_evaluated_like_the_cascade_it_was_exported_from(world, tmp_path, capsys):
    assert main(["export", "--cascade", str(world / "base.json"), "--out", str(tmp_path / "bundle")]) == 0
    assert run(world, tmp_path / "own", guidance="(0,)") == 0
    assert run(world, tmp_path / "out", cascade=tmp_path / "bundle", guidance="(0,)") == 0
    (own,), (row,) = rows_of(tmp_path / "own"), rows_of(tmp_path / "out")
    assert row["step"] == own["step"] == 3
    assert row["metrics"] == own["metrics"]
    assert row["checkpoints"] != own["checkpoints"], "other files: a manifest here, safetensors there"
    capsys.readouterr()
    assert run(world, tmp_path / "no", cascade=tmp_path / "bundle", ema="(True,False)") == 2
    assert "is a bundle" in capsys.readouterr().err


def test_stages_colour_shift_losses_and_the_report(world, tmp_path):
    out = tmp_path / "out"
    wanted = {"cascade": world / "cascade.json", "guidance": "(0,2)", "loss_clips": 2, "batch": 2, "metrics": "()"}
    assert run(world, out, **wanted) == 0
    metrics = rows_of(out)[0]["metrics"]
    assert metrics["colour_shift_temporal_sr_32f_24x40"] >= 0
    assert metrics["judge_colour_real"] > 0.4
    assert metrics["motion_real"] > 0
    levels = metrics["validation_loss_by_logsnr"]
    assert len(levels) >= 3
    assert all(np.isfinite(level["loss"]) for level in levels)
    page = (out / "report.html").read_text()
    assert page.count("<video") == 3 * SIZE, "both cells and the real scenes"
    assert "<polyline" in page
    assert "the real videos" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("https://huggingface.co", "").replace("https://github.com", "")


def test_checkpoints_that_are_gone_or_hold_nan_are_named_and_the_others_go_on(world, tmp_path, capsys, monkeypatch):
    shutil.copytree(world / "base", tmp_path / "base")
    join([str(tmp_path / "base")], tmp_path / "base.json")
    real = checkpoint.restore

    def restore(path, *rest):
        if path.name == "1":  # deleted while it is read
            shutil.rmtree(path)
        return real(path, *rest)

    monkeypatch.setattr(checkpoint, "restore", restore)
    sweep = {"cascade": tmp_path / "base.json", "checkpoints": "(all,7)", "guidance": "(0)"}
    capsys.readouterr()
    assert run(world, tmp_path / "out", **sweep) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(lines) == 3
    assert re.search(r"step 7: checkpoint .* is not there", lines[0])
    assert re.search(r"step 1, .* was deleted", lines[1])
    assert re.search(r"step 2, .* hold NaN", lines[2])
    assert [row["step"] for row in rows_of(tmp_path / "out")] == [3]
    assert "hold NaN" in (tmp_path / "out" / "report.html").read_text()


def test_a_checkpoint_that_training_deletes_meanwhile_is_kept_until_its_cells_are_done(world, tmp_path, monkeypatch):
    shutil.copytree(world / "base", tmp_path / "base")
    join([str(tmp_path / "base")], tmp_path / "base.json")
    real = cell_samples.CellSampler._make_chunk

    def training_goes_on(self, *rest):
        shutil.rmtree(tmp_path / "base" / "checkpoints" / "1", ignore_errors=True)
        real(self, *rest)

    monkeypatch.setattr(cell_samples.CellSampler, "_make_chunk", training_goes_on)
    sweep = {"cascade": tmp_path / "base.json", "checkpoints": "(1,3)", "guidance": "(0,1)"}
    assert run(world, tmp_path / "out", **sweep) == 0
    assert [row["step"] for row in rows_of(tmp_path / "out")] == [1, 1, 3, 3]
    assert not list((tmp_path / "out" / "pinned").glob("*/*"))


def test_a_running_training_is_followed_until_it_makes_no_more_checkpoints(world, tmp_path, monkeypatch):
    folder = tmp_path / "base" / "checkpoints"
    shutil.copytree(world / "base" / "checkpoints" / "1", folder / "1")
    join([str(tmp_path / "base")], tmp_path / "base.json")
    polls, real = [], time.sleep

    def training_goes_on(seconds):
        polls.append(seconds)
        if len(polls) == 2:
            shutil.copytree(world / "base" / "checkpoints" / "3", folder / "3")
            shutil.rmtree(folder / "1")  # training keeps the newest
        real(0.02)

    clock = SimpleNamespace(sleep=training_goes_on, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(evaluate, "time", clock)
    sweep = {"cascade": tmp_path / "base.json", "checkpoints": "(all)", "guidance": "(0,)", "follow_minutes": 0.005}
    assert run(world, tmp_path / "out", **sweep) == 0
    assert [row["step"] for row in rows_of(tmp_path / "out")] == [1, 3]
    assert len(polls) > 3, "it waits for another one before it ends"
    assert not list((tmp_path / "out" / "pinned").glob("*/*")), "what is done costs no space"


def test_the_real_side_is_drawn_and_read_once_for_all_sweeps(world, tmp_path, monkeypatch):
    drawn, real = [], scenes.rendered

    def counted(*scene):
        drawn.append(scene)
        return real(*scene)

    monkeypatch.setattr(scenes, "rendered", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, sweep in (("a", {"guidance": "(0,1)"}), ("b", {"seeds": "(5,)"})):
        # shown=0: the report draws those that it shows for itself
        assert run(world, tmp_path / name, **({"guidance": "(0,)", "shown": 0} | sweep)) == 0
        assert rows_of(tmp_path / name)[0]["metrics"]["motion_real"] > 0
    assert len(drawn) == SIZE


def test_processes_share_the_chunks_and_make_each_row_once(world, tmp_path, monkeypatch):
    made, real = [], cell_samples.CellSampler._make_chunk

    def counted(self, cell, begin, *rest):
        made.append((cell, begin))
        real(self, cell, begin, *rest)

    monkeypatch.setattr(cell_samples.CellSampler, "_make_chunk", counted)
    config = configs.sweep("experiments/evaluate.py:tiny", fields(world, videos=4, guidance="(0,1)"))
    prompts = scenes.prompts_of_scenes("validation", 4)
    threads = [
        threading.Thread(
            target=evaluate.evaluate, args=(config, tmp_path), kwargs={"prompts": prompts, "share": (i, 2)}
        )
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 8
    assert len({row["key"] for row in rows_of(tmp_path)}) == len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cascade": ""}, "config.cascade must name a cascade.json"),
        ({"cascade": "/no/such.json"}, "no such file: /no/such.json"),
        ({"metrics": "(fdv)"}, "unknown metric 'fdv'"),
        ({"metrics": "(fid)"}, "--config.inception FILE"),
        ({"metrics": "(lpips)"}, "lpips: compares pairs"),
        ({"guidance": "(-1)"}, "guidance must be at least 0, got -1"),
        ({"guidance": "(0,nan)"}, "guidance must be finite"),
        ({"guidance_low": "(-2.0,)"}, "guidance_low must be at least 0, or -1 for constant weights"),
        ({"follow_minutes": -1}, "follow_minutes must be at least 0, got -1"),
        ({"checkpoints": "(last)"}, "got 'last'"),
        ({"samplers": "(euler)"}, "got 'euler'"),
        ({"vary": "nothing"}, "no single stage is named 'nothing'"),
        ({"vary": "all", "checkpoints": "(all)"}, "--config.vary=all sweeps no checkpoints"),
        ({"videos": 0}, "videos must be at least 1, got 0"),
        ({"guidanse": 0}, "did you mean 'guidance'"),
        ({"wandb": "mine"}, "imagen_video_jax[wandb]"),
    ],
)
def test_wrong_sweeps_are_one_line_and_exit_2(world, tmp_path, capsys, values, says):
    if "wandb" in values:
        try:
            import wandb  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("wandb is installed")
    capsys.readouterr()
    assert run(world, tmp_path / "out", **values) == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    assert says in text


def test_prompts_of_a_file_have_no_judge_and_too_few_are_said(world, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    named = {"prompts": tmp_path / "prompts.txt", "guidance": "(0)", "metrics": "()"}
    assert run(world, tmp_path / "out", **named) == 0
    assert "not measured: judge: needs motion_shapes labels" in capsys.readouterr().err
    assert rows_of(tmp_path / "out")[0]["real_videos"] == 0
    assert run(world, tmp_path / "more", **(named | {"videos": 3})) == 2
    assert "holds 2 prompts, videos is 3" in capsys.readouterr().err


def test_a_running_training_may_have_deleted_what_the_cascade_names(world, tmp_path, capsys):
    shutil.copytree(world / "base", tmp_path / "base")
    join([str(tmp_path / "base")], tmp_path / "base.json")
    (tmp_path / "base" / "checkpoints" / "3").rename(tmp_path / "base" / "checkpoints" / "4")
    sweep = {"cascade": tmp_path / "base.json", "guidance": "(0)"}
    assert run(world, tmp_path / "out", checkpoints="(newest,)", **sweep) == 0
    assert [row["step"] for row in rows_of(tmp_path / "out")] == [4]
    capsys.readouterr()
    assert run(world, tmp_path / "out", **sweep) == 2
    assert re.search(r"checkpoint .*base/checkpoints/3, which does not exist", capsys.readouterr().err)


def test_damaged_rows_are_named(world, tmp_path, capsys):
    assert run(world, tmp_path / "out", guidance="(0)") == 0
    next(pathlib.Path(tmp_path / "out" / "rows").glob("*.json")).write_text("{")
    capsys.readouterr()
    assert run(world, tmp_path / "out", guidance="(0)") == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert storage.damaged_files(world / "base" / "checkpoints" / "3") == []
