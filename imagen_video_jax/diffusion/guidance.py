"""Classifier-free guidance in the paper's convention, its weights over the steps, and the clipping of x.

guided = (1 + w) conditional - w unconditional        (w = 0: off; Imagen's own weight is w + 1)
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax.diffusion.gaussian import expand


def guide(*, conditional, unconditional, weight):
    """(1 + w) c - w u, in x-, eps- or v-space alike (at one z they are affine in each other)."""
    return (1.0 + weight) * conditional - weight * unconditional


def projected(*, conditional, unconditional, weight, parallel: float, norm: float, momentum: float, before):
    """Adaptive projected guidance  (Sadat et al. 2024): c + w (across + parallel along), and the difference for later.

    The difference d = (c - u) + momentum * before is shortened to a root mean square of at most `norm` (0: any) and
    split into its part along c, which makes colours loud, and the part across it. With parallel 1, no limit and no
    momentum it is `guide`.
    """
    difference = conditional - unconditional + momentum * before
    axes = tuple(range(1, difference.ndim))
    d = difference
    if norm:
        size = jnp.sqrt(jnp.mean(jnp.square(d), axis=axes, keepdims=True))
        d = d * jnp.minimum(1.0, norm / jnp.maximum(size, 1e-12))
    along = jnp.sum(d * conditional, axis=axes, keepdims=True) * conditional
    along = along / jnp.maximum(jnp.sum(jnp.square(conditional), axis=axes, keepdims=True), 1e-12)
    return conditional + weight * (d + (parallel - 1.0) * along), difference


def rescale(x, conditional, share: float):
    """x with the standard deviation of the conditional estimate, by `share`  (Lin et al. 2023, section 3.4)."""
    axes = tuple(range(1, x.ndim))
    ratio = jnp.std(conditional, axis=axes, keepdims=True) / jnp.maximum(jnp.std(x, axis=axes, keepdims=True), 1e-12)
    return x * (share * ratio + (1.0 - share))


def weights(*, guidance: float, low: float | None, opening: float, interval: tuple[float, float], steps: int):
    """w at each step, float32 [steps]: constant or oscillating, 0 where the step's time is outside the interval."""
    if low is None:
        values = np.full((steps,), guidance, np.float32)
    else:
        values = oscillating_weights(guidance, low, steps, opening=opening)
    times = np.linspace(1.0, 0.0, steps + 1)[:-1]
    rounded = 1e-9  # a time of 0.2 may be a bit less
    inside = (times >= interval[0] - rounded) & (times <= interval[1] + rounded)
    return np.where(inside, values, np.float32(0.0))


def oscillating_weights(high: float, low: float, steps: int, *, opening: float = 0.1) -> np.ndarray:
    """High for the first `opening` share of the steps (at least one), then low, high, ... (paper section 2.6.1)."""
    first = max(1, round(opening * steps))
    return np.array([high if i < first or (i - first) % 2 else low for i in range(steps)], np.float32)


def clip_static(x):
    """x clipped to [-1, 1]."""
    return jnp.clip(x, -1.0, 1.0)


def clip_dynamic(x, percentile: float):
    """Clips to [-s, s] and divides by s, s the percentile of |x| of each example, where s > 1  (Imagen section 2.3)."""
    within_B = jnp.mean((jnp.abs(x) <= 1.0).astype(jnp.float32), axis=tuple(range(1, x.ndim)))
    loud_B = within_B < percentile / 100.0
    # Most estimates of super-resolution have nothing to look for. One that has none is the same beside one that has.
    s_B = jax.lax.cond(
        jnp.any(loud_B),
        lambda: jnp.where(loud_B, jnp.maximum(absolute_percentile(x, percentile), 1.0), 1.0).astype(jnp.float32),
        lambda: jnp.ones(x.shape[:1], jnp.float32),
    )
    s = expand(s_B, x)
    return jnp.clip(x, -s, s) / s


def absolute_percentile(x, percentile: float, *, iterations: int = 24):
    """The percentile of |x| of each example by bisection, [B].

    Needs only reductions: a sort would gather a sample that is sharded over devices. Error at most
    max|x| * 2^-iterations plus the gap between neighbouring values.
    """
    magnitude = jnp.abs(x.astype(jnp.float32))
    axes = tuple(range(1, x.ndim))
    wanted = percentile / 100.0

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = jnp.mean((magnitude <= expand(middle, magnitude)).astype(jnp.float32), axis=axes)
        return jnp.where(below < wanted, middle, low), jnp.where(below < wanted, high, middle)

    high = jnp.max(magnitude, axis=axes)
    return jax.lax.fori_loop(0, iterations, halve, (jnp.zeros_like(high), high))[1]
