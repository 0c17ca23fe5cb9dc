"""The optimizer: a direction (Adam, Adafactor or Muon, after clipping) and a learning rate from step and progress.

The learning rate is a function of two numbers, so that a run with a time budget can decay over the budget: `step`
drives the warm-up, `progress` in [0, 1] (share of the steps, or of the time, that is used up) drives the decay.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

OPTIMIZERS = ("adam", "adafactor", "muon")
DECAYS = ("constant", "cosine", "linear")
STATE_DTYPES = ("float32", "bfloat16")
# Half the distance of neighbouring bfloat16 numbers is up to 2^-8 of them: a second moment that decays by less in an
# update is rounded back to what it was, and never decays.
BFLOAT16_B2 = 1.0 - 2.0**-8
# Newton-Schulz iterations (4 suffice with "aol" preconditioning), size of a step relative to the learning rate (Adam's
# is about 0.2), and the fewest inputs and outputs of a kernel worth it.
MUON_ITERATIONS, MUON_RMS, MUON_SMALLEST = 4, 0.2, 16


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes: name, learning_rate (peak), warmup (steps), decay, clip (gradient norm), b1, b2, weight_decay,
    state_dtype (of the moments between two steps: "bfloat16" halves them; a step computes in float32; not for
    "adafactor" and not for a b2 close to 1, whose second moments change by less than it can tell).

    "muon" orthogonalises the steps of kernels (K. Jordan 2024) and scales them to Adam's size, so that one learning
    rate serves both; everything else is Adam's.
    """

    name: str = "adam"
    learning_rate: float = 1e-4
    warmup: int = 10_000
    decay: str = "constant"
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    state_dtype: str = "float32"

    def __post_init__(self):
        if self.state_dtype not in STATE_DTYPES:
            raise ValueError(f"optimizer.state_dtype must be one of {STATE_DTYPES}, got {self.state_dtype!r}")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name must be one of {OPTIMIZERS}, got {self.name!r}")
        if self.decay not in DECAYS:
            raise ValueError(f"optimizer.decay must be one of {DECAYS}, got {self.decay!r}")
        if self.state_dtype == "bfloat16" and (self.name == "adafactor" or self.b2 > BFLOAT16_B2):
            slow = "adafactor" if self.name == "adafactor" else f"b2 {self.b2:g} (above {BFLOAT16_B2:.4g})"
            raise ValueError(
                f"optimizer.state_dtype 'bfloat16' is too coarse for the second moments of {slow}, which would never "
                "decay; take 'float32'"
            )
        for field in ("learning_rate", "clip"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"optimizer.{field} must be above 0 and finite, got {getattr(self, field)}")


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients -> the step to subtract, at learning rate 1."""
    if config.name == "adafactor":
        scale = optax.scale_by_factored_rms()
    elif config.name == "muon":
        scale = optax.contrib.muon(
            -1.0,
            beta=config.b1,
            ns_steps=MUON_ITERATIONS,
            preconditioning="aol",
            consistent_rms=MUON_RMS,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    if config.state_dtype != "float32":
        scale = _kept_as(scale, jnp.dtype(config.state_dtype))
    parts = [optax.clip_by_global_norm(config.clip), scale]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts)


def _kept_as(scale: optax.GradientTransformation, dtype) -> optax.GradientTransformation:
    """The same, with the floating point part of its state kept in `dtype` between two steps."""

    def cast(state, kind):
        return jax.tree.map(lambda a: a.astype(kind) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)

    def update(gradients, state, params=None):
        updates, state = scale.update(gradients, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(scale.init(params), dtype), update)


def _matrices(params):
    """Which leaves are kernels, seen as matrices of inputs x outputs; thin ones and vectors are left to Adam."""

    def matrix(leaf):
        outputs = leaf.shape[-1] if leaf.ndim else 1
        if leaf.ndim < 2 or min(outputs, leaf.size // outputs) < MUON_SMALLEST:
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(range(leaf.ndim - 1)), output_axis=leaf.ndim - 1)

    return jax.tree.map(matrix, params)


def learning_rate(config: OptimizerConfig, step, progress):
    """Linear warm-up to the peak, then the decay by progress."""
    warm = jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
    progress = jnp.clip(progress, 0.0, 1.0)
    if config.decay == "cosine":
        left = 0.5 * (1 + jnp.cos(math.pi * progress))
    elif config.decay == "linear":
        left = 1.0 - progress
    else:
        left = 1.0
    return config.learning_rate * warm * left
