"""Noise schedules: time t in [0, 1] (0 clean, 1 noise) -> log-SNR, decreasing (flat where it is clipped), in float32.

z_t = alpha_t x + sigma_t eps,   alpha^2 + sigma^2 = 1,   logsnr = log(alpha^2 / sigma^2)
"""

import dataclasses
import math

import jax.numpy as jnp

SCHEDULES = ("cosine", "linear")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule and its range.

    Attributes:
      name: "cosine" (alpha = cos(pi t / 2), range cut as in Salimans & Ho 2022) or "linear" (the continuous form of
        betas from 1e-4 to 0.02 in 1000 steps, Ho et al. 2020; Imagen's last super-resolution stage).
      logsnr_min, logsnr_max: what it is clipped to; the values at t = 1 and t = 0 of "cosine" without a shift.
      shift: added to the log-SNR, 2 log(64 / d) for resolution d (Hoogeboom et al. 2023): large pictures need more
        noise to hide the same content.
    """

    name: str = "cosine"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule.name must be one of {SCHEDULES}, got {self.name!r}")
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"schedule.logsnr_min must be below logsnr_max, got {self.logsnr_min}, {self.logsnr_max}")

    def logsnr(self, t):
        """log-SNR at time t, clipped to the range after the shift."""
        t = jnp.asarray(t, jnp.result_type(float, t))
        base = _cosine(t, self.logsnr_min, self.logsnr_max) if self.name == "cosine" else _linear(t)
        return jnp.clip(base + self.shift, self.logsnr_min, self.logsnr_max)


def _cosine(t, logsnr_min: float, logsnr_max: float):
    """-2 log tan(a t + b), a and b such that t = 0 and 1 give the two ends."""
    b = math.atan(math.exp(-0.5 * logsnr_max))
    a = math.atan(math.exp(-0.5 * logsnr_min)) - b
    return -2.0 * jnp.log(jnp.tan(a * t + b))


def _linear(t):
    """-log expm1(0.1 t + 9.95 t^2): alpha^2 = exp(-integral of beta), beta from 0.1 to 20 over unit time."""
    return -jnp.log(jnp.expm1(jnp.maximum(0.1 * t + 9.95 * jnp.square(t), 1e-12)))


def time_of_cosine(logsnr):
    """The t at which the untruncated cosine schedule has this log-SNR: atan(exp(-logsnr / 2)) / (pi / 2)."""
    return jnp.arctan(jnp.exp(-0.5 * jnp.asarray(logsnr))) * (2 / math.pi)
