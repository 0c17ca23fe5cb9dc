"""The programs that a run executes, as functions of shapes: the train step, and one denoiser call of sampling.

Nothing is computed and no weights exist; a mesh may be one of devices that are elsewhere (a topology), or abstract.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from imagen_video_jax import partitioning
from imagen_video_jax.batch import Batch
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import abstract_state
from imagen_video_jax.training.step import make_train_step
from imagen_video_jax.training.train_config import TrainConfig, check_divisible


@dataclasses.dataclass(frozen=True)
class Program:
    """Attributes: function of `arguments` (trees of ShapeDtypeStruct with shardings), of which `donated` are reused."""

    function: Callable
    arguments: tuple
    donated: tuple[int, ...] = ()

    def lower(self):
        return jax.jit(self.function, donate_argnums=self.donated).lower(*self.arguments)

    @property
    def argument_bytes(self) -> int:
        """Bytes of the arguments on one device, without padding."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.arguments)
        )


def train_program(config: TrainConfig, mesh: Mesh) -> Program:
    """The train step of `config` on `mesh`; UserError where the batch does not divide."""
    check_divisible(config, mesh)
    stage = Stage(config.stage)
    state = abstract_state(stage, direction(config.optimizer), mesh)
    sharding = partitioning.batch_sharding(mesh)
    batches = {
        kind: jax.tree.map(lambda leaf: _with(leaf, sharding), abstract_batch(config, size, frames))
        for kind, (size, frames) in batch_sizes(config).items()
    }
    rest = (jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32))
    step = make_train_step(stage, config.optimizer, config.step)
    return Program(_on(mesh, step), (state, batches, *rest), donated=(0,))


def sample_program(config: TrainConfig, mesh: Mesh, videos: int) -> Program:
    """One denoiser call of sampling `videos` videos on `mesh`: guidance, clipping and the input's preparation included.

    It is `Stage.sample` with a sampler of one step, so that the network is in the program once.
    """
    stage, sampler = Stage(config.stage), dataclasses.replace(config.stage.sampler, steps=1)
    if videos % partitioning.batch_divisor(mesh):
        raise UserError(f"{videos} videos cannot be divided over {partitioning.batch_divisor(mesh)} parts of the mesh")
    params = jax.tree.map(
        _with, stage.network.abstract, partitioning.shardings_of(mesh, stage.network.abstract, stage.network.axes)
    )
    batch = partitioning.batch_sharding(mesh)
    arguments = {name: _with(leaf, batch) for name, leaf in abstract_conditions(config, videos).items()}
    if "low_BTHWC" in arguments:
        low = arguments["low_BTHWC"]
        names = ("batch", "frames", "height", None, None)
        arguments["low_BTHWC"] = _with(low, NamedSharding(mesh, partitioning.spec_of(mesh, low.shape, names)))

    def call(params, arguments):
        return stage.sample(params, **arguments, seed=0, sampler=sampler)

    return Program(_on(mesh, call), (params, arguments))


def _on(mesh: Mesh, function: Callable) -> Callable:
    def traced(*arguments):
        with partitioning.activate(mesh):
            return function(*arguments)

    return traced


def _with(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def batch_sizes(config: TrainConfig) -> dict[str, tuple[int, int]]:
    """What a step is made of: kind -> (examples, frames of each)."""
    sizes = {"video": (config.batch_size, config.stage.train_frames), "image": (config.image_batch_size, 1)}
    return {kind: size for kind, size in sizes.items() if size[0]}


def abstract_batch(config: TrainConfig, size: int, frames: int) -> Batch:
    """The shapes of a batch of `size` clips of `frames` frames."""
    stage = config.stage

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    return Batch(
        video_BTHWC=array(np.uint8, frames, *stage.train_size, 3),
        text_BLD=array(np.float32, stage.text_length, stage.network.text_width),
        text_mask_BL=array(np.bool_, stage.text_length),
        fps_B=array(np.float32),
        id_B=array(np.int32),
        valid_B=array(np.bool_),
    )


def abstract_conditions(config: TrainConfig, videos: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of `Stage.sample`'s arguments for `videos` videos."""
    stage = config.stage
    shapes = {
        "text_BLD": ((videos, stage.text_length, stage.network.text_width), np.float32),
        "text_mask_BL": ((videos, stage.text_length), np.bool_),
        "index_B": ((videos,), np.int32),
    }
    if stage.input_size:
        frames, height, width, _ = stage.input_size
        shapes["low_BTHWC"] = ((videos, frames, height, width, 3), np.float32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
