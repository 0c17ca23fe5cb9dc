"""Two-stage distillation as a chain of training runs: `train` with another objective, one student a round.

    DIR/distill.json          what the chain is: the teacher's checkpoint, the calls of every round, the settings
    DIR/rounds/NAME/          one training folder a round, see loop.py
    DIR/rounds.jsonl          a line for every round that is done

Round 0 matches the guided teacher for every weight in a range; each round after it halves the network calls. What is
done is not done again, so a killed chain goes on in the middle of a round.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_video_jax import checkpoint, distributed, partitioning, steps, storage
from imagen_video_jax.cascade_file import read_rounds
from imagen_video_jax.data.loading import Decoded
from imagen_video_jax.diffusion import distillation, gaussian, guidance
from imagen_video_jax.diffusion.distillation import StudentConfig
from imagen_video_jax.diffusion.loss import loss_to_x
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage import Stage, clipped, example_keys, named_key
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.training.inputs import MOST_DECODED
from imagen_video_jax.training.loop import train
from imagen_video_jax.training.metrics import LOSSES, read_rows
from imagen_video_jax.training.resume import as_dict, defaults, flat, is_free
from imagen_video_jax.training.step import Objective
from imagen_video_jax.training.teachers import is_there, sha256_of, weights_of
from imagen_video_jax.training.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A chain of rounds.

    Attributes:
      train: the settings of every round; its stage is the teacher's, its steps are those of a halving round.
      teacher: the path of the teacher, see teachers.py.
      calls: network calls from which the halving starts; `last_calls` is where it ends.
      guided_steps: updates of round 0.
      halving_rate: learning rate of the rounds after it, which change much less; 0: that of `train`.
      weights: the range of guidance weights.
      weighting: of the loss, see diffusion/loss.py. The paper's eps_mse is none: its weight is 0 where sampling starts.
      samples: whether every round ends with sample videos (also train.sample_every).
      clip: of the teacher's estimates in the targets, as in sampling, or "none" (as published).
    """

    train: TrainConfig
    teacher: str
    calls: int = 256
    last_calls: int = 8
    guided_steps: int = 1000
    halving_rate: float = 0.0
    weights: tuple[float, float] = (0.0, 15.0)
    weighting: str = "snr_trunc"
    clip: str = "none"
    samples: bool = True

    def __post_init__(self):
        if self.weighting == "eps_mse":
            raise ValueError(
                "weighting eps_mse gives no weight to t = 1, where sampling starts; use snr_trunc or v_mse"
            )
        if self.guided_steps < 1:
            raise ValueError(f"guided_steps must be at least 1, got {self.guided_steps}")
        if not 0.0 <= self.halving_rate < math.inf:
            raise ValueError(f"halving_rate must be at least 0, got {self.halving_rate}")
        if not 0.0 <= self.weights[0] <= self.weights[1]:
            raise ValueError(f"weights must be a range from at least 0, like (0,15), got {self.weights}")
        if self.clip not in ("none", "static", "dynamic"):
            raise ValueError(f"clip must be none, static or dynamic, got {self.clip!r}")
        if self.last_calls < 1 or self.calls < self.last_calls:
            raise ValueError(f"a student has no more calls than its teacher: calls {self.calls} to {self.last_calls}")
        self.halvings()

    def halvings(self) -> list[int]:
        """Network calls of the rounds after round 0."""
        calls = [self.calls]
        while calls[-1] > self.last_calls:
            if calls[-1] % 2 or calls[-1] // 2 < self.last_calls:
                near = self.last_calls * 2 ** max((self.calls // self.last_calls).bit_length() - 1, 1)
                raise ValueError(
                    f"calls {self.calls} cannot be halved to {self.last_calls}: {calls[-1]} is no double of a number "
                    f"from {self.last_calls} on; start from {near}"
                )
            calls.append(calls[-1] // 2)
        return calls[1:]


@dataclasses.dataclass(frozen=True)
class Round:
    """One student: its number, the calls it is for, and whether it learns guidance (round 0) or longer steps."""

    number: int
    calls: int

    @property
    def guided(self) -> bool:
        return self.number == 0

    @property
    def name(self) -> str:
        return f"{self.number:02d}_{'guided' if self.guided else 'halved'}_{self.calls}"


def rounds_of(config: DistillConfig) -> list[Round]:
    return [Round(number, calls) for number, calls in enumerate([config.calls, *config.halvings()])]


def distill(config: DistillConfig, workdir: pathlib.Path, *, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Runs the rounds that are not done; `should_stop` and Stopped as of `train`."""
    with contextlib.ExitStack() as stack:
        teacher = distributed.from_first(lambda: _take(config, workdir, stack))
        config = dataclasses.replace(config, teacher=teacher)
        done, decoded = read_rounds(workdir), Decoded(MOST_DECODED)
        rounds = rounds_of(config)
        teacher = Stage(config.train.stage), pathlib.Path(config.teacher)
        for round_ in rounds:
            stage = student_stage(config, round_)
            folder = workdir / "rounds" / round_.name
            if round_.number >= len(done):
                settings = _train_config(config, round_, stage)
                if jax.process_index() == 0:
                    print(
                        f"[{round_.number + 1}/{len(rounds)}] {_describe(round_)}: {settings.steps} updates", flush=True
                    )
                aim = objective(config, round_, *teacher)
                train(settings, folder, should_stop=should_stop, objective=aim, decoded=decoded)
                done.append(_row(round_, folder, workdir))
                if jax.process_index() == 0:
                    _write_rounds(workdir, done)
            teacher = Stage(stage), workdir / done[round_.number]["checkpoint"]


def _take(config: DistillConfig, workdir: pathlib.Path, stack: contextlib.ExitStack) -> str:
    stack.enter_context(storage.directory_lock(storage.writable_folder(workdir)))
    teacher = _go_on_with(config, workdir).teacher
    _drop_damaged(workdir)
    return teacher


def _drop_damaged(workdir: pathlib.Path) -> None:
    """Takes the last round off the list where its student is damaged, so that its last updates are made again."""
    rows = read_rounds(workdir)
    if not rows:
        return
    student = workdir / rows[-1]["checkpoint"]
    try:
        checkpoint.verify(student)
    except UserError as error:
        print(f"warning: {error}; its round is made again", file=sys.stderr)
        if student.is_dir():
            steps.set_aside(student)
        _write_rounds(workdir, rows[:-1])


def _write_rounds(workdir: pathlib.Path, rows: list[dict]) -> None:
    storage.write_text(workdir / "rounds.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def student_stage(config: DistillConfig, round_: Round) -> StageConfig:
    """The stage that a round trains: the teacher's, with the weight as an input, and its own sampler."""
    stage = config.train.stage
    sampler = dataclasses.replace(
        stage.sampler,
        name="ddim" if round_.guided else "distilled",
        steps=round_.calls,
        rule="cfg",
        rescale=0.0,
        guidance=_within(stage.sampler.guidance, config.weights),
        guidance_low=None
        if stage.sampler.guidance_low is None
        else _within(stage.sampler.guidance_low, config.weights),
    )
    return dataclasses.replace(
        stage,
        network=dataclasses.replace(stage.network, guidance=True),
        student=StudentConfig(0 if round_.guided else round_.calls, config.weights),
        sampler=sampler,
        weighting=config.weighting,
    )


def _within(weight: float, range_: tuple[float, float]) -> float:
    return min(max(weight, range_[0]), range_[1])


def objective(config: DistillConfig, round_: Round, teacher: Stage, path: pathlib.Path) -> Objective:
    """The loss of a round to the target its teacher gives, starting from the teacher's weights."""

    def frozen(mesh):
        shardings = partitioning.shardings_of(mesh, teacher.network.abstract, teacher.network.axes)
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            teacher.network.abstract,
            shardings,
        )
        # An argument of the step, so that the rounds share one compiled program.
        calls = jax.device_put(jnp.asarray(round_.calls, jnp.float32), partitioning.replicated(mesh))
        return {"teacher": weights_of(path, teacher.config.name, abstract), "calls": calls}

    def start(fresh):
        own = {name: leaf for name, leaf in fresh.items() if name in teacher.network.abstract}
        return {**fresh, **weights_of(path, teacher.config.name, own)}

    def loss(stage, params, frozen, batch, key, slot_B, slots):
        return distillation_loss(config, round_.guided, teacher, stage, params, frozen, batch, key, slot_B, slots)

    return Objective(loss, frozen, start)


def distillation_loss(config, guided, teacher, stage, params, frozen, batch, key, slot_B, slots):
    """(loss_B, logsnr_B) of a student; arguments as of `Objective.loss` after the first three."""

    def time(uniform_B):
        return uniform_B if guided else distillation.grid_time(uniform_B, frozen["calls"])

    noised = stage.noised(batch, key, slot_B, slots, text_drop=0.0, time=time)
    weight_B = jax.vmap(lambda key: drawn_weight(key, config.weights))(example_keys(named_key(key, "guidance"), slot_B))
    conditions = dataclasses.replace(noised.conditions, guidance_B=weight_B)
    sampler = dataclasses.replace(stage.config.sampler, clip=config.clip)

    def teacher_x(z, logsnr_B):
        if not guided:
            return clipped(teacher.estimate(frozen["teacher"], z, logsnr_B, conditions), sampler)
        return clipped(guided_estimate(teacher, frozen["teacher"], z, logsnr_B, noised.conditions, weight_B), sampler)

    if guided:
        target = teacher_x(noised.z, noised.logsnr_B)
    else:
        target = distillation.progressive_target(
            teacher_x, z=noised.z, time=noised.time_B, calls=frozen["calls"], schedule=stage.config.schedule
        )
    loss_B = loss_to_x(
        output=stage.predict(params, noised.z, noised.logsnr_B, conditions),
        prediction=stage.config.prediction,
        z=noised.z,
        x=jax.lax.stop_gradient(target),
        logsnr_B=noised.logsnr_B,
        weighting=stage.config.weighting,
    )
    return loss_B, noised.logsnr_B


def drawn_weight(key, weights):
    """A guidance weight w in the range, ln(1 + w) uniform.

    What is clipped changes little from w = 10 to 15, and much from 0 to 2: drawn uniformly from 0 to 15 (Meng et al.
    2022, of unclipped estimates), only one in eight is below 2.
    """
    low, high = (math.log1p(weight) for weight in weights)
    return jnp.clip(jnp.expm1(jax.random.uniform(key, minval=low, maxval=high)), *weights)


def guided_estimate(teacher: Stage, params, z, logsnr_B, conditions, weight_B):
    """(1 + w) c - w u of a stage that is no student, a weight per example."""
    conditional, unconditional = teacher.estimates(params, z, logsnr_B, conditions, conditions.unconditional())
    return guidance.guide(conditional=conditional, unconditional=unconditional, weight=gaussian.expand(weight_B, z))


def _train_config(config: DistillConfig, round_: Round, stage: StageConfig) -> TrainConfig:
    steps, optimizer = config.guided_steps, config.train.optimizer
    if not round_.guided:
        steps = config.train.steps
        optimizer = dataclasses.replace(optimizer, learning_rate=config.halving_rate or optimizer.learning_rate)
    return dataclasses.replace(
        config.train,
        stage=stage,
        steps=steps,
        optimizer=optimizer,
        sample_every=config.train.sample_every or (steps if config.samples else 0),
        evaluate_every=config.train.evaluate_every or steps,
    )


def _row(round_: Round, folder: pathlib.Path, workdir: pathlib.Path) -> dict:
    """What rounds.jsonl says of a round: the loss is the held-out one where there are validation clips, and None where
    the rows of its training were lost."""
    rows = {kind: [row for row in read_rows(folder / "metrics.jsonl") if row.get("kind") == kind] for kind in LOSSES}
    held_out = bool(rows["held_out"])
    last = (rows["held_out"] or rows["train"] or [{}])[-1]
    step = checkpoint.committed_steps(folder / "checkpoints")[-1]
    return {
        "round": round_.number,
        "kind": "guided" if round_.guided else "halved",
        "network_calls": round_.calls,
        "grid_points": None if round_.guided else round_.calls,
        "ddim_steps": None if round_.guided else round_.calls / 2,
        "checkpoint": (folder / "checkpoints" / str(step)).relative_to(workdir).as_posix(),
        "updates": step,
        "loss": last.get("loss_video" if held_out else "loss"),
        "loss_of": "held_out" if held_out else "train",
    }


def _describe(round_: Round) -> str:
    if round_.guided:
        return f"one student for every guidance weight, any time, to be sampled with {round_.calls} calls"
    return (
        f"a student of {round_.calls} network calls: grid i/{round_.calls}, DDIM steps of 2/{round_.calls} "
        f"(a {round_.calls / 2:g}-step DDIM), its teacher's steps are 1/{round_.calls}"
    )


def _settled(values: dict) -> dict[str, object]:
    """What may not change when a chain goes on, by path."""
    return {
        name: value for name, value in flat(values) if name != "teacher" and not is_free(name.removeprefix("train."))
    }


def _go_on_with(config: DistillConfig, workdir: pathlib.Path) -> DistillConfig:
    """The config with the teacher that this chain began with; UserError where it is another chain."""
    file = workdir / "distill.json"
    values = json.loads(json.dumps(as_dict(config)))
    path = pathlib.Path(config.teacher)
    teacher = {"checkpoint": str(path.absolute()), "sha256": sha256_of(path)}
    if not file.exists():
        storage.write_json(file, {"config": values, "teacher": teacher})
        return config
    stored = storage.read_json(file)
    try:
        theirs, settled = stored["config"]["train"]["stage"]["name"], _settled(stored["config"])
        sha256, first = stored["teacher"]["sha256"], pathlib.Path(stored["teacher"]["checkpoint"])
    except (KeyError, TypeError):
        raise UserError(f"{file} is damaged; remove it and run again with the settings of before") from None
    name = config.train.stage.name
    if theirs != name:
        raise UserError(f"{workdir} distils {theirs}, this teacher is {name}; use another --workdir")
    # A field that a later version brought had its default before.
    before = dict(defaults(config)) | settled
    changed = [field for field, value in _settled(values).items() if before.get(field) != value]
    if changed:
        raise UserError(f"{workdir} was begun with other settings of {', '.join(changed)}; use another --workdir")
    if sha256 == teacher["sha256"]:
        return config
    if not read_rounds(workdir) and not is_there(first):
        raise UserError(f"{workdir} was begun with teacher {first}, which is gone; use another --workdir")
    return dataclasses.replace(config, teacher=str(first))
