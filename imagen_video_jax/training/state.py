"""`TrainState`: everything that an update changes, as plain trees; made sharded, never whole on one host."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_video_jax import partitioning
from imagen_video_jax.functional import Params
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training import guard

# The trees of a checkpoint; `step` is its number.
SAVED = ("params", "ema", "optimizer", "guard")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step (updates done, int32 scalar), params, ema (of params), optimizer (optax's state), guard (`guard.py`), and
    `frozen`, what the objective reads and no update changes (a teacher's weights; not part of a checkpoint)."""

    step: jax.Array
    params: Params
    ema: Params
    optimizer: optax.OptState
    guard: dict[str, jax.Array]
    frozen: Params = dataclasses.field(default_factory=dict)


def initial_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _of_params(stage.init(key), optimizer)


def _of_params(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        guard=guard.initial(),
    )


def abstract_state(stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state; an optimizer moment is laid out like its parameter."""
    shapes = jax.eval_shape(lambda params: _of_params(params, optimizer), stage.network.abstract)
    params = partitioning.shardings_of(mesh, stage.network.abstract, stage.network.axes)
    # Optimizer state holds trees shaped like the parameters, recognised by path and shape; Muon's lie one level deeper.
    by_path = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(stage.network.abstract)[0]:
        by_path[tuple(key.key for key in path)] = leaf.shape
    sharding_by_path = {
        tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }

    def optimizer_sharding(path, leaf):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        ends = (names[begin:] for begin in range(len(names)))
        found = next((end for end in ends if by_path.get(end) == leaf.shape), None)
        return partitioning.replicated(mesh) if found is None else sharding_by_path[found]

    shardings = TrainState(
        step=partitioning.replicated(mesh),
        params=params,
        ema=params,
        optimizer=jax.tree_util.tree_map_with_path(optimizer_sharding, shapes.optimizer),
        guard=jax.tree.map(lambda _: partitioning.replicated(mesh), shapes.guard),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def shardings_of(abstract):
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
