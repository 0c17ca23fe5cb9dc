"""Identities of the Gaussian process, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.diffusion import gaussian, guidance, loss
from imagen_video_jax.diffusion.schedules import Schedule, time_of_cosine

TIMES = (0.63, 0.52, 0.41)  # t > m > s


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 3, 2, 4, 4, 3))
    lt, lm, ls = (Schedule().logsnr(jnp.float64(t)) for t in TIMES)
    return dict(x=x, eps=eps, z=gaussian.diffuse(x=x, eps=eps, logsnr=lt), x_hat=x + 0.1 * rng.normal(size=x.shape),
                lt=lt, lm=lm, ls=ls)  # fmt: skip


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def test_v_and_z_give_back_x_and_eps(draw):
    a, s = gaussian.alpha(draw["lt"]), gaussian.sigma(draw["lt"])
    v = a * draw["eps"] - s * draw["x"]
    close(gaussian.x_from_v(z=draw["z"], v=v, logsnr=draw["lt"]), draw["x"])
    close(s * draw["z"] + a * v, draw["eps"])
    close(gaussian.v_from_x(z=draw["z"], x=draw["x"], logsnr=draw["lt"]), v)


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_every_prediction_converts_to_the_same_x(draw, prediction):
    a, s = gaussian.alpha(draw["lt"]), gaussian.sigma(draw["lt"])
    output = {"v": a * draw["eps"] - s * draw["x"], "eps": draw["eps"], "x": draw["x"]}[prediction]
    close(gaussian.x_from_prediction(prediction, z=draw["z"], output=output, logsnr=draw["lt"]), draw["x"])


def test_three_forms_of_ddim_are_one(draw):
    lt, ls, z, x = draw["lt"], draw["ls"], draw["z"], draw["x_hat"]
    ours = gaussian.ddim(z_t=z, x=x, logsnr_t=lt, logsnr_s=ls)
    ratio = jnp.exp((lt - ls) / 2)
    close(ours, ratio * gaussian.alpha(ls) / gaussian.alpha(lt) * z + (1 - ratio) * gaussian.alpha(ls) * x)
    angle = jnp.arctan2(gaussian.sigma(lt), gaussian.alpha(lt)) - jnp.arctan2(gaussian.sigma(ls), gaussian.alpha(ls))
    v = gaussian.v_from_x(z=z, x=x, logsnr=lt)
    close(ours, jnp.cos(angle) * z - jnp.sin(angle) * v)


def test_transition_variance_closes_the_gap_between_two_marginals(draw):
    lt, ls = draw["lt"], draw["ls"]
    ratio = gaussian.alpha(lt) / gaussian.alpha(ls)
    gap = gaussian.sigma(lt) ** 2 - ratio**2 * gaussian.sigma(ls) ** 2
    close(gaussian.transition_variance(logsnr_t=lt, logsnr_s=ls), gap)


def test_posterior_is_bayes_rule(draw):
    lt, ls, z, x = draw["lt"], draw["ls"], draw["z"], draw["x_hat"]
    mean, variance = gaussian.posterior(z_t=z, x=x, logsnr_t=lt, logsnr_s=ls)
    r = gaussian.alpha(lt) / gaussian.alpha(ls)
    V = gaussian.transition_variance(logsnr_t=lt, logsnr_s=ls)
    st, ss = gaussian.sigma(lt), gaussian.sigma(ls)
    close(mean, r * ss**2 / st**2 * z + gaussian.alpha(ls) * V / st**2 * x)
    close(variance, V * ss**2 / st**2)


def test_the_distillation_target_inverts_one_student_step(draw):
    lt, lm, ls, z = draw["lt"], draw["lm"], draw["ls"], draw["z"]
    middle = gaussian.ddim(z_t=z, x=draw["x_hat"], logsnr_t=lt, logsnr_s=lm)
    end = gaussian.ddim(z_t=middle, x=draw["x"], logsnr_t=lm, logsnr_s=ls)
    ratio = gaussian.sigma(ls) / gaussian.sigma(lt)
    target = (end - ratio * z) / (gaussian.alpha(ls) - ratio * gaussian.alpha(lt))
    close(gaussian.ddim(z_t=z, x=target, logsnr_t=lt, logsnr_s=ls), end)


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
@pytest.mark.parametrize("weighting", loss.WEIGHTINGS)
def test_loss_weightings_are_the_table(draw, weighting, prediction):
    lt, z, x, x_hat = draw["lt"], draw["z"], draw["x"], draw["x_hat"]
    output = {
        "v": gaussian.v_from_x(z=z, x=x_hat, logsnr=lt),
        "eps": gaussian.eps_from_x(z=z, x=x_hat, logsnr=lt),
        "x": x_hat,
    }[prediction]
    B = z.shape[0]
    got = loss.diffusion_loss(
        output=output,
        prediction=prediction,
        z=z,
        x=x,
        eps=draw["eps"],
        logsnr_B=jnp.full((B,), lt),
        weighting=weighting,
    )
    snr = jnp.exp(lt)
    factor = {
        "eps_mse": snr, "v_mse": snr + 1, "x_mse": 1.0, "snr_trunc": jnp.maximum(snr, 1.0),
        "min_snr": jnp.minimum(snr, 5.0), "sigmoid": snr * jax.nn.sigmoid(-lt),
    }[weighting]  # fmt: skip
    expected = factor * np.mean((x_hat - x) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # the loss itself is float32


def test_a_perfect_predictor_has_zero_loss(draw):
    v = gaussian.v_from_x(z=draw["z"], x=draw["x"], logsnr=draw["lt"])
    got = loss.diffusion_loss(
        output=v, prediction="v", z=draw["z"], x=draw["x"], eps=draw["eps"], logsnr_B=jnp.full((3,), draw["lt"]),
        weighting="eps_mse",
    )  # fmt: skip
    close(got, 0.0)


def test_guidance_commutes_with_the_change_of_prediction(draw):
    lt, z = draw["lt"], draw["z"]
    c, u, w = draw["x"], draw["x_hat"], 3.0
    in_x = guidance.guide(conditional=c, unconditional=u, weight=w)
    for convert, back in ((gaussian.v_from_x, "v"), (gaussian.eps_from_x, "eps")):
        guided = guidance.guide(
            conditional=convert(z=z, x=c, logsnr=lt), unconditional=convert(z=z, x=u, logsnr=lt), weight=w
        )
        close(gaussian.x_from_prediction(back, z=z, output=guided, logsnr=lt), in_x, 1e-11)
    close(guidance.guide(conditional=c, unconditional=u, weight=0.0), c)


def test_linear_snr_3_and_5_are_the_documented_noise_levels():
    for snr, (a, s, t) in {3: (0.8660, 0.5000, 0.3333), 5: (0.9129, 0.4082, 0.2677)}.items():
        level = jnp.log(jnp.float64(snr))
        close(gaussian.alpha(level), a, 1e-4)
        close(gaussian.sigma(level), s, 1e-4)
        close(time_of_cosine(level), t, 1e-4)


def test_schedules_fall_from_one_end_of_their_range_to_the_other():
    times = jnp.linspace(0.0, 1.0, 101)
    for schedule in (Schedule(), Schedule(name="linear"), Schedule(shift=2.0)):
        values = schedule.logsnr(times)
        assert (jnp.diff(values) <= 0).all()
        assert values.min() >= -20.0 - 1e-6
        assert values.max() <= 20.0 + 1e-6
    close(Schedule().logsnr(jnp.float64(0.0)), 20.0, 1e-6)
    close(Schedule().logsnr(jnp.float64(1.0)), -20.0, 1e-6)
    close(Schedule(shift=2.0).logsnr(jnp.float64(0.5)) - Schedule().logsnr(jnp.float64(0.5)), 2.0)


def test_clipping_an_example_does_not_depend_on_those_beside_it():
    x = jnp.asarray(
        np.random.default_rng(2).normal(size=(3, 4, 8, 8, 3)) * np.array([0.2, 0.45, 3.0])[:, None, None, None, None]
    )
    together = guidance.clip_dynamic(x, 95.0)
    for i in range(3):
        np.testing.assert_array_equal(together[i : i + 1], guidance.clip_dynamic(x[i : i + 1], 95.0))
    np.testing.assert_array_equal(together[:1], x[:1])


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
def test_the_percentile_without_a_sort_is_numpys(percentile):
    x = np.random.default_rng(1).normal(size=(3, 8, 16, 16, 3)) * np.array([0.5, 1.0, 4.0]).reshape(3, 1, 1, 1, 1)
    exact = np.percentile(np.abs(x).reshape(3, -1), percentile, axis=1)
    got = guidance.absolute_percentile(jnp.asarray(x), percentile)
    np.testing.assert_allclose(got, exact, rtol=2e-3)
    clipped = guidance.clip_dynamic(jnp.asarray(x), percentile)
    assert jnp.abs(clipped).max() <= 1.0
    if percentile == 100.0:
        quiet = np.abs(x[0]).max()
        np.testing.assert_allclose(clipped[0], x[0] / max(quiet, 1.0), rtol=1e-5)
