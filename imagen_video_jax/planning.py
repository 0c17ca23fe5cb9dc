"""The exact programs of a run, as shapes: the train step, and one denoiser call of sampling, on a named slice."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax import partitioning
from imagen_video_jax.batch import Batch
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.loop import TrainConfig
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.state import abstract_state
from imagen_video_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    function: Callable
    arguments: tuple
    donated: tuple[int, ...]

    def lower(self):
        return jax.jit(self.function, donate_argnums=self.donated).lower(*self.arguments)


def train_program(config: TrainConfig, mesh) -> Program:
    stage = Stage(config.stage)
    step = make_train_step(stage, config.optimizer, config.step)

    def traced(*arguments):
        with partitioning.activate(mesh):
            return step(*arguments)

    sizes = {"video": (config.batch_size, config.stage.train_frames), "image": (config.image_batch_size, 1)}
    batches = {kind: abstract_batch(config, mesh, *size) for kind, size in sizes.items() if size[0]}
    state = abstract_state(stage, direction(config.optimizer), mesh)
    state = jax.tree.map(lambda l: l, state)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(traced, (state, batches, key, jax.ShapeDtypeStruct((), jnp.float32)), (0,))


def abstract_batch(config, mesh, size, frames):
    sharding = partitioning.batch_sharding(mesh)
    stage = config.stage

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    return Batch(
        video_BTHWC=array(np.uint8, frames, stage.height, stage.width, 3),
        text_BLD=array(np.float32, stage.text_length, stage.network.text_width),
        text_mask_BL=array(np.bool_, stage.text_length),
        fps_B=array(np.float32), id_B=array(np.int32), valid_B=array(np.bool_),
    )
