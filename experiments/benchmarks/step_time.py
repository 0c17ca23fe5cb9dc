"""Time of a train step and a denoiser call of every stage, and how near they come to what their operations allow.

    python -m experiments.benchmarks.step_time [--scale mini] [--stage base ...] [--operations 12]

Per stage: milliseconds of a step (videos and images of the experiment file's batch, random) and of one denoiser call
(two guided halves of a batch of 4); GFLOP of matrix products and convolutions in them, and the rate that makes. Then:

    peak    share of the rate that a square float32 matrix product of 2048 reaches here
    alone   share of the rate that the step's own products and convolutions reach when each runs alone, weighted by
            FLOPs: what is missing to 100% is spent between them (norms, activations, optimizer, moving data)

With --operations N the N costliest operations of the step, alone, are listed: count, shapes, ms, GFLOP/s. Times are the
shortest of several runs: of a busy machine they are an upper bound.
"""

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from experiments import defaults, scales
from imagen_video_jax import chips, configs
from imagen_video_jax.batch import Batch
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.models.layers import KEEPING
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import initial_state
from imagen_video_jax.training.step import make_train_step
from imagen_video_jax.training.train_config import TrainConfig

COUNTED = ("dot_general", "conv_general_dilated")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="mini", choices=scales.SIZES)
    parser.add_argument("--stage", nargs="+", default=scales.STAGES, help="full names or beginnings")
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, per figure")
    arguments = parser.parse_args()
    peak = matmul_peak()
    print(f"matrix product of 2048, float32: {peak / 1e9:.0f} GFLOP/s on {jax.devices()[0].device_kind}")
    print(f"{'stage':26}{'step ms':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'peak':>6}{'alone':>7}{'call ms':>9}{'GFLOP/s':>9}")
    for name in scales.STAGES:
        if not name.startswith(tuple(arguments.stage)):
            continue
        values = defaults.training(name, arguments.scale).to_dict()
        report(configs.to_dataclass(TrainConfig, values, "config"), peak, arguments)


def report(config: TrainConfig, peak: float, arguments) -> None:
    stage = Stage(config.stage)
    state = jax.jit(lambda key: initial_state(stage, direction(config.optimizer), key))(jax.random.key(0))
    batches = {"video": random_batch(config.stage, config.batch_size, config.stage.train_frames)}
    batches["image"] = random_batch(config.stage, config.image_batch_size, 1)
    step = make_train_step(stage, config.optimizer, config.step)
    inputs = (state, batches, jax.random.key(0), jnp.float32(0))
    options = KEEPING if jax.default_backend() == "cpu" else None  # as `training.loop`
    seconds = fastest(jax.jit(step, compiler_options=options), inputs, arguments.seconds)
    operations = collect(jax.make_jaxpr(step)(*inputs).jaxpr)
    alone = {operation: fastest(operation.function(), operation.inputs(), 0.3) for operation in operations}
    total = chips.count(step, *inputs).flops  # not of the operations: side by side, images have zeros between them
    alone_rate = total / sum(alone[operation] * count for operation, count in operations.items())
    call_seconds, call_flops = denoiser_call(stage, state.params, arguments.seconds)
    rate = total / seconds
    print(
        f"{config.stage.name:26}{seconds * 1e3:9.1f}{total / 1e9:8.2f}{rate / 1e9:9.1f}{rate / peak:6.0%}"
        f"{rate / alone_rate:7.0%}{call_seconds * 1e3:9.1f}{call_flops / call_seconds / 1e9:9.1f}",
        flush=True,
    )
    costly = sorted(operations, key=lambda operation: -alone[operation] * operations[operation])
    for operation in costly[: arguments.operations]:
        count, one = operations[operation], alone[operation]
        print(f"    {count:3} x {one * 1e3:7.2f} ms {operation.flops / one / 1e9:6.1f} GFLOP/s  {operation}")


