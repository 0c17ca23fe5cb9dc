"""The one NNX seam: a function that builds a module -> plain functions over a plain tree of parameters.

Modules are built from frozen configurations, split once, and everything after that is jax: nested dicts of arrays,
`jax.jit`, `jax.grad`. Outside the files that define networks, nobody can tell which layer library is used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network as functions.

    Attributes:
      init: key -> params, float32 arrays.
      apply: (params, *args, **kwargs) -> output of the module's `__call__`.
      abstract: the params as ShapeDtypeStructs.
      axes: the params' logical axis names, a tuple (one name or None per dimension) per leaf.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Any]
    abstract: Params
    axes: Params


def split(build: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Splits the module that `build` makes into functions over a plain nested dict of parameters."""

    # Annotated modules cannot be built outside a mesh with eager sharding; placement is partitioning.py's job.
    with nnx.use_eager_sharding(False):
        graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: jax.Array) -> Params:
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(key)))[1])

    def apply(params: Params, *args, **kwargs):
        bound = jax.tree.map(lambda leaf: leaf, state)
        # numpy arrays, where a caller closes over them, could not be indexed by traced values.
        nnx.replace_by_pure_dict(bound, jax.tree.map(jnp.asarray, params))
        return nnx.merge(graph, bound)(*args, **kwargs)

    abstract = nnx.to_pure_dict(state)
    names = {path: _axis_names(variable) for path, variable in nnx.to_flat_state(state)}
    axes = jax.tree_util.tree_map_with_path(lambda path, _: names[tuple(key.key for key in path)], abstract)
    return Functional(init=init, apply=apply, abstract=abstract, axes=axes)


def _axis_names(variable: nnx.Variable) -> tuple[str | None, ...]:
    return variable.get_metadata().get("out_sharding") or (None,) * len(variable.get_value().shape)


def parameter_count(abstract: Params) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract))
