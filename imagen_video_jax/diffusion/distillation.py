"""Targets of two-stage distillation  (Salimans & Ho 2022; Meng et al. 2022; Imagen Video section 2.7).

Stage one: one student learns the guided estimate (1 + w) c - w u for a range of w, which it gets as an input.
Stage two, repeated: a student of N network calls learns to do in one DDIM step what its teacher, of 2N, does in two.

The students are for the sampler `distilled` of N calls, which jumps from t = i/N to (i - 2)/N and goes one step of
noise back: so they learn double steps, of length 2/N, from every point of an N-point grid. 8 calls need a student
distilled as a 4-step DDIM on an 8-point grid, and its teacher's steps are 1/N long.
"""

import dataclasses

import jax.numpy as jnp

from imagen_video_jax.diffusion import gaussian
from imagen_video_jax.diffusion.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """What a stage was distilled for.

    Attributes:
      calls: network calls of the sampler `distilled`; 0 for a model of any time: a teacher, or a student of stage one.
      weights: the range of guidance weights that the network takes as an input; (0, 0) where it takes none.
    """

    calls: int = 0
    weights: tuple[float, float] = (0.0, 0.0)


def grid_time(uniform, calls):
    """Uniform numbers in [0, 1) -> i / calls, i = 1 ... calls: the times at which the sampler calls the network."""
    return (jnp.floor(uniform * calls) + 1.0) / calls


def teacher_times(time, calls):
    """Where the teacher's two steps from `time` lead: (middle, end), 1/calls and 2/calls earlier, not below 0."""
    return jnp.maximum(time - 1.0 / calls, 0.0), jnp.maximum(time - 2.0 / calls, 0.0)


def two_steps_share(*, logsnr_t, logsnr_m, logsnr_s):
    """How much of the teacher's first estimate is in the target x~ = share x_t + (1 - share) x_m.

    DDIM is z_s = (sigma_s / sigma_t) z_t + B x with B = alpha_s (1 - exp((logsnr_t - logsnr_s) / 2)). Two steps give
    (sigma_s / sigma_t) z_t + (sigma_s / sigma_m) B_tm x_t + B_ms x_m; one step with x~ gives the same where
    x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), which is the mean above. This form
    needs no z and divides by nothing small. Where the middle is already the end (both at t = 0) the share is 1.
    """
    first = gaussian.sigma(logsnr_s) / gaussian.sigma(logsnr_m) * _weight_of_x(logsnr_t, logsnr_m)
    return first / (first + _weight_of_x(logsnr_m, logsnr_s))


def _weight_of_x(logsnr_t, logsnr_s):
    return -gaussian.alpha(logsnr_s) * jnp.expm1(0.5 * (logsnr_t - logsnr_s))


def progressive_target(teacher_x, *, z, time, calls, schedule: Schedule):
    """The x~ with which one DDIM step from `time` by 2/calls arrives where the teacher's two steps arrive.

    Args: teacher_x(z, logsnr_B) -> x of the teacher; time [B]. Where the steps end at t = 0 the target is the teacher's
    last estimate, without what sigma at t = 0 leaves of the one before  (Salimans & Ho 2022, their code).
    """
    middle, end = teacher_times(time, calls)
    levels = [schedule.logsnr(t) for t in (time, middle, end)]
    logsnr_t, logsnr_m, _ = (gaussian.expand(level, z) for level in levels)
    x_t = teacher_x(z, levels[0])
    x_m = teacher_x(gaussian.ddim(z_t=z, x=x_t, logsnr_t=logsnr_t, logsnr_s=logsnr_m), levels[1])
    share = two_steps_share(logsnr_t=levels[0], logsnr_m=levels[1], logsnr_s=levels[2])
    share = jnp.where((end <= 0.0) & (middle > 0.0), 0.0, share)
    return x_m + gaussian.expand(share, z) * (x_t - x_m)