def denoiser_call(stage: Stage, params, seconds: float, size: int = 4) -> tuple[float, float]:
    """(seconds, FLOPs) of one guided call of the network on `size` clips of the whole output size."""
    config = stage.config
    batch = random_batch(dataclasses.replace(config, crop=None), 2 * size, config.frames)
    shape = batch.video_BTHWC.shape
    low = None if config.kind == "base" else jnp.zeros(shape)
    arguments = {
        "logsnr_B": jnp.zeros(2 * size),
        "text_BLD": batch.text_BLD,
        "text_mask_BL": batch.text_mask_BL,
        "fps_B": batch.fps_B,
        "low_BTHWC": low,
        "low_logsnr_B": None if low is None else jnp.zeros(2 * size),
        "low_mask_BT": jnp.ones(shape[:2]) if config.kind == "temporal_sr" else None,
    }
    call = lambda params, z, arguments: stage.network.apply(params, z, **arguments)  # noqa: E731
    inputs = (params, jnp.zeros(shape), arguments)
    return fastest(jax.jit(call), inputs, seconds), chips.count(call, *inputs).flops


def random_batch(config: StageConfig, size: int, frames: int) -> Batch:
    rng = np.random.default_rng(0)
    L, D = config.text_length, config.network.text_width
    return Batch(
        video_BTHWC=rng.integers(0, 256, (size, frames, config.height, config.width, 3), dtype=np.uint8),
        text_BLD=rng.normal(size=(size, L, D)).astype(np.float32),
        text_mask_BL=np.ones((size, L), bool),
        fps_B=np.full((size,), config.fps, np.float32),
        id_B=np.arange(size, dtype=np.int32),
        valid_B=np.ones((size,), bool),
    )


@dataclasses.dataclass(frozen=True)
class Operation:
    """A product or convolution of certain shapes; equal ones are timed once."""

    primitive: object
    shapes: tuple
    params: tuple

    def function(self):
        return jax.jit(lambda *inputs: self.primitive.bind(*inputs, **dict(self.params)))

    def inputs(self):
        return [jnp.ones(shape, dtype) for shape, dtype in self.shapes]

    @functools.cached_property
    def flops(self) -> float:
        return chips.count(self.function(), *self.inputs()).flops

    def __str__(self) -> str:
        kind = "dot" if self.primitive.name == "dot_general" else "conv"
        return kind + " " + " ".join("x".join(map(str, shape)) for shape, _ in self.shapes)


def collect(jaxpr, turns: float = 1.0) -> Counter:
    """Operation -> how often a program runs it."""
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name in COUNTED:
            shapes = tuple((variable.aval.shape, variable.aval.dtype) for variable in equation.invars)
            found[Operation(equation.primitive, shapes, tuple(sorted(equation.params.items())))] += turns
        inner = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for program in programs_here(equation):
            found.update(collect(program, turns * inner))
    return found


def programs_here(equation) -> list:
    """The programs that an equation runs on this machine: of those for several platforms, its own."""
    platforms = equation.params.get("branches_platforms")
    if not platforms:
        return chips.inner_jaxprs(equation)
    own = [index for index, names in enumerate(platforms) if names and jax.default_backend() in names]
    return [equation.params["branches"][own[0] if own else platforms.index(None)].jaxpr]


def fastest(function, inputs, seconds: float) -> float:
    """The shortest of the runs that fit into `seconds` (three at least), after one that compiles."""
    jax.block_until_ready(function(*inputs))
    best, ends, runs = math.inf, time.perf_counter() + seconds, 0
    while runs < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        best, runs = min(best, time.perf_counter() - began), runs + 1
    return best


def matmul_peak(size: int = 2048) -> float:
    """FLOP/s of a square matrix product."""
    x = jnp.ones((size, size), jnp.float32)
    return 2.0 * size**3 / fastest(jax.jit(lambda x: x @ x), (x,), 3.0)


if __name__ == "__main__":
    sys.exit(in_one_line(main))
