"""Samplers: a grid of noise levels, a step, and `lax.scan`. Steps are counted in network calls.

    ddim       deterministic  (Song et al. 2021)
    ancestral  the posterior of the process, with gamma between its two variances  (VDM section 2)
    dpmpp_2m   deterministic, second order: DPM-Solver++(2M)  (Lu et al. 2022)
    distilled  for students of progressive distillation: two DDIM steps in one, then one step of noise back
               (Imagen Video section 2.7; Meng et al. 2022)

`predict_x(z, logsnr, index, memory) -> (x, memory)` is the whole model: conditioning, guidance and clipping included;
logsnr is a scalar, index the number of the step, and memory what guidance carries from one step to the next.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax.diffusion import gaussian, guidance
from imagen_video_jax.diffusion.schedules import Schedule

SAMPLERS = ("ddim", "ancestral", "dpmpp_2m", "distilled")
RULES = ("cfg", "apg")
MOST_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How a stage is sampled.

    Attributes:
      name: one of SAMPLERS; "distilled" is for students, and only their own number of steps.
      steps: network calls.
      gamma: share of the upper bound in the ancestral variance, geometric interpolation (0 lower, 1 upper).
      guidance: weight w (0: off); with `guidance_low` the high value of an oscillation.
      guidance_low: None for a constant weight.
      opening: share of the steps that start an oscillation with the high weight.
      interval: times in [0, 1] (0 clean) between which guidance acts; outside, w is 0.
      rule: "cfg" or "apg", adaptive projected guidance  (Sadat et al. 2024).
      apg_parallel, apg_norm, apg_momentum: see guidance.projected; norm 0 is no limit.
      rescale: share by which the guided estimate gets the conditional one's contrast back (Lin et al. 2023).
      clip: "static", "dynamic" or "none".
      percentile: of dynamic clipping.
      augmentation_snr: linear SNR of the noise on a super-resolution stage's input (3 or 5 in the paper); inf for none.
    """

    name: str = "ddim"
    steps: int = 32
    gamma: float = 0.1
    guidance: float = 0.0
    guidance_low: float | None = None
    opening: float = 0.1
    interval: tuple[float, float] = (0.0, 1.0)
    rule: str = "cfg"
    apg_parallel: float = 0.0
    apg_norm: float = 0.0
    apg_momentum: float = -0.5
    rescale: float = 0.0
    clip: str = "dynamic"
    percentile: float = 99.5
    augmentation_snr: float = 5.0

    def __post_init__(self):
        choices = {"name": SAMPLERS, "rule": RULES, "clip": ("static", "dynamic", "none")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"sampler.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"sampler.steps must be from 1 to {MOST_STEPS}, got {self.steps}")
        for field in ("gamma", "opening", "rescale"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"sampler.{field} must be in [0, 1], got {getattr(self, field)}")
        for field in ("guidance", "guidance_low", "apg_norm"):
            value = getattr(self, field) or 0.0
            if not 0.0 <= value < math.inf:
                raise ValueError(f"sampler.{field} must be at least 0 (0 is off) and finite, got {value}")
        if not math.isfinite(self.apg_parallel):
            raise ValueError(f"sampler.apg_parallel must be finite, got {self.apg_parallel}")
        if not -1.0 < self.apg_momentum < 1.0:
            raise ValueError(f"sampler.apg_momentum must be in (-1, 1), got {self.apg_momentum}")
        if not (len(self.interval) == 2 and 0.0 <= self.interval[0] < self.interval[1] <= 1.0):
            raise ValueError(f"sampler.interval must be two rising times in [0, 1], got {self.interval}")
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"sampler.percentile must be in (0, 100], got {self.percentile}")
        if not self.augmentation_snr > 0.0:
            raise ValueError(f"sampler.augmentation_snr must be above 0 (inf is no noise), got {self.augmentation_snr}")

    @property
    def weights_S(self) -> np.ndarray:
        """The guidance weight of each step, float32 [steps]."""
        return guidance.weights(
            guidance=self.guidance,
            low=self.guidance_low,
            opening=self.opening,
            interval=self.interval,
            steps=self.steps,
        )

    def at_unit_weights(self) -> "SamplerConfig":
        """The same for all weights that act in the same steps: a program that takes weights as arguments is of this."""
        low = self.guidance_low
        return dataclasses.replace(
            self, guidance=float(self.guidance > 0), guidance_low=None if low is None else float(low > 0)
        )


