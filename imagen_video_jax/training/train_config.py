"""`TrainConfig`: what a training run is."""

import dataclasses
import math

from jax.sharding import Mesh

from imagen_video_jax.data.buckets import parse_sizes
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import MeshShape, batch_divisor
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.text.embed import EncoderConfig
from imagen_video_jax.training.optimizer import OptimizerConfig
from imagen_video_jax.training.step import StepConfig
from imagen_video_jax.training.watchdog import Deadlines


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      stage, optimizer, step, mesh: see their classes.
      sample_mesh: on which `plan` lays sampling.
      data, validation: folders of captioned videos and images (validation may be empty: no held-out loss).
      embeddings: embedding cache of their captions; without it they are embedded by `encoder` into the user cache.
      steps: updates; `max_seconds` of training (compilation is not counted) end the run earlier and make the learning
        rate decay over time (0: no limit).
      batch_size, image_batch_size: clips and images per step (either may be 0).
      crop: of clips whose aspect differs from the stage's, "centre", "random" or "pad" (black bars instead).
      short: what a video that ends before the clip does is for: "repeat" its last frame, or "skip" it.
      buckets: sizes like "24x40", "40x24" (height x width), each video trains at the one of the nearest aspect; empty
        for the stage's own size alone.
      readers: threads that decode ahead, each in a process of its own, for each of videos and images; 0: one for each
        core of the machine, from 2 to 16. What is read does not depend on them.
      bad_share: stop (exit code 4) when more of the clips read so far are bad, and at least ten.
      seed, checkpoint_every, log_every, sample_every, evaluate_every (0: never), keep (checkpoints).
      init_from: workdir, or bundle, whose EMA weights start this run.
      profile_steps: steps to trace with the jax profiler, after the tenth or last in a shorter run (0: none).
      deadlines: of the phases of the run, for the watchdog.
      scale: name of the scale the config was made for; part of a workdir's identity.
    """

    stage: StageConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()
    mesh: MeshShape = MeshShape()
    sample_mesh: MeshShape = MeshShape()
    data: str = ""
    validation: str = ""
    embeddings: str = ""
    encoder: EncoderConfig = EncoderConfig()
    steps: int = 1000
    max_seconds: float = 0.0
    batch_size: int = 16
    image_batch_size: int = 8
    crop: str = "centre"
    short: str = "repeat"
    buckets: tuple[str, ...] = ()
    readers: int = 0
    bad_share: float = 0.01
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 10
    sample_every: int = 0
    evaluate_every: int = 0
    keep: int = 3
    init_from: str = ""
    profile_steps: int = 0
    deadlines: Deadlines = Deadlines()
    scale: str = ""

    def __post_init__(self):
        at_least_one = ("steps", "checkpoint_every", "log_every", "keep")
        for field in at_least_one:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        not_negative = ("batch_size", "image_batch_size", "readers", "sample_every", "evaluate_every", "profile_steps")
        for field in not_negative:
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if self.batch_size + self.image_batch_size < 1:
            raise ValueError("batch_size and image_batch_size are both 0: there is nothing to train on")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        if not 0 <= self.max_seconds < math.inf:
            raise ValueError(f"max_seconds must be at least 0, got {self.max_seconds}")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share must be in [0, 1], got {self.bad_share}")
        ClipSpec(1, 1, 1, crop=self.crop, short=self.short)  # raises where these are not known
        for height, width in parse_sizes(self.buckets):
            dataclasses.replace(self.stage, height=height, width=width)  # raises where the network cannot be so large


def check_divisible(config: TrainConfig, mesh: Mesh) -> None:
    """UserError where a batch cannot be laid over the mesh in equal parts."""
    divisor = batch_divisor(mesh) * config.step.accumulate
    for field in ("batch_size", "image_batch_size"):
        size = getattr(config, field)
        if size % divisor:
            raise UserError(f"{field} {size} must be divisible by {divisor} (data x fsdp devices x accumulation)")
