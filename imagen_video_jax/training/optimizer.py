"""The optimizer: a direction (Adam or Adafactor, after clipping) and a learning rate from step and progress.

The learning rate is a function of two numbers, so that a run with a time budget can decay over the budget: `step`
drives the warm-up, `progress` in [0, 1] (share of the steps, or of the time, that is used up) drives the decay.
"""

import dataclasses
import math

import jax.numpy as jnp
import optax

OPTIMIZERS = ("adam", "adafactor")
DECAYS = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes: name, learning_rate (peak), warmup (steps), decay, clip (gradient norm), b1, b2, weight_decay."""

    name: str = "adam"
    learning_rate: float = 1e-4
    warmup: int = 10_000
    decay: str = "constant"
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name must be one of {OPTIMIZERS}, got {self.name!r}")
        if self.decay not in DECAYS:
            raise ValueError(f"optimizer.decay must be one of {DECAYS}, got {self.decay!r}")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(f"optimizer.learning_rate and clip must be above 0, got {self.learning_rate}, {self.clip}")


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients -> the step to subtract, at learning rate 1."""
    if config.name == "adafactor":
        scale = optax.scale_by_factored_rms()
    else:
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    parts = [optax.clip_by_global_norm(config.clip), scale]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts)


def learning_rate(config: OptimizerConfig, step, progress):
    """Linear warm-up to the peak, then the decay by progress."""
    warm = jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
    progress = jnp.clip(progress, 0.0, 1.0)
    if config.decay == "cosine":
        left = 0.5 * (1 + jnp.cos(math.pi * progress))
    elif config.decay == "linear":
        left = 1.0 - progress
    else:
        left = 1.0
    return config.learning_rate * warm * left
