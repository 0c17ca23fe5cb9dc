"""The train step of this project, as `training/loop.py` compiles it: state donated, outputs laid out as inputs."""

import dataclasses
import functools
import math
import os
import time

# The program of the largest networks takes nearly all of the card; a shared card is shared by asking as it goes.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.sides.common import Side, Workload, published, random_arrays
from imagen_video_jax import chips
from imagen_video_jax.batch import Batch
from imagen_video_jax.functional import parameter_count
from imagen_video_jax.models import attention
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training import guard
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import TrainState
from imagen_video_jax.training.step import make_train_step


def build(work: Workload) -> Side:
    """Compiles the step and runs it once."""
    device, stage = jax.devices()[0], Stage(work.stage)
    batches, key, progress = {"video": batch_of(work)}, jax.random.key(0), jnp.float32(0)
    facts = {
        "side": "jax",
        "version": jax.__version__,
        "device": device.device_kind,
        "network": work.name,
        "attention": kernel_of(work),
        "remat": work.stage.network.remat,
        "state_dtype": work.optimizer.state_dtype,
        "parameters": parameter_count(stage.network.abstract),
        "batch": work.batch,
        "tflop_per_step": step_flops(work) / 1e12,
        "published_tflops": published(device.device_kind),
        "matmul_tflops": float(f"{matmul_rate(device) / 1e12:.4g}"),
    }
    if facts["attention"] == "cudnn":
        facts["attention_error"] = kernel_error(work)
    state, batches = random_state(stage, work), jax.device_put(batches)
    # A CPU only tries it out: unoptimised code is ready sooner.
    options = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    step = jax.jit(make_train_step(stage, work.optimizer, work.step), donate_argnums=0, compiler_options=options)
    began = time.perf_counter()
    program = step.lower(state, batches, key, progress).compile()
    facts["compile_seconds"] = round(time.perf_counter() - began, 1)
    if plan := program.memory_analysis():
        parts = (plan.argument_size_in_bytes, plan.output_size_in_bytes, -plan.alias_size_in_bytes)
        facts["program_gib"] = round((sum(parts) + plan.temp_size_in_bytes) / 2**30, 2)
    held = {"state": state}
    del state  # it is donated: no second name may keep it

    def dispatch():
        held["state"], held["metrics"] = program(held.pop("state"), batches, key, progress)

    def after():
        found = {"loss": round(float(held["metrics"]["loss"]), 4)}
        found["skipped"] = int(held["metrics"]["skipped_in_a_row"])
        memory = device.memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            found["peak_gib"] = round(memory["peak_bytes_in_use"] / 2**30, 2)
        return found

    side = Side(facts, dispatch, lambda: jax.block_until_ready(held["state"].step), after)
    side.dispatch()
    side.wait()
    return side


def batch_of(work: Workload) -> Batch:
    B = work.batch
    return Batch(**random_arrays(work), id_B=np.arange(B, dtype=np.int32), valid_B=np.ones((B,), bool))


def step_flops(work: Workload) -> float:
    """FLOPs that one step asks for, recomputation apart; nothing is computed."""
    work = plain(work)
    stage = Stage(work.stage)
    params = stage.network.abstract
    state = jax.eval_shape(lambda params: state_of(params, params, direction(work.optimizer).init(params)), params)
    step = make_train_step(stage, work.optimizer, work.step)
    return chips.count(step, state, {"video": batch_of(work)}, jax.random.key(0), jnp.float32(0)).useful


def state_of(params, ema, moments) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, ema, moments, guard.initial())


def random_state(stage: Stage, work: Workload) -> TrainState:
    """A state of random kernels, leaf by leaf: no second copy of it is ever there, and little to compile.

    All kernels are random, also those that training starts at zero: a chip computes zeros faster.
    """

    def make(path, leaf):
        name = path[-1].key
        fill = 1.0 if name == "scale" else 0.0
        return _random(leaf.shape) if leaf.ndim > 1 else jnp.full(leaf.shape, fill, leaf.dtype)

    params, ema = (jax.tree_util.tree_map_with_path(make, stage.network.abstract) for _ in range(2))
    return state_of(params, ema, jax.jit(direction(work.optimizer).init)(params))


@functools.partial(jax.jit, static_argnums=0)
def _random(shape: tuple[int, ...]) -> jax.Array:
    scale = 1.0 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.normal(jax.random.key(0, impl="rbg"), shape) * scale


def kernel_of(work: Workload) -> str:
    """The kernel that attention over pixels calls, at the first level that has it: what was asked for may not be."""
    network = work.stage.network
    if not any(network.spatial_attention):
        return "none"
    q, k, _ = _attention_shapes(work)
    return "cudnn" if attention.fused(network.attention, q, k) else "xla"


def _attention_shapes(work: Workload):
    """(q, k, mask) of attention over pixels and text, for one clip."""
    config, network = work.stage, work.stage.network
    level = network.spatial_attention.index(True)
    pixels = math.prod(-(-side // 2**level) for side in (config.height, config.width))
    heads = max(network.channels[level] // network.head_width, 1)
    q = jax.ShapeDtypeStruct((config.frames, pixels, heads, network.channels[level] // heads), jnp.bfloat16)
    keys = pixels + config.text_length * network.text_attention[level]
    return q, jax.ShapeDtypeStruct((q.shape[0], keys, *q.shape[2:]), q.dtype), (q.shape[0], keys)


def kernel_error(work: Workload) -> float:
    """How far cuDNN's output and gradients are from XLA's, the largest difference over the largest value."""
    q, k, (B, S) = _attention_shapes(work)
    q, k, v = (jax.random.normal(jax.random.key(i), a.shape, a.dtype) for i, a in enumerate((q, k, k)))
    mask_BS = jnp.arange(S) < S - 3 - jnp.arange(B)[:, None]  # lengths of all kinds

    def results(kernel, q, k, v):
        def value(q, k, v):
            return attention.attend(q, k, v, mask_BS=mask_BS, kernel=kernel)

        out, back = jax.vjp(value, q, k, v)
        return out, *back(jnp.cos(out))

    ours, theirs = (jax.jit(functools.partial(results, kernel))(q, k, v) for kernel in ("cudnn", "xla"))
    errors = (jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in zip(ours, theirs))
    return round(max(float(error) for error in errors), 5)


def matmul_rate(device: jax.Device) -> float:
    """FLOP/s of a bfloat16 matrix product of 8192 (512 on a CPU)."""
    size, count = (512, 3) if device.platform == "cpu" else (8192, 20)
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(lambda a, b: a @ b)
    y = jax.block_until_ready(multiply(multiply(x, x), x))
    began = time.perf_counter()
    for _ in range(count):
        y = multiply(x, x)
    jax.block_until_ready(y)
    return count * 2.0 * size**3 / (time.perf_counter() - began)


def plain(work: Workload) -> Workload:
    """The same with XLA's attention, which a machine without a GPU can trace."""
    network = dataclasses.replace(work.stage.network, attention="xla")
    return dataclasses.replace(work, stage=dataclasses.replace(work.stage, network=network))