def grid(schedule: Schedule, steps: int) -> jax.Array:
    """log-SNR at t = 1, 1 - 1/steps, ..., 0: [steps + 1]."""
    return schedule.logsnr(jnp.linspace(1.0, 0.0, steps + 1))


def ancestral(*, z_t, x, logsnr_t, logsnr_s, eps, gamma: float):
    """mean + sqrt(lower^(1-gamma) upper^gamma) eps, the posterior's variance and the forward's  (VDM section 2)."""
    mean, lower = gaussian.posterior(z_t=z_t, x=x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    upper = gaussian.transition_variance(logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    return mean + jnp.sqrt(lower ** (1.0 - gamma) * upper**gamma) * eps


def dpmpp_2m(*, z_t, x, x_before, logsnr_before, logsnr_t, logsnr_s):
    """z_s = (sigma_s / sigma_t) z_t + (1 - exp((logsnr_t - logsnr_s) / 2)) alpha_s D, a DDIM step with D for x.

    D = x + (x - x_before) h / (2 h_before) continues the line through the last two estimates; h are the steps in
    log-SNR  (DPM-Solver++ algorithm 2). Where the step before was none (a schedule is flat where it is clipped), D = x.
    """
    before = logsnr_t - logsnr_before
    ratio = jnp.where(before > 0, (logsnr_s - logsnr_t) / jnp.where(before > 0, before, 1.0), 0.0)
    return gaussian.ddim(z_t=z_t, x=x + 0.5 * ratio * (x - x_before), logsnr_t=logsnr_t, logsnr_s=logsnr_s)


def distilled(*, z_t, x, logsnr_t, logsnr_s, logsnr_k, eps):
    """A DDIM step from t to k, twice as far as s, then forward noise from k back to s  (t > s > k)."""
    z_k = gaussian.ddim(z_t=z_t, x=x, logsnr_t=logsnr_t, logsnr_s=logsnr_k)
    return gaussian.diffuse_from(z_s=z_k, eps=eps, logsnr_s=logsnr_k, logsnr_t=logsnr_s)


def sample(
    predict_x: Callable[..., tuple[jax.Array, jax.Array | None]],
    *,
    noise: jax.Array,
    noise_at: Callable[[jax.Array], jax.Array],
    logsnrs: jax.Array,
    config: SamplerConfig,
    memory: jax.Array | None = None,
) -> jax.Array:
    """Runs the sampler from `noise` down the grid `logsnrs`; returns the last estimate of x.

    Args: noise_at(index) gives the fresh noise of a step of a stochastic sampler, shaped like `noise`; memory is what
    predict_x gets at the first step.
    """
    steps = logsnrs.shape[0] - 1

    def step(carry, inputs):
        z, x_before, memory = carry
        index, logsnr_before, logsnr_t, logsnr_s, logsnr_k = inputs
        x, memory = predict_x(z, logsnr_t, index, memory)
        levels = dict(z_t=z, x=x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
        if config.name == "ancestral":
            z = ancestral(**levels, eps=noise_at(index), gamma=config.gamma)
        elif config.name == "distilled":
            z = distilled(**levels, logsnr_k=logsnr_k, eps=noise_at(index))
        elif config.name == "dpmpp_2m":
            x_before = jnp.where(index == 0, x, x_before)
            z = dpmpp_2m(**levels, x_before=x_before, logsnr_before=logsnr_before)
        else:
            z = gaussian.ddim(**levels)
        return (z, x if config.name == "dpmpp_2m" else x_before, memory), None

    # The first step has no level before it: any other value than its own will do, as x_before is x.
    before = jnp.concatenate([logsnrs[:1] - 1.0, logsnrs])
    inputs = (jnp.arange(steps - 1), before[: steps - 1], logsnrs[: steps - 1], logsnrs[1:steps], logsnrs[2:])
    x_before = noise if config.name == "dpmpp_2m" else None
    (z, _, memory), _ = jax.lax.scan(step, (noise, x_before, memory), inputs)
    # The last step goes to t = 0, where z is x: its estimate is the sample.
    return predict_x(z, logsnrs[steps - 1], jnp.asarray(steps - 1), memory)[0]
