"""Time of a train step of every stage, and how near it comes to what its operations allow.

    python -m experiments.benchmarks.train_step [--scale mini] [--stage base ...] [--operations 12]

Per stage: milliseconds of a step (videos and images of the experiment file's batch, random), GFLOP of matrix products
and convolutions in it, and the rate that makes. Then:

    peak    share of the rate that a square float32 matrix product of 2048 reaches here
    alone   share of the rate that the step's own products and convolutions reach when each runs alone, weighted by
            FLOPs: what is missing to 100% is spent between them (norms, activations, optimizer, moving data)

With --operations N the N costliest operations of the step, alone, are listed: count, shapes, ms, GFLOP/s. Times are the
shortest of several runs: of a busy machine they are an upper bound.
"""

import argparse
import sys

import jax
import jax.numpy as jnp

from experiments import scales
from experiments.benchmarks.measuring import COLUMNS, Measured, matmul_peak, measure, random_batch, training_configs
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.models.layers import KEEPING
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import initial_state
from imagen_video_jax.training.step import make_train_step
from imagen_video_jax.training.train_config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="mini", choices=scales.SIZES)
    parser.add_argument("--stage", nargs="+", default=scales.STAGES, help="full names or beginnings")
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, per stage")
    arguments = parser.parse_args()
    chosen = training_configs(arguments.stage, arguments.scale)
    peak = matmul_peak()
    print(f"{'step of stage':26}{COLUMNS}")
    for config in chosen:
        step = measure_step(config, arguments.seconds)
        print(f"{config.stage.name:26}{step.row(peak)}", flush=True)
        step.show_costliest(arguments.operations)


def measure_step(config: TrainConfig, seconds: float) -> Measured:
    stage = Stage(config.stage)
    state = jax.jit(lambda key: initial_state(stage, direction(config.optimizer), key))(jax.random.key(0))
    batches = {"video": random_batch(config.stage, config.batch_size, config.stage.train_frames)}
    batches["image"] = random_batch(config.stage, config.image_batch_size, 1)
    step = make_train_step(stage, config.optimizer, config.step)
    options = KEEPING if jax.default_backend() == "cpu" else None  # as `training.loop`
    return measure(step, (state, batches, jax.random.key(0), jnp.float32(0)), seconds, options=options)


if __name__ == "__main__":
    sys.exit(in_one_line(main))
