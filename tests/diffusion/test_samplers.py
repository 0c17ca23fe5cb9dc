"""Samplers and guidance in float64: what is exact for a perfect denoiser, and what each reduces to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.diffusion import gaussian, guidance, samplers
from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.diffusion.schedules import Schedule

SHAPE = (3, 2, 4, 4, 3)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def run(predict, noise, config, *, noise_at=None, schedule=None):
    return samplers.sample(
        lambda z, logsnr, index, memory: (predict(z, logsnr, index), memory),
        noise=jnp.asarray(noise),
        noise_at=noise_at or (lambda index: jnp.zeros(noise.shape)),
        logsnrs=samplers.grid(schedule or Schedule(), config.steps),
        config=config,
    )


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_perfect_denoiser_samples_x_in_exactly_that_many_calls(rng, name, steps):
    x, calls = jnp.asarray(rng.normal(size=SHAPE)), []

    def predict(z, logsnr, index):
        jax.debug.callback(lambda i: calls.append(int(i)), index)
        return x

    close(run(predict, rng.normal(size=SHAPE), SamplerConfig(name=name, steps=steps)), x)
    jax.effects_barrier()
    assert sorted(calls) == list(range(steps))


def test_the_distilled_sampler_keeps_the_noise_level_at_every_step(rng):
    """Whatever its noise, a step from t lands on q(z_s | x): the mean alpha_s x and the variance sigma_s^2."""
    x = jnp.full((20_000,), 0.7)
    lt, ls, lk = (Schedule().logsnr(jnp.float64(t)) for t in (0.75, 0.625, 0.5))
    z_t = gaussian.diffuse(x=x, eps=rng.normal(size=x.shape), logsnr=lt)
    z_s = samplers.distilled(z_t=z_t, x=x, logsnr_t=lt, logsnr_s=ls, logsnr_k=lk, eps=rng.normal(size=x.shape))
    assert float(z_s.mean()) == pytest.approx(float(gaussian.alpha(ls)) * 0.7, abs=0.02)
    assert float(z_s.var()) == pytest.approx(float(gaussian.sigma(ls)) ** 2, rel=0.03)


def test_the_distilled_sampler_without_noise_back_would_be_ddim_at_double_steps(rng):
    lt, ls, lk = (Schedule().logsnr(jnp.float64(t)) for t in (0.75, 0.625, 0.5))
    z_t, x = rng.normal(size=(2, *SHAPE))
    z_s = samplers.distilled(z_t=z_t, x=x, logsnr_t=lt, logsnr_s=ls, logsnr_k=lk, eps=jnp.zeros(SHAPE))
    close(z_s * gaussian.alpha(lk) / gaussian.alpha(ls), gaussian.ddim(z_t=z_t, x=x, logsnr_t=lt, logsnr_s=lk), 1e-11)


def test_ancestral_with_gamma_0_and_1_has_the_two_bounds_of_the_variance(rng):
    lt, ls = (Schedule().logsnr(jnp.float64(t)) for t in (0.63, 0.41))
    z, x, eps = rng.normal(size=(3, *SHAPE))
    mean, lower = gaussian.posterior(z_t=z, x=x, logsnr_t=lt, logsnr_s=ls)
    upper = gaussian.transition_variance(logsnr_t=lt, logsnr_s=ls)
    for gamma, variance in ((0.0, lower), (1.0, upper)):
        step = samplers.ancestral(z_t=z, x=x, logsnr_t=lt, logsnr_s=ls, eps=eps, gamma=gamma)
        close(step - mean, jnp.sqrt(variance) * eps)


def test_the_second_order_sampler_comes_closer_to_the_exact_path_than_ddim(rng):
    """Data N(0, 0.25): the best estimate of x is linear in z, and the exact path keeps z / sqrt(its variance)."""

    def predict(z, logsnr, index):
        a, s2 = gaussian.alpha(logsnr), jax.nn.sigmoid(-logsnr)
        return z * a * 0.25 / (a**2 * 0.25 + s2)

    noise = rng.normal(size=SHAPE)
    for steps in (16, 32):
        first, second = (
            float(jnp.abs(run(predict, noise, SamplerConfig(name=name, steps=steps)) - 0.5 * noise).max())
            for name in ("ddim", "dpmpp_2m")
        )
        assert second < first / 3


def test_dpmpp_with_nothing_new_to_see_is_ddim(rng):
    lb, lt, ls = (Schedule().logsnr(jnp.float64(t)) for t in (0.75, 0.63, 0.41))
    z, x = rng.normal(size=(2, *SHAPE))
    step = samplers.dpmpp_2m(z_t=z, x=x, x_before=x, logsnr_before=lb, logsnr_t=lt, logsnr_s=ls)
    close(step, gaussian.ddim(z_t=z, x=x, logsnr_t=lt, logsnr_s=ls))


@pytest.mark.parametrize("schedule", [Schedule("linear", -5.0, 5.0), Schedule("cosine", -5.0, 5.0, shift=-5.0)])
def test_dpmpp_where_a_clipped_schedule_stands_still_is_finite(rng, schedule):
    levels = schedule.logsnr(jnp.linspace(1.0, 0.0, 257))
    assert int(jnp.sum(levels[1:] == levels[:-1])) > 1
    noise = rng.normal(size=SHAPE)
    config = SamplerConfig(name="dpmpp_2m", steps=256)
    assert np.isfinite(run(lambda z, logsnr, index: 0.5 * z, noise, config, schedule=schedule)).all()


def schedule_of(steps=20, **changes):
    return dataclasses.replace(SamplerConfig(steps=steps, guidance=15.0), **changes).weights_S.tolist()


def test_oscillating_weights_open_high_and_then_alternate():
    assert schedule_of(guidance_low=1.0)[:6] == [15, 15, 1, 15, 1, 15]
    assert schedule_of(guidance_low=1.0, opening=0.25)[:8] == [15, 15, 15, 15, 15, 1, 15, 1]
    assert schedule_of(8, guidance_low=1.0) == [15, 1, 15, 1, 15, 1, 15, 1]
    assert schedule_of(3) == [15, 15, 15]


def test_interval_limited_weights_are_zero_outside_it():
    assert schedule_of(10, interval=(0.25, 0.75)) == [0, 0, 0, 15, 15, 15, 15, 15, 0, 0]
    assert schedule_of(10, interval=(0.2, 0.8)) == [0, 0, 15, 15, 15, 15, 15, 15, 15, 0]


def test_projected_guidance_with_everything_off_is_plain_guidance_and_its_difference_lies_across(rng):
    c, u, before = rng.normal(size=(3, *SHAPE))
    options = dict(conditional=c, unconditional=u, weight=3.0, before=before)
    plain, _ = guidance.projected(**options, parallel=1.0, norm=0.0, momentum=0.0)
    close(plain, guidance.guide(conditional=c, unconditional=u, weight=3.0))
    across, kept = guidance.projected(**options, parallel=0.0, norm=0.0, momentum=-0.5)
    close(np.sum((across - c) * c, axis=(1, 2, 3, 4)), 0.0, 1e-10)
    close(kept, c - u - 0.5 * before)
    short, _ = guidance.projected(**options, parallel=1.0, norm=0.1, momentum=0.0)
    close(np.sqrt(np.mean((short - c) ** 2, axis=(1, 2, 3, 4))), 0.3)


def test_rescaled_guidance_has_the_contrast_of_the_conditional_estimate(rng):
    c, x = rng.normal(size=(2, *SHAPE))
    close(np.std(guidance.rescale(4.0 * x, c, 1.0), axis=(1, 2, 3, 4)), np.std(c, axis=(1, 2, 3, 4)))
    close(guidance.rescale(x, c, 0.0), x)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "euler"),
        ("rule", "x"),
        ("interval", (0.7, 0.2)),
        ("opening", 2.0),
        ("apg_momentum", 1.0),
        ("steps", 0),
        *[(field, value) for field in ("guidance", "guidance_low", "apg_norm") for value in (-1.0, np.nan, np.inf)],
        *[("apg_parallel", value) for value in (np.nan, np.inf, -np.inf)],
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"sampler.{field} must be"):
        SamplerConfig(**{field: value})
