"""Real training runs through the command line, as small as training gets: started, disturbed, and what they leave."""

import dataclasses
import fcntl
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from imagen_video_jax import checkpoint, steps
from imagen_video_jax.data.embed_captions import embed_captions
from imagen_video_jax.training.metrics import read_rows
from imagen_video_jax.video.files import write_video
from tests.processes import ROOT, free_port, variables
from tests.text.fake_encoder import FakeEncoder

STAGES = {"base": "base_16f_24x40", "TSR": "temporal_sr_32f_24x40", "SSR": "spatial_sr_32f_48x80"}
_SMALL = {
    "batch_size": 4, "image_batch_size": 4, "log_every": 1, "checkpoint_every": 3, "optimizer.name": "adam",
    "stage.text_length": 4, "stage.network.text_width": 6, "stage.network.channels": "(8,)",
    "stage.network.blocks": "(1,)", "stage.network.spatial_attention": "(False,)",
    "stage.network.text_attention": "(True,)",
}  # fmt: skip
# Two devices a process: with one, bits depend on how many cores are free. Every start finds its programs compiled.
_ENVIRONMENT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "IMAGEN_VIDEO_JOIN_SECONDS": "240",
}
PATIENCE = 1200  # seconds for anything that should happen


def write_data(root: pathlib.Path) -> None:
    """Nine videos and three images of one colour each, with captions and their embeddings."""
    (root / "data").mkdir(parents=True)
    for number in range(12):
        colour = np.random.default_rng(number).integers(0, 256, 3, dtype=np.uint8)
        if number < 9:
            frames_THWC = np.broadcast_to(colour, (32, 12, 20, 3)).copy()
            write_video(root / "data" / f"{number:02d}.mp4", frames_THWC, fps=24)
        else:
            Image.fromarray(np.broadcast_to(colour, (12, 20, 3)).copy()).save(root / "data" / f"{number:02d}.png")
        (root / "data" / f"{number:02d}.txt").write_text(f"this is {number}")
    embed_captions(root / "embeddings", [f"this is {number}" for number in range(12)], FakeEncoder())


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run in `workdir`, below a folder of `write_data`; it can be started again and again.

    Attributes:
      hosts: processes, each with its own watchdog.
      fields: of the config.
      arguments: more words of the command.
      config: the experiment file, where it is another one.
    """

    workdir: pathlib.Path
    stage: str = "base"
    hosts: int = 1
    fields: dict = dataclasses.field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    config: str = ""

    def start(self) -> list[subprocess.Popen]:
        self.workdir.mkdir(parents=True, exist_ok=True)
        port = free_port()
        return [self._start(number, port) for number in range(self.hosts)]

    def _start(self, number: int, port: int) -> subprocess.Popen:
        temporal = "(attention,)" if self.stage == "base" else "(convolution,)"
        root = self.workdir.parent
        fields = {"data": root / "data", "embeddings": root / "embeddings", "stage.network.temporal": temporal}
        fields |= _SMALL | self.fields
        config = self.config or f"experiments/{STAGES[self.stage]}.py"
        words = ["train", "--config", f"{config}:tiny", "--workdir", str(self.workdir), *self.arguments]
        words += [f"--config.{name}={value}" for name, value in fields.items()]
        environment = variables(number, self.hosts, port) if self.hosts > 1 else {**os.environ, "PYTHONPATH": str(ROOT)}
        with open(self.log(number), "a") as log:
            command = [sys.executable, "-m", "imagen_video_jax", *words]
            return subprocess.Popen(command, env=environment | _ENVIRONMENT, stdout=log, stderr=log, cwd=ROOT)

    def log(self, number: int) -> pathlib.Path:
        """What process `number` said, in all runs."""
        return self.workdir.parent / f"{self.workdir.name}.{number}.log"

    def said(self) -> str:
        """The end of what all processes said, for a message."""
        return "\n".join(self.log(number).read_text()[-2000:] for number in range(self.hosts))

    def last_step(self) -> int:
        """Of the training rows."""
        return max((row["step"] for row in read_rows(self.workdir / "metrics.jsonl")), default=0)

    def started_at(self) -> list[int]:
        """The step that each run began with, in order."""
        return [row["step"] for row in read_rows(self.workdir / "events.jsonl") if row["kind"] == "start"]

    def newest(self) -> int:
        """The newest committed step, which verifies; 0 where there is none."""
        path = steps.newest(self.workdir / "checkpoints")
        return 0 if path is None else int(path.name)

    def until(self, condition: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
        """Waits for the condition; AssertionError where a process ends before, or it takes too long."""
        ends = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends, f"nothing happened for {PATIENCE} s: {self.said()}"
            assert all(process.poll() is None for process in processes) or condition(), self.said()
            time.sleep(0.02)

    def ended(self, processes: list[subprocess.Popen]) -> list[int]:
        """The exit codes; whoever takes too long is killed."""
        try:
            return [process.wait(PATIENCE) for process in processes]
        finally:
            kill(processes)

    def wait_until_free(self) -> None:
        """A watchdog's child ends a moment after a watchdog that was killed; the folder's lock ends with it."""
        with open(self.workdir / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def run(self) -> dict:
        """Runs undisturbed to its end; what is left."""
        processes = self.start()
        assert self.ended(processes) == [0] * self.hosts, self.said()
        return self.left()

    def left(self) -> dict:
        """The data position, and sha256 of every array of parameters, EMA, optimizer and guard, in the last step."""
        path = steps.newest(self.workdir / "checkpoints")
        meta = checkpoint.read_meta(path)
        found = {"step": meta["step"], "left_out": meta["left_out"]}
        for name, arrays in meta["trees"].items():
            abstract = {key: _abstract(text) for key, text in arrays.items()}
            for key, value in checkpoint.restore(path, name, abstract).items():
                found[f"{name}.{key}"] = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()
        return found


def _abstract(text: str) -> np.ndarray:
    """float32[2,3] -> an array of that kind."""
    dtype, _, shape = text.rstrip("]").partition("[")
    return np.empty([int(size) for size in shape.split(",") if size], dtype)


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def child_of(process: subprocess.Popen) -> int:
    """The process that trains, below its watchdog."""
    return int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
