"""What a program needs, estimated: abstract evaluation and an analytic memory model, in seconds and without a compiler.

The network is traced once, at the examples that one chip sees at a time; nothing is computed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from imagen_video_jax import chips, memory_model, partitioning
from imagen_video_jax.chips import Cost
from imagen_video_jax.programs import abstract_batch, abstract_conditions, batch_sizes
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import abstract_state
from imagen_video_jax.training.step import OWN_LOSS, batch_loss
from imagen_video_jax.training.train_config import TrainConfig

# Of the model's temporaries to the compiler's, fitted on eight compiled steps (launch/PLANS.md lists them and others).
TEMPORARIES = 1.17
# Batches beside the one of the step that runs: that of the next step, already dispatched, and one made ahead.
AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Per chip: bytes of arguments and temporaries, Cost (FLOPs), bytes moved, collective bytes by kind.

    `waiting`: bytes of the batches that lie there before their turn.
    """

    arguments: float
    temporaries: float
    cost: Cost
    moved: float
    collectives: dict[str, float]
    waiting: float = 0.0

    @property
    def peak(self) -> float:
        return self.arguments + self.temporaries


def estimate_train(config: TrainConfig, mesh: AbstractMesh, *, tiles: bool) -> Estimate:
    """One train step; `tiles` says whether arrays lie in a TPU's tiles."""
    stage, parts = stage_of(config.stage), config.step.accumulate
    divisor = partitioning.batch_divisor(mesh)
    sizes = {kind: (size // divisor // parts, frames) for kind, (size, frames) in batch_sizes(config).items()}
    batches = {kind: abstract_batch(config, *size) for kind, size in sizes.items()}
    leaves = _Leaves(stage, mesh, tiles)
    key = jax.eval_shape(jax.random.key, 0)
    passes = [
        _traced(config, f"train {kind}", size, _gradients(stage, config), ({kind: batches[kind]}, key), tiles=tiles)
        for kind, size in sizes.items()
    ]
    costs = [chips.cost_of(traced.jaxpr) for traced in passes]
    # The TPU compiler gathers most weights before it begins a pass (but not inside a sampler's loop).
    usages = [leaves.usage(traced, results=leaves.shards, share=_share(mesh), ahead=True) for traced in passes]
    state = abstract_state(stage, direction(config.optimizer), mesh)
    stored = sum(_shard_bytes(leaf, leaves.size_of) for leaf in jax.tree.leaves(state))
    given = sum(_bytes(leaf, leaves.size_of) for leaf in jax.tree.leaves(batches)) * parts
    gradients = sum(leaves.shards)
    # Gradients of the other kind, and the sum over the parts, lie beside those of the kind that is passed.
    beside = (len(passes) > 1) + (parts > 1)
    return Estimate(
        arguments=stored + given,
        temporaries=max(usage.peak for usage in usages) + gradients * beside,
        cost=sum(costs, Cost()).times(parts * _share(mesh) / mesh.shape["tensor"]),
        # The update reads and writes the state once and reads the gradients.
        moved=sum(usage.moved for usage in usages) * parts + 2 * stored + gradients * (1 + 2 * beside),
        collectives=leaves.collectives(len(passes) * parts, backward=True, remat=config.stage.network.remat),
        waiting=AHEAD * given,
    )


def _gradients(stage: Stage, config: TrainConfig):
    """The gradients of one kind of examples, as a part of the step has them."""

    def gradients(params, batches, key):
        own = functools.partial(OWN_LOSS.loss, stage)
        return jax.grad(lambda p: batch_loss(own, p, {}, batches, key, config.step)[0])(params)

    return gradients


def estimate_sample(config: TrainConfig, mesh: AbstractMesh, videos: int, *, tiles: bool) -> Estimate:
    """One denoiser call of sampling `videos` videos."""
    stage = stage_of(config.stage)
    sampler = dataclasses.replace(config.stage.sampler, steps=1)
    own = videos // partitioning.batch_divisor(mesh)

    def call(params, conditions):
        return stage.sample(params, **conditions, seed=0, sampler=sampler)

    conditions = abstract_conditions(config, own)
    traced = _traced(config, "sample", own, call, (conditions,), tiles=tiles)
    leaves = _Leaves(stage, mesh, tiles)
    usage = leaves.usage(traced, results=[None], share=_share(mesh))
    given = sum(_bytes(leaf, leaves.size_of) for leaf in conditions.values()) * _share(mesh)
    return Estimate(
        arguments=sum(leaves.shards) + given,
        temporaries=usage.peak,
        cost=chips.cost_of(traced.jaxpr).times(_share(mesh) / mesh.shape["tensor"]),
        moved=usage.moved,
        collectives=leaves.collectives(1, backward=False, remat=False),
    )


@functools.lru_cache
def stage_of(config: StageConfig) -> Stage:
    return Stage(config)


_programs: dict = {}


def _traced(config: TrainConfig, mode: str, sizes, function, rest, *, tiles: bool):
    """The jaxpr of function(params, *rest), traced once for each size and kind of chip."""
    key = (config.stage, config.step.image_weight, mode, sizes, tiles)
    if key not in _programs:
        with partitioning.for_device("TPU" if tiles else ""):
            _programs[key] = jax.make_jaxpr(function)(stage_of(config.stage).network.abstract, *rest)
    return _programs[key]


def _share(mesh: AbstractMesh) -> float:
    """The part of an example's activations that lies on one chip."""
    return 1.0 / (mesh.shape["frames"] * mesh.shape["height"])


class _Leaves:
    """The parameters of a stage on a mesh, leaf by leaf."""

    def __init__(self, stage: Stage, mesh: AbstractMesh, tiles: bool):
        self.size_of = memory_model.padded_bytes if tiles else memory_model.plain_bytes
        self.mesh, self.itemsize = mesh, jnp.dtype(stage.config.network.dtype).itemsize
        abstract, axes = stage.network.abstract, stage.network.axes
        self.leaves = jax.tree.leaves(abstract)
        shardings = jax.tree.leaves(partitioning.shardings_of(mesh, abstract, axes))
        self.shapes = [s.shard_shape(leaf.shape) for s, leaf in zip(shardings, self.leaves, strict=True)]
        self.shards = [self.size_of(shape, 4) for shape in self.shapes]

    def usage(self, traced, *, results, share: float, ahead: bool = False) -> memory_model.Usage:
        """What a program uses, its temporaries scaled to the compiler's (but for weights and gradients)."""
        # A sharded weight is whole, in the type that it is computed in, while it is read.
        gathered = [
            0.0 if shape == leaf.shape else self.size_of(leaf.shape, self.itemsize) / TEMPORARIES
            for shape, leaf in zip(self.shapes, self.leaves, strict=True)
        ]
        rest = len(traced.jaxpr.invars) - len(self.leaves)
        given = traced.jaxpr.invars[len(self.leaves) :]
        usage = memory_model.usage_of(
            traced,
            weights=[True] * len(self.leaves) + [False] * rest,
            whole=[self.size_of(leaf.shape, 4) for leaf in self.leaves]
            + [self.size_of(var.aval.shape, getattr(var.aval.dtype, "itemsize", 4)) * share for var in given],
            gathered=gathered + [0.0] * rest,
            results=[None if size is None else size / TEMPORARIES for size in results],
            share=share,
            size_of=self.size_of,
            ahead=ahead,
        )
        return dataclasses.replace(usage, peak=TEMPORARIES * usage.peak)

    def collectives(self, passes: int, *, backward: bool, remat: bool) -> dict[str, float]:
        """Bytes received in a step of so many passes; halos are not estimated.

        Weights are gathered in each pass, and again where the way back computes blocks anew; gradients are summed over
        fsdp in each pass.
        """
        split = [leaf.size for shape, leaf in zip(self.shapes, self.leaves, strict=True) if shape != leaf.shape]
        found = {"all-gather": sum(split) * self.itemsize * (1 + remat) * passes}
        if backward:
            found["reduce-scatter"] = sum(split) * self.itemsize * passes
            # Over data once, whatever the parts.
            found["all-reduce"] = 2 * sum(self.shards) if self.mesh.shape["data"] > 1 else 0.0
        return {kind: float(size) for kind, size in found.items() if size}


def _shard_bytes(leaf, size_of) -> float:
    return size_of(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize)


def _bytes(leaf, size_of) -> float:
    return size_of(leaf.shape, leaf.dtype.itemsize)
