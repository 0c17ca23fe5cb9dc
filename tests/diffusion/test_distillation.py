"""Distillation targets in float64: one step of the student arrives where two of the teacher do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.diffusion import distillation, gaussian, loss
from imagen_video_jax.diffusion.schedules import Schedule

SHAPE = (4, 2, 3, 3, 3)
SCHEDULE = Schedule()


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def teacher_x(z, logsnr_B):
    """Some teacher whose estimate depends on both its inputs."""
    return jnp.tanh(0.5 * z) + 0.05 * gaussian.expand(logsnr_B, z)


def ddim(z, x, t, s):
    t, s = (gaussian.expand(SCHEDULE.logsnr(time), z) for time in (t, s))
    return gaussian.ddim(z_t=z, x=x, logsnr_t=t, logsnr_s=s)


def test_one_step_with_the_target_arrives_where_the_teachers_two_steps_arrive():
    z = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    time = jnp.array([1.0, 0.75, 0.5, 0.375])
    middle, end = distillation.teacher_times(time, 8)
    close(middle, time - 0.125)
    close(end, time - 0.25)
    there = ddim(z, teacher_x(z, SCHEDULE.logsnr(time)), time, middle)
    there = ddim(there, teacher_x(there, SCHEDULE.logsnr(middle)), middle, end)
    target = distillation.progressive_target(teacher_x, z=z, time=time, calls=8, schedule=SCHEDULE)
    close(ddim(z, target, time, end), there)
    # The form of the paper, which divides by a small difference.
    t, s = (gaussian.expand(SCHEDULE.logsnr(value), z) for value in (time, end))
    ratio = gaussian.sigma(s) / gaussian.sigma(t)
    close(target, (there - ratio * z) / (gaussian.alpha(s) - ratio * gaussian.alpha(t)), 1e-10)


def test_steps_that_end_at_zero_ask_for_the_teachers_last_estimate():
    z = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    time = jnp.array([0.25, 0.25, 0.125, 0.125])  # the last two points of an 8-point grid
    target = distillation.progressive_target(teacher_x, z=z, time=time, calls=8, schedule=SCHEDULE)
    first = teacher_x(z, SCHEDULE.logsnr(time))
    middle = ddim(z, first, time, time - 0.125)
    close(target[:2], teacher_x(middle, SCHEDULE.logsnr(time - 0.125))[:2])
    close(target[2:], first[2:])


@pytest.mark.parametrize("weighting", ["snr_trunc", "v_mse", "x_mse"])
def test_a_student_that_equals_two_steps_of_its_teacher_has_zero_loss(weighting):
    z = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    time = distillation.grid_time(jnp.array([0.0, 0.3, 0.6, 0.99]), 8)
    target = distillation.progressive_target(teacher_x, z=z, time=time, calls=8, schedule=SCHEDULE)
    logsnr = SCHEDULE.logsnr(time)
    for prediction, convert in (("v", gaussian.v_from_x), ("x", lambda x, **_: x)):
        output = convert(z=z, x=target, logsnr=gaussian.expand(logsnr, z))
        close(
            loss.loss_to_x(
                output=output, prediction=prediction, z=z, x=target, logsnr_B=logsnr, weighting=weighting
            ),
            0.0,
        )  # fmt: skip


def test_the_truncated_weight_is_the_larger_of_the_two_mean_errors_of_each_example():
    rng = np.random.default_rng(0)
    z, target, x = (jnp.asarray(rng.normal(size=SHAPE)) for _ in range(3))
    logsnr_B = SCHEDULE.logsnr(jnp.array([0.9, 0.6, 0.4, 0.1]))
    logsnr = gaussian.expand(logsnr_B, z)
    got = loss.loss_to_x(output=x, prediction="x", z=z, x=target, logsnr_B=logsnr_B, weighting="snr_trunc")
    axes = (1, 2, 3, 4)
    x_mse = jnp.mean((x - target) ** 2, axes)
    eps = [gaussian.eps_from_x(z=z, x=value, logsnr=logsnr) for value in (x, target)]
    np.testing.assert_allclose(got, jnp.maximum(x_mse, jnp.mean((eps[0] - eps[1]) ** 2, axes)), rtol=1e-5)


def test_the_grid_of_the_student_is_the_sampler_s():
    uniform = jnp.linspace(0.0, 1.0, 1000, endpoint=False)
    assert jnp.unique(distillation.grid_time(uniform, 8)).tolist() == [i / 8 for i in range(1, 9)]
