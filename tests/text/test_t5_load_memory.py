"""No process ever holds more of a sharded checkpoint than its share and what is being read.

By hand, with 2 GB:  IMAGEN_VIDEO_LOAD_GB=2 python -m pytest -s tests/text/test_t5_load_memory.py
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from imagen_video_jax.text.t5_encoder import T5Config
from tests.text.t5_checkpoints import hugging_face, random_arrays, write_safetensors, write_t5x

PROCESSES = 4
GIGABYTES = float(os.environ.get("IMAGEN_VIDEO_LOAD_GB", "0.6"))
BLOCK = 4 * 1024 * 1024 + 3 * 1024 * 2816
LAYERS = round((GIGABYTES * 1e9 / 4 - 8000 * 1024) / BLOCK)
CONFIG = T5Config(vocabulary=8000, width=1024, heads=16, head_width=64, feed_forward=2816, layers=LAYERS)


@pytest.fixture(scope="module")
def arrays():
    return random_arrays(CONFIG)


@pytest.mark.parametrize("form", ["t5x", "safetensors"])
def test_each_of_four_processes_holds_little_more_than_its_share(arrays, tmp_path, form):
    if form == "t5x":
        path = write_t5x(tmp_path / "checkpoint_0", arrays, compressor=None, parts=4)
    else:
        path = tmp_path / "hf"
        write_safetensors(path, hugging_face(arrays, decoder=False, alias=False))
    rows = load_in_processes(path)
    share, rise = (max(row[name] for row in rows) / 1e9 for name in ("share", "rise"))
    print(f"{form}: {GIGABYTES:g} GB, share {share:.2f} GB, peak memory rose by {rise:.2f} GB")
    assert share < GIGABYTES / PROCESSES * 1.1
    assert rise < share + 0.25
    assert share + 0.25 < 0.75 * GIGABYTES, "what a process would hold if it read everything"


def load_in_processes(path: pathlib.Path) -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COORDINATOR_ADDRESS": address}
    environment |= {"JAX_NUM_PROCESSES": str(PROCESSES), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = pathlib.Path(__file__).with_name("load_share.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, path], env=environment | {"JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE
        )
        for number in range(PROCESSES)
    ]
    return [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in running]
