"""What both sides of `accelerator.py` share: the network's sizes, how a step is timed, and what is printed."""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from experiments import defaults
from imagen_video_jax import chips
from imagen_video_jax.cascade_file import stage_config
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.training.guard import GuardConfig
from imagen_video_jax.training.optimizer import OptimizerConfig
from imagen_video_jax.training.step import StepConfig

BASE = "base_16f_24x40"


@dataclasses.dataclass(frozen=True)
class Workload:
    """One train step: the base stage of a size, its optimizer, and the batch of videos."""

    name: str
    stage: StageConfig
    optimizer: OptimizerConfig
    step: StepConfig
    batch: int


def workload(arguments: argparse.Namespace) -> Workload:
    """What the command line asks for; widths are laid out as the paper-sized base is."""
    widths = tuple(int(width) for width in arguments.network.split(",")) if arguments.network[0].isdigit() else ()
    small = arguments.network == "small"
    values = defaults.training(BASE, "small" if small else "paper").to_dict()
    network = values["stage"]["network"]
    if widths:
        levels = len(widths)
        network |= {"channels": widths, "blocks": (arguments.blocks,) * levels, "embedding_width": 4 * widths[0]}
        network |= dict.fromkeys(("spatial_attention", "text_attention"), (True,) * levels)
        network |= {"temporal": ("attention",) * levels}
    network |= {"attention": arguments.attention, "dtype": "bfloat16", "remat": arguments.remat or not small}
    step = {"ema_decay": values["step"]["ema_decay"], "guard": GuardConfig(**values["step"]["guard"])}
    return Workload(
        name=arguments.network,
        stage=stage_config(values["stage"] | {"crop": None}),
        optimizer=OptimizerConfig(**values["optimizer"] | {"state_dtype": arguments.state_dtype or default(small)}),
        step=StepConfig(**step),
        batch=arguments.batch or (32 if small else 8),
    )


def default(small: bool) -> str:
    """Dtype of the optimizer's moments: what lets the largest network fit one card."""
    return "float32" if small else "bfloat16"


def random_arrays(work: Workload) -> dict[str, np.ndarray]:
    """A batch of clips, their text (as T5 gives it: some captions shorter) and frame rate."""
    rng, config, B = np.random.default_rng(0), work.stage, work.batch
    L, D = config.text_length, config.network.text_width
    return {
        "video_BTHWC": rng.integers(0, 256, (B, config.frames, config.height, config.width, 3), dtype=np.uint8),
        "text_BLD": rng.normal(size=(B, L, D)).astype(np.float32),
        "text_mask_BL": np.arange(L) < rng.integers(L // 4, L + 1, (B, 1)),
        "fps_B": np.full((B,), config.fps, np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Side:
    """A step that is ready to run.

    Attributes:
      facts: what is known of it before timing.
      dispatch: starts one step. wait: until all started ones are done.
      after: what is known once it has run (memory, loss).
    """

    facts: dict
    dispatch: Callable[[], None]
    wait: Callable[[], None]
    after: Callable[[], dict]


def timed(side: Side, seconds: float) -> dict:
    """One round: steps one by one, each until it is done, then as many dispatched back to back."""
    for _ in range(2):
        side.dispatch()
    side.wait()
    single, ends = [], time.perf_counter() + seconds / 2
    while len(single) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        side.dispatch()
        side.wait()
        single.append(time.perf_counter() - began)
    count = max(3, int(seconds / 2 / statistics.median(single)))
    began = time.perf_counter()
    for _ in range(count):
        side.dispatch()
    side.wait()
    mean = (time.perf_counter() - began) / count
    milliseconds = {"median": statistics.median(single), "fastest": min(single), "back_to_back": mean}
    row = dict(side.facts) | {f"ms_{name}": round(value * 1e3, 3) for name, value in milliseconds.items()}
    row |= {"steps_timed": len(single) + count, "clips_per_second": round(side.facts["batch"] / mean, 2)}
    rate = side.facts["tflop_per_step"] / mean
    row["tflops"] = float(f"{rate:.4g}")
    if side.facts["published_tflops"]:
        row["mfu"] = round(rate / side.facts["published_tflops"], 4)
    row["share_of_matmul"] = round(rate / side.facts["matmul_tflops"], 4)
    return row | side.after()


def published(device_kind: str) -> float | None:
    """Published dense bfloat16 TFLOP/s of a device, where `chips.py` knows it."""
    chip = chips.chip_of(argparse.Namespace(device_kind=device_kind))
    return chip and chip.flops / 1e12


def show(row: dict) -> None:
    """A line a field, then the row as one line of JSON."""
    for name, value in row.items():
        print(f"{name:20}{value:,}" if type(value) is int else f"{name:20}{value}")
    print(json.dumps(row), flush=True)


def answer_rounds(side: Side, seconds: float) -> None:
    """A round for each line that comes in, its row as a line of JSON out; ends with the input."""
    print(json.dumps({"ready": side.facts}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed(side, seconds)), flush=True)


def out_of_memory(error: BaseException) -> bool:
    return any(sign in str(error).lower() for sign in ("resource_exhausted", "out of memory", "out_of_memory"))
