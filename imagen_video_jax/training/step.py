"""The train step: (state, batches, key, progress) -> (state, metrics), pure, on one screen.

`batches` holds a "video" batch, an "image" batch, or both: the same parameters see both, and an image is a clip of one
frame, so nothing leaks between examples (ARCHITECTURE.md, decision 5).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from imagen_video_jax.batch import Batch
from imagen_video_jax.partitioning import constrain, summed_over_data
from imagen_video_jax.stages.stage import Stage, named_key
from imagen_video_jax.training.guard import GuardConfig, choose, judge
from imagen_video_jax.training.optimizer import OptimizerConfig, direction, learning_rate
from imagen_video_jax.training.state import TrainState

# Edges of the log-SNR ranges in which the loss is reported.
NOISE_LEVELS = {"noisy": (-99.0, -3.0), "middle": (-3.0, 3.0), "clean": (3.0, 99.0)}


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Attributes: ema_decay (after a warm-up of (1+n)/(10+n)), image_weight of the image loss, accumulate (parts),
    guard (which updates count)."""

    ema_decay: float = 0.9999
    image_weight: float = 0.5
    accumulate: int = 1
    guard: GuardConfig = GuardConfig()

    def __post_init__(self):
        if not 0.0 <= self.ema_decay <= 1.0:
            raise ValueError(f"step.ema_decay must be in [0, 1], got {self.ema_decay}")
        if not 0.0 <= self.image_weight < math.inf:
            raise ValueError(f"step.image_weight must be at least 0 and finite, got {self.image_weight}")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run minimises and where it starts; by default the stage's own loss, from fresh weights.

    Attributes:
      loss: (stage, params, frozen, batch, key, slot_B, slots) -> (loss_B, logsnr_B), see `Stage.loss`.
      frozen: mesh -> what the loss reads and no update changes: a teacher's weights (`TrainState.frozen`).
      start: fresh params -> params to start from.
    """

    loss: Callable = lambda stage, params, frozen, *rest: stage.loss(params, *rest)
    frozen: Callable = lambda mesh: {}
    start: Callable | None = None


OWN_LOSS = Objective()


def make_train_step(
    stage: Stage, optimizer: OptimizerConfig, config: StepConfig, objective: Objective = OWN_LOSS
) -> Callable:
    """Builds the step; jit it with the state donated."""
    update_direction = direction(optimizer)

    def train_step(state: TrainState, batches: dict[str, Batch], key: jax.Array, progress: jax.Array):
        key = jax.random.fold_in(key, state.step)
        own = functools.partial(objective.loss, stage)
        (loss, sums), gradients = gradients_of(own, state.params, state.frozen, batches, key, config)
        updates, optimizer_state = update_direction.update(gradients, state.optimizer, state.params)
        rate = learning_rate(optimizer, state.step, progress)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema, params)
        norms = {"gradient_norm": optax.global_norm(gradients), "parameter_norm": optax.global_norm(state.params)}
        # Squared: the norm of the next parameters must be finite too.
        finite = (loss, norms["parameter_norm"], (rate * optax.global_norm(updates)) ** 2)
        good, guard = judge(config.guard, state.guard, gradient_norm=norms["gradient_norm"], finite=finite)
        old = (state.params, state.ema, state.optimizer)
        params, ema, optimizer_state = choose(good, (params, ema, optimizer_state), old)
        metrics = means_of(sums) | {
            "loss": loss,
            "learning_rate": rate,
            "skipped_in_a_row": guard["skipped_in_a_row"],
            **norms,
        }
        return TrainState(state.step + 1, params, ema, optimizer_state, guard, state.frozen), metrics

    return train_step


class Part(NamedTuple):
    """Where examples stand in the global batch that they are a part of; of each kind, videos and images.

    Attributes: slots (numbers of the examples, by which their noise is drawn: it does not depend on how the batch is
    cut), sizes (of the whole batch), valid (how many examples of the whole batch count).
    """

    slots: dict[str, jax.Array]
    sizes: dict[str, int]
    valid: dict[str, jax.Array]


def all_of(batches: dict[str, Batch]) -> Part:
    """The whole batch, as a part of itself."""
    return Part(
        {kind: jnp.arange(len(batch.valid_B)) for kind, batch in batches.items()},
        {kind: len(batch.valid_B) for kind, batch in batches.items()},
        {kind: jnp.sum(batch.valid_B, dtype=jnp.float32) for kind, batch in batches.items()},
    )


def batch_loss(
    loss: Callable, params, frozen, batches: dict[str, Batch], key, config: StepConfig, part: Part | None = None
):
    """(loss, sums) of a step's batches, or of a part of them; `loss` as an objective's, its stage given.

    Losses and sums of parts add up to those of the whole. Sums are divided by `means_of`: of losses, and their number,
    for each kind of example and noise level, of which a part may hold none.
    """
    total, sums = 0.0, {}
    part = all_of(batches) if part is None else part
    for kind, batch in batches.items():
        loss_B, logsnr_B = loss(params, frozen, batch, named_key(key, kind), part.slots[kind], part.sizes[kind])
        loss_B, logsnr_B = constrain(loss_B, "batch"), constrain(logsnr_B, "batch")
        valid_B = batch.valid_B.astype(jnp.float32)
        counted = {"": valid_B} | {
            f"_{name}": valid_B * (logsnr_B >= low) * (logsnr_B < high) for name, (low, high) in NOISE_LEVELS.items()
        }
        for name, inside_B in counted.items():
            sums[f"loss_{kind}{name}"] = jnp.stack([jnp.sum(loss_B * inside_B), jnp.sum(inside_B)])
        mean = sums[f"loss_{kind}"][0] / jnp.maximum(part.valid[kind], 1.0)
        total += mean * (config.image_weight if kind == "image" and "video" in part.sizes else 1.0)
    return total, sums


def means_of(sums: dict) -> dict:
    """Means of what `batch_loss` summed; NaN where there was no example."""
    return {name: total / count for name, (total, count) in sums.items()}


def gradients_of(loss: Callable, params, frozen, batches, key, config: StepConfig):
    """((loss, sums), gradients), accumulated over `config.accumulate` parts of each device's examples."""
    parts, whole = config.accumulate, all_of(batches)

    def of_part(shared, examples):
        (params, frozen, key, valid), (batches, slots) = shared, examples
        part, result = Part(slots, whole.sizes, valid), None
        gradient = jax.value_and_grad(batch_loss, argnums=1, has_aux=True)
        # One kind after the other: weights gathered for both would be kept from one's pass for the other's. Images
        # first: the TPU compiler made 5.4 GB of the first temporal stage at the paper's size, and 6.2 of videos first.
        for kind in sorted(batches):
            if result is not None:
                params, frozen, result = jax.lax.optimization_barrier((params, frozen, result))
            own = gradient(loss, params, frozen, {kind: batches[kind]}, key, config, part)
            result = own if result is None else _joined(result, own)
        return result

    def accumulated(shared, examples):
        if parts == 1:
            return of_part(shared, examples)
        # Every device's examples are dealt out among the parts, so that none has to move.
        split = jax.tree.map(
            lambda a: constrain(a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), None, "batch"), examples
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_part(shared, part)), None

        shapes = jax.eval_shape(lambda: of_part(shared, jax.tree.map(lambda a: a[0], split)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, split)[0]

    return summed_over_data(accumulated, (params, frozen, key, whole.valid), (batches, whole.slots))


def _joined(one, other):
    """Two kinds' ((loss, sums), gradients) as one: sums have names of their own."""
    ((loss, sums), gradients), ((other_loss, other_sums), other_gradients) = one, other
    return (loss + other_loss, sums | other_sums), jax.tree.map(jnp.add, gradients, other_gradients)
