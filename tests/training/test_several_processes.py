"""One job on 1 process x 8 devices, 2 x 4 and 4 x 2: the same examples, losses and checkpoints."""

import json
import signal
import time
import types

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax import checkpoint
from imagen_video_jax.data.embed_captions import embed_captions
from imagen_video_jax.training.metrics import read_rows, report_clips
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video
from tests.processes import ended, start
from tests.text.fake_encoder import FakeEncoder, states_of
from tests.training import one_process
from tests.training.one_process import STAGES, STEPS


def level(number: int) -> int:
    return 20 * number + 7


def caption(number: int) -> str:
    return f"this is {number}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine videos and three images of one grey each, the caption says which."""
    root = tmp_path_factory.mktemp("job")
    data = root / "data"
    data.mkdir()
    for number in range(12):
        if number < 9:
            write_video(data / f"{number:02d}.mp4", np.full((32, 12, 20, 3), level(number), np.uint8), fps=24)
        else:
            Image.fromarray(np.full((12, 20, 3), level(number), np.uint8)).save(data / f"{number:02d}.png")
        (data / f"{number:02d}.txt").write_text(caption(number))
    embed_captions(root / "embeddings", [caption(number) for number in range(12)], FakeEncoder())
    yield root
    isolated.close_all()


@pytest.fixture(scope="module")
def results(folder):
    """layout -> the results of its processes."""
    found = {"1x8": [{"states": one_process.train_all("1x8", folder)}]}
    known = ["1x8"]
    for processes, devices in ((2, 4), (4, 2)):
        layout = f"{processes}x{devices}"
        arguments = ["tests.training.one_process", layout, str(folder), str(devices), *known]
        for code, _, error in ended(start(processes, lambda _, arguments=arguments: arguments)):
            assert code == 0, error[-3000:]
        found[layout] = [json.loads((folder / f"{layout}.{n}.json").read_text()) for n in range(processes)]
        known.append(layout)
    return found


@pytest.mark.slow  # twenty-one programs are compiled, three in each process
def test_losses_are_the_same(results, folder):
    for name in STAGES:
        read = {layout: read_rows(folder / f"{layout}-{name}" / "metrics.jsonl") for layout in results}
        rows = {layout: [row for row in found if row["kind"] == "train"] for layout, found in read.items()}
        for layout, found in rows.items():
            assert [row["step"] for row in found] == list(range(1, STEPS + 1)), layout
            for field in ("loss", "loss_video", "loss_image"):
                expected = [row[field] for row in rows["1x8"]]
                np.testing.assert_allclose(
                    [row[field] for row in found], expected, rtol=1e-5, err_msg=f"{layout} {name}"
                )
        assert rows["1x8"][-1]["loss"] != rows["1x8"][0]["loss"]


@pytest.mark.slow  # twenty-one programs are compiled, three in each process
def test_every_example_comes_with_its_own_caption(results):
    for layout in ("2x4", "4x2"):
        for result in results[layout]:
            batches = STEPS + 1  # one is made ahead
            assert len(result["seen"]) == len(STAGES) * batches * 2 * 8 // len(results[layout])
            for is_video, number, pixel, text in result["seen"]:
                assert abs(pixel - level(number)) <= 2
                assert text == states_of(caption(number)).flat[0]
                assert is_video == (number < 9)


@pytest.mark.slow  # twenty-one programs are compiled, three in each process
def test_a_checkpoint_of_one_layout_is_restored_by_the_others_byte_for_byte(results, folder):
    states = {layout: found[0]["states"] for layout, found in results.items()}
    for layout in ("2x4", "4x2"):
        for result in results[layout]:
            assert result["states"] == states[layout]
            for other, hashes in result["restored"].items():
                assert hashes == states[other], f"{other} restored on {layout}"
    for other in ("2x4", "4x2"):
        assert one_process.restored_hashes(other, folder) == states[other]


def train_command(folder, workdir, *more):
    fields = {
        "data": folder / "data", "embeddings": folder / "embeddings", "steps": 100_000, "checkpoint_every": 100_000,
        "batch_size": 0, "image_batch_size": 4, "log_every": 1, "optimizer.name": "adam",
        "stage.text_length": 4, "stage.network.text_width": 6, "stage.network.channels": "(8,)",
        "stage.network.blocks": "(1,)", "stage.network.spatial_attention": "(False,)",
        "stage.network.text_attention": "(True,)", "stage.network.temporal": "(attention,)",
    }  # fmt: skip
    command = ["imagen_video_jax", "train", "--config", "experiments/base_16f_24x40.py:tiny", "--workdir", str(workdir)]
    return [*command, *(f"--config.{name}={value}" for name, value in fields.items()), *more]


def test_a_process_with_another_config_is_refused_and_the_field_named(folder, tmp_path):
    own = [[], ["--config.optimizer.learning_rate=0.5"]]
    for code, _, error in ended(start(2, lambda number: train_command(folder, tmp_path / "run", *own[number]))):
        assert code == 2
        assert "the processes of this job differ in config.optimizer.learning_rate: '0.001' in process 0" in error


def test_a_sigterm_to_one_process_stops_all_at_the_same_step(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0")
    processes = start(2, lambda _: train_command(folder, tmp_path / "run"))
    until = time.monotonic() + 900
    while len(read_rows(tmp_path / "run" / "metrics.jsonl")) < 3 and time.monotonic() < until:
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in ended(processes)] == [75, 75]
    (step,) = checkpoint.committed_steps(tmp_path / "run" / "checkpoints")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[-1]["step"] == step >= 3


def test_each_process_lists_the_clips_that_it_could_not_use(tmp_path):
    for process in (0, 1, 0):
        stream = types.SimpleNamespace(skipped={f"{process}.mp4": "broken"}, repeated={"short.mp4": "of 3 frames"})
        report_clips(tmp_path, [stream], process)
    for process, name in enumerate(("unusable.jsonl", "unusable-1.jsonl")):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [row["path"] for row in rows] == [f"{process}.mp4", "short.mp4"]
