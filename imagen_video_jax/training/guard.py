"""The guard of the train step: which updates count. Pure functions of replicated scalars, so every host agrees.

An update counts unless the loss, the gradient, the parameters or the update are not finite, or the logarithm of the
gradient's norm is more than `spike_sigma` standard deviations above its running mean. One that does not count changes
no byte of the parameters, their average and the optimizer; its batch is used up.
"""

import dataclasses

import jax
import jax.numpy as jnp

# A running deviation smaller than this says more about a quiet start than about the loss.
_SMALLEST_DEVIATION = 0.1


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What makes a run go back, and end.

    Attributes:
      in_a_row: updates that do not count, one after the other, until training goes back to the last checkpoint and
        leaves out the data since.
      roll_backs: times that training goes back without reaching another checkpoint; then it ends with exit code 3.
      spike_sigma: of the rule for spikes (0: none); it needs `window` updates first.
      window: updates over which mean and deviation run.
    """

    in_a_row: int = 10
    roll_backs: int = 3
    spike_sigma: float = 10.0
    window: int = 100

    def __post_init__(self):
        for field, least in (("in_a_row", 1), ("roll_backs", 0), ("spike_sigma", 0), ("window", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"guard.{field} must be at least {least}, got {getattr(self, field)}")


def initial() -> dict[str, jax.Array]:
    """The guard's part of the state: running mean and variance, updates that counted, and that did not."""
    counts = {name: jnp.zeros((), jnp.int32) for name in ("counted", "skipped", "skipped_in_a_row")}
    return {"mean": jnp.zeros(()), "variance": jnp.zeros(()), **counts}


def judge(config: GuardConfig, guard: dict, *, gradient_norm, finite: tuple) -> tuple[jax.Array, dict]:
    """(whether the update counts, the guard after it); `finite` are scalars that must be finite beside the norm."""
    value = jnp.log(jnp.maximum(gradient_norm, 1e-30))
    good = jnp.isfinite(gradient_norm)
    for scalar in finite:
        good &= jnp.isfinite(scalar)
    if config.spike_sigma:
        deviation = jnp.maximum(jnp.sqrt(guard["variance"]), _SMALLEST_DEVIATION)
        spike = value > guard["mean"] + config.spike_sigma * deviation
        good &= ~(spike & (guard["counted"] >= config.window))
    # The first updates are averaged plainly, later ones with a window.
    share = 1.0 / jnp.minimum(guard["counted"] + 1.0, config.window)
    step = value - guard["mean"]
    after = {
        "mean": guard["mean"] + share * step,
        "variance": (1 - share) * (guard["variance"] + share * step**2),
        "counted": guard["counted"] + 1,
        "skipped": guard["skipped"],
        "skipped_in_a_row": jnp.zeros((), jnp.int32),
    }
    not_counted = guard | {name: guard[name] + 1 for name in ("skipped", "skipped_in_a_row")}
    return good, choose(good, after, not_counted)


def choose(good, new, old):
    """`new` where the update counts, else `old`, to the byte."""
    return jax.tree.map(lambda n, o: jax.lax.select(jnp.broadcast_to(good, o.shape), n, o), new, old)
