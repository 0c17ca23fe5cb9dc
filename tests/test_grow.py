"""The miniature's base grows out of a smaller one: every part of that but its doors has a place in the larger."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.miniature import grow
from imagen_video_jax import configs
from imagen_video_jax.stages.stage import Stage

DOORS = {"door_in", "door_out", "norm_out"}


def abstract(fields: dict[str, str]) -> dict:
    overrides = [f"{configs.PREFIX}{name}={value}" for name, value in fields.items()]
    return Stage(configs.training("experiments/base_16f_24x40.py:mini", overrides).stage).network.abstract


def test_the_larger_base_starts_with_all_of_the_smaller_but_its_doors():
    small, large = abstract(grow.SMALL), abstract({})
    number = iter(range(1, 1000))
    trained = jax.tree.map(lambda leaf: jnp.full(leaf.shape, next(number), leaf.dtype), small)
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), large)
    started = grow.grown(trained)(fresh)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, fresh)

    def numbers(params: dict) -> set[float]:
        return {float(np.max(leaf)) for leaf in jax.tree.leaves(params)} - {0.0}

    inner = {name: part for name, part in trained.items() if name not in DOORS}
    assert numbers(started) == numbers(inner)
    assert numbers({name: started[name] for name in (*DOORS, "down0_block0", "up0_block0")}) == set()
    assert numbers(started["middle"]) == numbers(trained["middle"])
    assert numbers(started["up1_block0"]) == numbers(trained["up0_block0"])
