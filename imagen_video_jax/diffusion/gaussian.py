"""The Gaussian process behind everything, and the one place that converts between x, eps and v.

    z = alpha x + sigma eps,   v = alpha eps - sigma x,   alpha^2 = sigmoid(logsnr),   sigma^2 = sigmoid(-logsnr)

`logsnr` broadcasts against z; use `expand` for one value per example. All in the dtype of logsnr (float32 in training).
"""

import jax
import jax.numpy as jnp

PREDICTIONS = ("v", "eps", "x")


def expand(logsnr_B, z):
    """One value per example, shaped to broadcast against z."""
    return jnp.reshape(logsnr_B, jnp.shape(logsnr_B) + (1,) * (z.ndim - jnp.ndim(logsnr_B)))


def alpha(logsnr):
    return jnp.sqrt(jax.nn.sigmoid(logsnr))


def sigma(logsnr):
    return jnp.sqrt(jax.nn.sigmoid(-logsnr))


def diffuse(*, x, eps, logsnr):
    """z = alpha x + sigma eps, a draw of q(z_t | x)."""
    return alpha(logsnr) * x + sigma(logsnr) * eps


def x_from_v(*, z, v, logsnr):
    """x = alpha z - sigma v  (Salimans & Ho 2022)."""
    return alpha(logsnr) * z - sigma(logsnr) * v


def x_from_eps(*, z, eps, logsnr):
    """x = (z - sigma eps) / alpha; ill-conditioned where alpha is near 0."""
    return (z - sigma(logsnr) * eps) / alpha(logsnr)


def eps_from_x(*, z, x, logsnr):
    """eps = (z - alpha x) / sigma; ill-conditioned where sigma is near 0."""
    return (z - alpha(logsnr) * x) / sigma(logsnr)


def v_from_x(*, z, x, logsnr):
    """v = (alpha z - x) / sigma."""
    return (alpha(logsnr) * z - x) / sigma(logsnr)


def x_from_prediction(prediction: str, *, z, output, logsnr):
    """The estimate of x in a network output that means v, eps or x; samplers, guidance and distillation call this."""
    if prediction == "v":
        return x_from_v(z=z, v=output, logsnr=logsnr)
    if prediction == "eps":
        return x_from_eps(z=z, eps=output, logsnr=logsnr)
    if prediction == "x":
        return output
    raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")


def transition_variance(*, logsnr_t, logsnr_s):
    """Variance of q(z_t | z_s), s < t: (1 - exp(logsnr_t - logsnr_s)) sigma_t^2."""
    return -jnp.expm1(logsnr_t - logsnr_s) * jax.nn.sigmoid(-logsnr_t)


def diffuse_from(*, z_s, eps, logsnr_s, logsnr_t):
    """z_t from z_s, s < t: one step of the forward process."""
    variance = transition_variance(logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    return alpha(logsnr_t) / alpha(logsnr_s) * z_s + jnp.sqrt(variance) * eps


def posterior(*, z_t, x, logsnr_t, logsnr_s):
    """Mean and variance of q(z_s | z_t, x), s < t  (VDM eq. 3)."""
    ratio = jnp.exp(logsnr_t - logsnr_s)
    mean = ratio * alpha(logsnr_s) / alpha(logsnr_t) * z_t - jnp.expm1(logsnr_t - logsnr_s) * alpha(logsnr_s) * x
    return mean, -jnp.expm1(logsnr_t - logsnr_s) * jax.nn.sigmoid(-logsnr_s)


def ddim(*, z_t, x, logsnr_t, logsnr_s):
    """z_s = alpha_s x + sigma_s eps, with the eps that z_t and x imply  (Song et al. 2021; Imagen eq. 5)."""
    return alpha(logsnr_s) * x + sigma(logsnr_s) * eps_from_x(z=z_t, x=x, logsnr=logsnr_t)
