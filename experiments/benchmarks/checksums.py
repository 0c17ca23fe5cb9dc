"""What the checksums of checkpoints cost: seconds of a manifest against those of the steps between two saves.

    python -m experiments.benchmarks.checksums [--scale mini] [--stage base_16f_24x40] [--every 100] [--rounds 5]

Rounds of steps (videos and images of the experiment file's batch, random) and of hashing the step that
`checkpoint.save` wrote alternate, so that both see the same machine; medians are printed. The share is an upper bound:
in training a thread hashes while the steps go on, and sha256 lets other threads run.

Measured with the defaults on two cores that were busy with other work: a step 4969 ms, the manifest of 11.4 MB 269 ms,
so at most 0.054% with a save every 100 steps.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from experiments import scales
from experiments.benchmarks.measuring import random_batch, training_configs
from imagen_video_jax import checkpoint, storage
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import SAVED, initial_state
from imagen_video_jax.training.step import make_train_step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="mini", choices=scales.SIZES)
    parser.add_argument("--stage", default=scales.STAGES[0], choices=scales.STAGES)
    parser.add_argument("--every", type=int, default=100, help="steps between two saves")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    [config] = training_configs([arguments.stage], arguments.scale)
    stage = Stage(config.stage)
    state = jax.jit(lambda key: initial_state(stage, direction(config.optimizer), key))(jax.random.key(0))
    batches = {"video": random_batch(config.stage, config.batch_size, config.stage.train_frames)}
    batches["image"] = random_batch(config.stage, config.image_batch_size, 1)
    step = jax.jit(make_train_step(stage, config.optimizer, config.step))
    inputs = (state, batches, jax.random.key(0), jnp.float32(0))
    seconds_of(lambda: jax.block_until_ready(step(*inputs)))
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(pathlib.Path(folder), 1, {name: getattr(state, name) for name in SAVED}, {})
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        steps, manifests = [], []
        for _ in range(arguments.rounds):
            steps.append(seconds_of(lambda: jax.block_until_ready(step(*inputs))))
            manifests.append(seconds_of(lambda: storage.write_manifest(path)))
    one_step, one_manifest = statistics.median(steps), statistics.median(manifests)
    print(
        f"{config.stage.name} at {arguments.scale}: step {one_step * 1e3:.1f} ms; manifest of {size / 1e6:.1f} MB "
        f"{one_manifest * 1e3:.1f} ms; with a save every {arguments.every} steps at most "
        f"{one_manifest / (arguments.every * one_step):.3%} of the time"
    )


def seconds_of(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(in_one_line(main))
