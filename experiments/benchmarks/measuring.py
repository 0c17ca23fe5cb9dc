"""A program's time, and that of its products and convolutions one by one: what it could reach doing nothing else."""

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import defaults, scales
from imagen_video_jax import chips, configs
from imagen_video_jax.batch import Batch
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.training.train_config import TrainConfig

COUNTED = ("dot_general", "conv_general_dilated")
COLUMNS = f"{'ms':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'peak':>6}{'alone':>7}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A program's time beside that of its products and convolutions, each running alone.

    Attributes:
      seconds, flops: of one run; flops of products and convolutions.
      alone: Operation -> seconds of one run of it.
      counts: Operation -> how often the program runs it.
    """

    seconds: float
    flops: float
    alone: dict["Operation", float]
    counts: Counter

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds

    @property
    def share_of_alone(self) -> float:
        """Of the rate that its own operations reach alone, weighted by FLOPs."""
        return sum(self.alone[operation] * count for operation, count in self.counts.items()) / self.seconds

    def row(self, peak: float) -> str:
        """Under `COLUMNS`; `peak`: FLOP/s of a large matrix product."""
        return (
            f"{self.seconds * 1e3:9.1f}{self.flops / 1e9:8.2f}{self.rate / 1e9:9.1f}"
            f"{self.rate / peak:6.0%}{self.share_of_alone:7.0%}"
        )

    def show_costliest(self, number: int) -> None:
        costly = sorted(self.counts, key=lambda operation: -self.alone[operation] * self.counts[operation])
        for operation in costly[:number]:
            count, one = self.counts[operation], self.alone[operation]
            print(f"    {count:3.0f} x {one * 1e3:7.2f} ms {operation.flops / one / 1e9:6.1f} GFLOP/s  {operation}")


def measure(function: Callable, inputs: tuple, seconds: float, *, options: dict | None = None) -> Measured:
    """Times `function(*inputs)` for about `seconds`, compiled with `options`, and its operations."""
    taken = fastest(jax.jit(function, compiler_options=options), inputs, seconds)
    counts = collect(jax.make_jaxpr(function)(*inputs).jaxpr)
    alone = {operation: fastest(operation.function(), operation.inputs(), 0.3) for operation in counts}
    # Not the sum of the operations' own: side by side, images have zeros between them.
    return Measured(taken, chips.count(function, *inputs).flops, alone, counts)


def training_configs(beginnings: Sequence[str], scale: str) -> list[TrainConfig]:
    """Those of the stages whose names begin so; UserError for none."""
    names = [name for name in scales.STAGES if name.startswith(tuple(beginnings))]
    if not names:
        raise UserError(f"no stage is called {' or '.join(beginnings)}; known: {', '.join(scales.STAGES)}")
    values = [defaults.training(name, scale).to_dict() for name in names]
    return [configs.to_dataclass(TrainConfig, fields, "config") for fields in values]


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
