"""The training loss, one value per example: a weighted mean squared error of the estimate of x.

Every weighting is a factor on x-MSE, written relative to v-MSE = (1 + SNR) x-MSE so that it stays finite at both ends:

    weighting     factor on x-MSE           factor on v-MSE
    eps_mse       SNR                       alpha^2              (the paper's)
    v_mse         SNR + 1                   1
    x_mse         1                         sigma^2
    snr_trunc     max(SNR, 1)               max(alpha^2, sigma^2)
    min_snr       min(SNR, 5)               min(alpha^2, 5 sigma^2)
    sigmoid       SNR sigmoid(b - logsnr)   alpha^2 sigmoid(b - logsnr)
"""

import jax
import jax.numpy as jnp

from imagen_video_jax.diffusion import gaussian

WEIGHTINGS = ("eps_mse", "v_mse", "x_mse", "snr_trunc", "min_snr", "sigmoid")
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023


def weight_on_v_mse(weighting: str, logsnr, *, sigmoid_bias: float = 0.0):
    """The right column of the table above."""
    alpha2, sigma2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
    match weighting:
        case "eps_mse":
            return alpha2
        case "v_mse":
            return jnp.ones_like(logsnr)
        case "x_mse":
            return sigma2
        case "snr_trunc":
            return jnp.maximum(alpha2, sigma2)
        case "min_snr":
            return jnp.minimum(alpha2, MIN_SNR_GAMMA * sigma2)
        case "sigmoid":
            return alpha2 * jax.nn.sigmoid(sigmoid_bias - logsnr)
    raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")


def diffusion_loss(*, output, prediction: str, z, x, eps, logsnr_B, weighting: str, sigmoid_bias: float = 0.0):
    """Weighted error of one network output per example: [B], float32.

    Args: z = alpha x + sigma eps. The error is measured in v, whose target alpha eps - sigma x needs no division by a
    vanishing alpha or sigma when the network predicts v.
    """
    logsnr = gaussian.expand(logsnr_B, z)
    alpha, sigma = gaussian.alpha(logsnr), gaussian.sigma(logsnr)
    if prediction == "v":
        error = output - (alpha * eps - sigma * x)
    elif prediction == "eps":
        # v_hat - v = (eps_hat - eps) / alpha at one z.
        error = (output - eps) / alpha
    else:
        error = (output - x) / sigma
    v_mse_B = jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, z.ndim)))
    return weight_on_v_mse(weighting, logsnr_B, sigmoid_bias=sigmoid_bias) * v_mse_B


def loss_to_x(*, output, prediction: str, z, x, logsnr_B, weighting: str):
    """`diffusion_loss` to an x that z was not made of, a distillation target: eps is what z and x imply."""
    eps = gaussian.eps_from_x(z=z, x=x, logsnr=gaussian.expand(logsnr_B, z))
    return diffusion_loss(
        output=output, prediction=prediction, z=z, x=x, eps=eps, logsnr_B=logsnr_B, weighting=weighting
    )
