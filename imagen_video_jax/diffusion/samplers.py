"""Samplers: a grid of noise levels, a step, and `lax.scan`. Steps are counted in network calls.

`predict_x(z, logsnr, index) -> x` is the whole model: conditioning, guidance and clipping included; logsnr is a scalar
and index the number of the step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_video_jax.diffusion import gaussian
from imagen_video_jax.diffusion.schedules import Schedule

SAMPLERS = ("ddim", "ancestral")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How a stage is sampled.

    Attributes:
      name: "ddim" (deterministic) or "ancestral".
      steps: network calls.
      gamma: share of the upper bound in the ancestral variance, geometric interpolation (0 lower, 1 upper).
      guidance: weight w (0: off); with `guidance_low` the high value of an oscillation.
      guidance_low: None for a constant weight.
      clip: "static", "dynamic" or "none".
      percentile: of dynamic clipping.
    """

    name: str = "ddim"
    steps: int = 32
    gamma: float = 0.1
    guidance: float = 0.0
    guidance_low: float | None = None
    clip: str = "dynamic"
    percentile: float = 99.5

    def __post_init__(self):
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler.name must be one of {SAMPLERS}, got {self.name!r}")
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, got {self.steps}")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"sampler.gamma must be in [0, 1], got {self.gamma}")
        if self.guidance < 0.0:
            raise ValueError(f"sampler.guidance must be at least 0 (0 is off), got {self.guidance}")
        if self.clip not in ("static", "dynamic", "none"):
            raise ValueError(f"sampler.clip must be static, dynamic or none, got {self.clip!r}")
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"sampler.percentile must be in (0, 100], got {self.percentile}")


def grid(schedule: Schedule, steps: int) -> jax.Array:
    """log-SNR at t = 1, 1 - 1/steps, ..., 0: [steps + 1]."""
    return schedule.logsnr(jnp.linspace(1.0, 0.0, steps + 1))


def ancestral(*, z_t, x, logsnr_t, logsnr_s, eps, gamma: float):
    """mean + sqrt(lower^(1-gamma) upper^gamma) eps, the posterior's variance and the forward's  (VDM section 2)."""
    mean, lower = gaussian.posterior(z_t=z_t, x=x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    upper = gaussian.transition_variance(logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    return mean + jnp.sqrt(lower ** (1.0 - gamma) * upper**gamma) * eps


def sample(
    predict_x: Callable[..., jax.Array],
    *,
    noise: jax.Array,
    noise_at: Callable[[jax.Array], jax.Array],
    logsnrs: jax.Array,
    config: SamplerConfig,
) -> jax.Array:
    """Runs the sampler from `noise` down the grid `logsnrs`; returns the last estimate of x.

    Args: noise_at(index) gives the fresh noise of a step of a stochastic sampler, shaped like `noise`.
    """
    steps = logsnrs.shape[0] - 1

    def step(z, inputs):
        index, logsnr_t, logsnr_s = inputs
        x = predict_x(z, logsnr_t, index)
        levels = dict(z_t=z, x=x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
        if config.name == "ddim":
            return gaussian.ddim(**levels), None
        return ancestral(**levels, eps=noise_at(index), gamma=config.gamma), None

    z, _ = jax.lax.scan(step, noise, (jnp.arange(steps - 1), logsnrs[: steps - 1], logsnrs[1:steps]))
    # The last step goes to t = 0, where z is x: its estimate is the sample.
    return predict_x(z, logsnrs[steps - 1], jnp.asarray(steps - 1))
