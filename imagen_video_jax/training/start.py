"""Where a run begins: the newest good checkpoint of its workdir, given weights, or nothing."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_video_jax import checkpoint, distributed, steps
from imagen_video_jax.bundle import initial_params
from imagen_video_jax.stages.stage import Stage, named_key
from imagen_video_jax.training import guard
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.resume import check_goes_on, note_other_code
from imagen_video_jax.training.state import SAVED, TrainState, abstract_state, initial_state, shardings_of
from imagen_video_jax.training.step import Objective
from imagen_video_jax.training.train_config import TrainConfig


def find_start(workdir: pathlib.Path, config: TrainConfig) -> dict | None:
    """The meta of the newest good checkpoint, with its path, the same for all processes; None where there is none.

    Raises: UserError where the checkpoint is of another run than `config` describes.
    """
    meta = distributed.from_first(lambda: _find_newest(workdir, config))
    return meta and meta | {"path": pathlib.Path(meta["path"])}


def _find_newest(workdir: pathlib.Path, config: TrainConfig) -> dict | None:
    checkpoints = workdir / "checkpoints"
    newest, meta = checkpoint.newest(checkpoints), None
    if newest is not None:
        meta = checkpoint.read_meta(newest) | {"path": str(newest)}
        check_goes_on(workdir, meta, config)
        note_other_code(meta)
    steps.take_over(checkpoints, newest)
    return meta


def start_state(
    config: TrainConfig, stage: Stage, objective: Objective, mesh: Mesh, key: jax.Array, meta: dict | None
) -> TrainState:
    """The state in the checkpoint of `meta`; without one a new state, laid out over the mesh."""
    abstract = abstract_state(stage, direction(config.optimizer), mesh)
    if meta is not None:
        state = dataclasses.replace(_restored(abstract, meta), frozen=objective.frozen(mesh))
        return dataclasses.replace(state, guard=guard.initial()) if rate_changes(meta["config"], config) else state
    init = jax.jit(
        lambda key: initial_state(stage, direction(config.optimizer), key),
        out_shardings=shardings_of(abstract),
        # It runs once: unoptimised code is ready in half the time.
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    state = init(named_key(key, "init"))
    if objective.start:
        state = _starting_from(objective.start(state.params), state)
    elif config.init_from:
        params = initial_params(config.init_from, config.stage.name, abstract.params)
        state = _starting_from(params, state)
    return dataclasses.replace(state, frozen=objective.frozen(mesh))


def rate_changes(before: dict, config: TrainConfig) -> bool:
    """Whether a run of config `before` (nested dicts) may go on at another learning rate than it stopped at.

    A run that had cooled down and is made longer starts again at a high rate, and its gradients grow with it: for the
    guard, which knows those of the end, each would be a spike.
    """
    lengths = [(before.get(name), getattr(config, name)) for name in ("steps", "max_seconds")]
    return config.optimizer.decay != "constant" and any(old != new for old, new in lengths)


def _restored(abstract: TrainState, meta: dict) -> TrainState:
    # Checkpoints of before there was a guard go on with a new one.
    trees = {name: getattr(abstract, name) for name in SAVED if name in meta["trees"]}
    restored = {"guard": guard.initial()} | {
        name: checkpoint.restore(meta["path"], name, tree) for name, tree in trees.items()
    }
    step = jax.device_put(jnp.asarray(meta["step"], jnp.int32), abstract.step.sharding)
    return TrainState(step=step, **restored)


def _starting_from(params, state: TrainState) -> TrainState:
    return dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))
