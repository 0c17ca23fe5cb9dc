"""What a run shows of its model on the way: the loss of held-out clips, and samples."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_video_jax import distributed, partitioning
from imagen_video_jax.batch import Batch
from imagen_video_jax.data.batches import evaluation_batches
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.sources import Source
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.inputs import Inputs
from imagen_video_jax.training.state import TrainState
from imagen_video_jax.training.step import Objective, batch_loss, means_of
from imagen_video_jax.training.train_config import TrainConfig
from imagen_video_jax.video.files import write_video
from imagen_video_jax.video.frames import to_uint8

SHOWN = 4  # samples beside each other in a video of samples/


class Looks:
    """Looks at a state's EMA weights; every process of a job takes part, the first one writes.

    Args: samples go to `folder`.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        objective: Objective,
        mesh: Mesh,
        inputs: Inputs,
        folder: pathlib.Path,
    ):
        self.config, self.stage, self.objective, self.mesh = config, stage, objective, mesh
        self.inputs, self.folder = inputs, folder

    def _evaluation_batches(self, source: Source, size: int, spec: ClipSpec):
        return evaluation_batches(
            source.videos,
            spec,
            batch_size=size,
            embeddings=self.inputs.embeddings,
            text_length=self.config.stage.text_length,
            slots=partitioning.batch_slots(self.mesh, size),
        )

    def _whole(self, frames: int) -> ClipSpec:
        stage = self.config.stage
        return ClipSpec(frames, stage.height, stage.width, stage.fps)

    def _jit_look(self, function: Callable) -> Callable:
        """A program whose results every process can read."""

        def traced(*arguments):
            with partitioning.activate(self.mesh):
                return function(*arguments)

        return jax.jit(traced, out_shardings=partitioning.replicated(self.mesh))

    def held_out_loss(self, state: TrainState) -> dict:
        """Mean loss of the EMA weights over the validation clips, with fixed noise; {} where there are none."""
        if not (self.inputs.validation and self.inputs.validation.videos):
            return {}
        if not hasattr(self, "_evaluate"):
            own = functools.partial(self.objective.loss, self.stage)
            self._evaluate = self._jit_look(
                lambda params, frozen, batch, key: batch_loss(
                    own, params, frozen, {"video": batch}, key, self.config.step
                )[1]
            )
        sums, key = {}, jax.random.key(0)
        size = max(self.config.batch_size, partitioning.batch_divisor(self.mesh))
        stage = self.config.stage
        spec = dataclasses.replace(self._whole(stage.train_frames), part=stage.crop, grid=stage.crop_grid)
        with self._evaluation_batches(self.inputs.validation, size, spec) as batches:
            for number, batch in enumerate(batches):
                batch = partitioning.put_batch(self.mesh, batch)
                own = self._evaluate(state.ema, state.frozen, batch, jax.random.fold_in(key, number))
                sums = {name: sums.get(name, 0.0) + np.asarray(value, np.float64) for name, value in own.items()}
        with np.errstate(invalid="ignore"):
            return means_of(sums)

    def write_samples(self, state: TrainState, step: int) -> None:
        """Videos for the first validation captions beside each other: DIR/samples/STEP.mp4. Without videos, nothing.

        A disk that is full stops no training: it is said, and the samples are lost.
        """
        source = next(
            (source for source in (self.inputs.validation, self.inputs.source) if source and source.videos), None
        )
        if source is None:
            return
        divisor = partitioning.batch_divisor(self.mesh)
        size = -(-SHOWN // divisor) * divisor
        with self._evaluation_batches(source, size, self._whole(self.config.stage.frames)) as batches:
            batch = partitioning.put_batch(self.mesh, next(batches))
        videos = self._sample(state.ema, batch)
        if distributed.is_first():
            row, path = np.concatenate(list(to_uint8(videos[:SHOWN])), axis=2), self.folder / f"{step:08d}.mp4"
            try:
                self.folder.mkdir(exist_ok=True)
                write_video(path, row, fps=self.config.stage.fps, metadata={"step": str(step)})
            except OSError as error:
                print(f"warning: {path} cannot be written: {error}; training goes on", file=sys.stderr)

    def _sample(self, params, batch: Batch):
        if not hasattr(self, "_sampler"):
            self._sampler = self._jit_look(self.stage.sample_from_batch)
        return self._sampler(params, batch)
