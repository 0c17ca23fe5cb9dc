"""The guard: what does not count changes no byte, spikes are told from noise, and the counts are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.training import guard
from imagen_video_jax.training.guard import GuardConfig

CONFIG = GuardConfig(window=20, spike_sigma=6.0)
FINE = (jnp.float32(1.0),)


def after(norms, config=CONFIG):
    state, verdicts = guard.initial(), []
    step = jax.jit(lambda state, norm: guard.judge(config, state, gradient_norm=norm, finite=FINE))
    for norm in norms:
        good, state = step(state, jnp.float32(norm))
        verdicts.append(bool(good))
    return verdicts, {name: float(value) for name, value in state.items()}


def test_noise_counts_and_a_spike_does_not():
    norms = np.exp(np.random.default_rng(0).normal(0.0, 0.3, 200))
    verdicts, state = after([*norms, 100.0, 1.0])
    assert verdicts == [True] * 200 + [False, True]
    assert (state["counted"], state["skipped"], state["skipped_in_a_row"]) == (201, 1, 0)
    assert state["variance"] == pytest.approx(0.09, rel=0.6)


def test_before_the_window_is_full_and_without_a_rule_a_spike_counts():
    assert after([1.0] * 19 + [1e6])[0] == [True] * 20
    assert after([1.0] * 50 + [1e6], GuardConfig(window=20, spike_sigma=0))[0] == [True] * 51


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_counts_and_is_counted_in_a_row(bad):
    verdicts, state = after([1.0, bad, bad, bad])
    assert verdicts == [True, False, False, False]
    assert (state["counted"], state["skipped"], state["skipped_in_a_row"]) == (1, 3, 3)
    good, _ = guard.judge(CONFIG, guard.initial(), gradient_norm=jnp.float32(1), finite=(jnp.float32(bad),))
    assert not good


def test_choosing_keeps_the_old_bytes_even_beside_nan():
    old = {"a": jnp.array([0.0, -0.0, jnp.nan]), "n": jnp.int32(3)}
    new = {"a": jnp.full(3, jnp.nan), "n": jnp.int32(4)}
    kept = jax.jit(guard.choose)(jnp.bool_(False), new, old)
    assert np.asarray(kept["a"]).tobytes() == np.asarray(old["a"]).tobytes()
    assert int(kept["n"]) == 3
    assert int(guard.choose(jnp.bool_(True), new, old)["n"]) == 4
