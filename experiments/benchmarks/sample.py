"""Time of a denoiser call and of sampling for every stage, and how near they come to what their operations allow.

    python -m experiments.benchmarks.sample [--scale mini] [--stage base ...] [--videos 4] [--operations 12]

Per stage, of fresh weights and random inputs at the stage's whole size: milliseconds of one denoiser call on both
guided halves of --videos videos, its GFLOP and rate, the shares `peak` and `alone` (see train_step.py), steps of the
experiment file's sampler, and seconds that the stage takes a video with it. The last row is the sum over the stages:
what a video costs, but for text, files and moving it between stages.
"""

import argparse
import dataclasses
import sys

import jax
import jax.numpy as jnp

from experiments import scales
from experiments.benchmarks.measuring import COLUMNS, fastest, matmul_peak, measure, random_batch, training_configs
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="mini", choices=scales.SIZES)
    parser.add_argument("--stage", nargs="+", default=scales.STAGES, help="full names or beginnings")
    parser.add_argument("--videos", type=int, default=4, help="at once")
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, per figure")
    arguments = parser.parse_args()
    if arguments.videos < 1:
        raise UserError(f"--videos must be at least 1, got {arguments.videos}")
    stages = [Stage(config.stage) for config in training_configs(arguments.stage, arguments.scale)]
    peak, total = matmul_peak(), 0.0
    print(f"{'call of stage':26}{COLUMNS}{'steps':>7}{'s a video':>11}")
    for stage in stages:
        params = jax.jit(stage.network.init)(jax.random.key(0))
        call = measure(*denoiser_call(stage, params, arguments.videos), arguments.seconds)
        batch = random_batch(dataclasses.replace(stage.config, crop=None), arguments.videos, stage.config.frames)
        one = fastest(jax.jit(stage.sample_from_batch), (params, batch), arguments.seconds) / arguments.videos
        total += one
        print(f"{stage.config.name:26}{call.row(peak)}{stage.config.sampler.steps:7}{one:11.3f}", flush=True)
        call.show_costliest(arguments.operations)
    print(f"{'all':26}{'':46}{total:11.3f}")


def denoiser_call(stage: Stage, params, videos: int):
    """(function, inputs) of one call of the network on both guided halves of `videos` videos of the whole size."""
    config = stage.config
    batch = random_batch(dataclasses.replace(config, crop=None), 2 * videos, config.frames)
    shape = batch.video_BTHWC.shape
    given = {
        "logsnr_B": jnp.zeros(2 * videos),
        "text_BLD": batch.text_BLD,
        "text_mask_BL": batch.text_mask_BL,
        "fps_B": batch.fps_B,
    }
    if config.kind != "base":
        given |= {"low_BTHWC": jnp.zeros(shape), "low_logsnr_B": jnp.zeros(2 * videos)}
    if config.kind == "temporal_sr":
        given["low_mask_BT"] = jnp.ones(shape[:2])

    def call(params, z_BTHWC, given):
        return stage.network.apply(params, z_BTHWC, **given)

    return call, (params, jnp.zeros(shape), given)


if __name__ == "__main__":
    sys.exit(in_one_line(main))
