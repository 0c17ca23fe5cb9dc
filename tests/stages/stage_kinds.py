"""Seven tiny stages and random batches, shared by the tests of stages and training."""

import dataclasses

import numpy as np

from experiments import defaults, scales
from imagen_video_jax.batch import Batch
from imagen_video_jax.configs import to_dataclass
from imagen_video_jax.stages.stage_config import StageConfig


def tiny(name: str, **changes) -> StageConfig:
    values = defaults.training(name, "tiny").stage.to_dict() | changes
    return to_dataclass(StageConfig, values, "stage")


def smallest(name: str, **changes) -> StageConfig:
    """One level of the tiny network: every kind of layer, a quarter of the compile time."""
    config = tiny(name, **changes)
    network = dataclasses.replace(
        config.network, channels=(16,), blocks=(1,), spatial_attention=(True,), text_attention=(True,),
        temporal=config.network.temporal[:1],
    )  # fmt: skip
    return dataclasses.replace(config, network=network)


NAMES = scales.STAGES


def random_batch(config: StageConfig, *, size: int, images: bool = False, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    T, L, D = 1 if images else config.frames, config.text_length, config.network.text_width
    return Batch(
        video_BTHWC=rng.integers(0, 256, (size, T, config.height, config.width, 3), dtype=np.uint8),
        text_BLD=rng.normal(size=(size, L, D)).astype(np.float32),
        text_mask_BL=np.arange(L)[None] < rng.integers(1, L, (size, 1)),
        fps_B=np.full((size,), 0.0 if images else config.fps, np.float32),
        id_B=np.arange(size, dtype=np.int32),
        valid_B=np.ones((size,), bool),
    ).check()
