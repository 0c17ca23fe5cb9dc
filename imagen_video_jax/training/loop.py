"""The one loop, for every stage: batches -> train step -> metrics, samples, checkpoints; resumes where it was.

Order within a step, not to be changed: draw the batch, dispatch the step, read the metrics of the step before, then
save. A checkpoint holds the state after N steps, and the next batch to draw is number N plus the batches that were left
out when training went back: one integer is the whole data position.

With several processes each draws the part of the batch that its devices hold; process 0 writes and prints. What only
one of them can know (its clock, a SIGTERM) enters the step as a number, and its maximum comes out for all alike.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from imagen_video_jax import distributed, partitioning, storage
from imagen_video_jax.data.loading import Decoded
from imagen_video_jax.errors import DIVERGED, UserError
from imagen_video_jax.models.layers import KEEPING
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.ahead import Ahead
from imagen_video_jax.training.goodput import Ledger
from imagen_video_jax.training.inputs import Inputs
from imagen_video_jax.training.looking import Looks
from imagen_video_jax.training.metrics import MetricsWriter, NoWriter, progress_bar, report_clips
from imagen_video_jax.training.optimizer import direction
from imagen_video_jax.training.resume import meta_of, note_other_data
from imagen_video_jax.training.saver import Saver
from imagen_video_jax.training.start import find_start, start_state
from imagen_video_jax.training.state import SAVED, TrainState, abstract_state, shardings_of
from imagen_video_jax.training.step import OWN_LOSS, Objective, make_train_step
from imagen_video_jax.training.stopping import Stop, StopNow
from imagen_video_jax.training.throughput import Throughput
from imagen_video_jax.training.train_config import TrainConfig, check_divisible


def train(
    config: TrainConfig,
    workdir: pathlib.Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    objective: Objective = OWN_LOSS,
    decoded: Decoded | None = None,
) -> TrainState:
    """Trains until `steps` (or the time budget), resuming from the newest good checkpoint in `workdir`.

    When `should_stop()` becomes true, in any process of the job, the run ends after the step in flight, saved. Runs one
    after another that read the same data may share what is `decoded`.

    Raises: Stopped where it ended so.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        distributed.from_first(lambda: _take(workdir, stack))
        stop = should_stop if isinstance(should_stop, Stop) else Stop(should_stop)
        run = _Run(config, workdir, stop, objective, decoded)
        state = run.run()
    if run.ending == STOP:
        raise Stopped(state)
    return state


class Stopped(Exception):
    """A run was asked to stop, and has: `state` is saved."""

    def __init__(self, state: TrainState):
        super().__init__("stopped")
        self.state = state


# Why a run ends before its last step; the larger reason wins.
GO_ON, OUT_OF_TIME, STOP = 0, 1, 2


def _take(workdir: pathlib.Path, stack: contextlib.ExitStack) -> None:
    storage.writable_folder(workdir)
    stack.enter_context(storage.directory_lock(workdir))
    if (workdir / "distill.json").exists():
        raise UserError(f"{workdir} is a folder of imagen-video distill; use another --workdir")


class _Run:
    """What one call of `train` holds while it lasts."""

    def __init__(self, config: TrainConfig, workdir: pathlib.Path, stop: Stop, objective: Objective, decoded):
        self.config, self.workdir, self.stop, self.objective = config, workdir, stop, objective
        self.decoded = decoded
        self.checkpoints = workdir / "checkpoints"
        distributed.agree(self._open)
        self.meta = find_start(workdir, config)
        self.mesh = partitioning.make_mesh(config.mesh)
        check_divisible(config, self.mesh)
        self.inputs.check_text((self.meta or {}).get("encoder"), workdir)
        if self.meta and distributed.is_first():
            note_other_data(self.meta, self.inputs.contents)
        self.stage = Stage(config.stage)
        self.looks = Looks(
            config,
            self.stage,
            objective,
            self.mesh,
            self.inputs,
            folder=workdir / "samples",
        )
        self.key = jax.random.key(config.seed)
        self.start_step = self.meta["step"] if self.meta else 0
        self.seconds_before = self.meta["seconds"] if self.meta else 0.0
        self.step, self.safe, self.programs = self.start_step, {}, {}
        self.roll_backs, self.left_out = 0, (self.meta or {}).get("left_out", 0)
        self.ending = GO_ON
        account = workdir / "goodput.json" if distributed.is_first() else None
        self.ledger = Ledger(account, start_step=self.start_step, deadlines=config.deadlines)
        self.throughput = Throughput(self.ledger, self.mesh)

    def run(self) -> TrainState:
        with self.ledger.during("restore" if self.meta else "compile"):
            state = self._state()
        if self.start_step >= self.config.steps or self._out_of_time(self.start_step, self.seconds_before):
            return state
        first = distributed.is_first()
        self.writer = MetricsWriter(self.workdir, start_step=self.start_step) if first else NoWriter()
        self.writer.write(self.start_step, {}, kind="start")
        self.saver = Saver(
            self.checkpoints,
            keep=self.config.keep,
            committed=self.start_step if self.meta else -1,
            report=self._saved,
            seconds=self.config.deadlines.save,
        )
        self.bar, self.task = progress_bar(self.config.stage.name, self.config.steps, self.start_step, shown=first)
        self.train_step = self._jit_step(state)
        with self.bar, contextlib.closing(self.writer), contextlib.closing(self.saver):
            while True:
                try:
                    state = self._train_from(state)
                    break
                except _Diverged as reason:
                    state = self._go_back(reason)
            if self.saver.committed == self.step:  # it ended well: nothing will be done again
                self.ledger.saved(self.step, self.ledger.saving(self.step))
            seconds = {f"seconds_{phase}": value for phase, value in self.ledger.totals().items()}
            self.writer.write(self.step, seconds, kind="goodput")
            self.ledger.note()
        if first:
            print("\n".join(filter(None, [self.ledger.table(), self.throughput.text()])))
        return state

    def _open(self) -> dict[str, str]:
        """Opens what this process reads, and says what all processes of the job must have alike."""
        self.inputs = Inputs(self.config, self.decoded)
        return {} if jax.process_count() == 1 else self.inputs.facts(self.workdir)

    def _state(self) -> TrainState:
        return start_state(self.config, self.stage, self.objective, self.mesh, self.key, self.meta)

    def _train_from(self, state: TrainState) -> TrainState:
        """Trains until the end; `_Diverged` when too many updates in a row do not count."""
        self.position = self.start_step + self.left_out
        self.throughput.restart()
        batches = self.inputs.batches(self.mesh, self.position)
        with contextlib.ExitStack() as stack:
            for stream in batches.values():
                stack.enter_context(stream)
            try:
                with Ahead(lambda: self._next_batch(batches)) as ahead:
                    return self._steps(state, batches, ahead)
            finally:
                report_clips(self.workdir, batches.values(), jax.process_index())

    def _next_batch(self, batches: dict) -> dict:
        return {kind: partitioning.put_batch(self.mesh, next(stream)) for kind, stream in batches.items()}

    def _steps(self, state: TrainState, batches: dict, ahead: Ahead) -> TrainState:
        step, pending, ending = self.start_step, None, None
        while step < self.config.steps:
            elapsed = self._seconds()
            wish = self._wish(step, elapsed)
            self.ending = self._common(wish, ending)
            if self.ending:
                break
            self.ledger.enter("data")
            try:
                with self._at_once():
                    batch = next(ahead)
            except StopNow:
                self.ending = STOP
                break
            self.position += 1
            own = partitioning.put_own(self.mesh, (self._progress(step, elapsed), wish))
            try:
                program = self._program(state, batch, own)
            except StopNow:
                self.ending = STOP
                break
            self.ledger.enter("step")
            state, metrics, ending = program(state, batch, self.key, own)
            if self.began is None:
                jax.block_until_ready(metrics)
                self.began = time.monotonic()
            traced = functools.partial(self.train_step.trace, state, batch, self.key, own)
            self.throughput.begin(batch, traced)
            self.step = step = step + 1
            self._read(pending)
            pending = (step, metrics)
            self.bar.update(self.task, completed=step, note=self._note(batches))
            self._profile(step)
            self._between_steps(state, pending, elapsed)
        self._end_trace()  # of a run that ended before its last step to trace
        self._read(pending, last=True)
        if pending is not None:
            self._save(state, pending, self._seconds(), wait=True)
        return state

    def _at_once(self):
        """Where being asked to stop need not wait; several processes can only end together, at a step."""
        return self.stop.at_once() if jax.process_count() == 1 else contextlib.nullcontext()

    def _program(self, state: TrainState, batch: dict, own) -> Callable:
        """The compiled step for a batch of these shapes; with buckets there are several. StopNow leaves it behind."""
        shapes = tuple(part.video_BTHWC.shape for part in batch.values())
        if shapes not in self.programs:
            self.ledger.enter("compile")

            def compiled():
                return self.train_step.lower(state, batch, self.key, own).compile()

            self.programs[shapes] = self.stop.run(compiled) if jax.process_count() == 1 else compiled()
            distributed.meet()
        return self.programs[shapes]

    # One step.

    def _jit_step(self, state: TrainState) -> Callable:
        step = make_train_step(self.stage, self.config.optimizer, self.config.step, self.objective)

        def traced(state, batches, key, own):
            """Args: own is (progress, wish) of every device's process; the largest of each count for all."""
            progress, ending = own.max(axis=0)
            with partitioning.activate(self.mesh):
                state, metrics = step(state, batches, key, progress)
            return state, metrics, ending

        # Shardings that the partitioner is free to choose would differ after the first step: a second compilation.
        kept = shardings_of(abstract_state(self.stage, direction(self.config.optimizer), self.mesh))
        kept = dataclasses.replace(kept, frozen=shardings_of(state.frozen))
        options = KEEPING if self.mesh.devices.flat[0].platform == "cpu" else None
        return jax.jit(traced, donate_argnums=0, out_shardings=(kept, None, None), compiler_options=options)

    def _progress(self, step: int, seconds: float) -> float:
        shares = [step / self.config.steps]
        if self.config.max_seconds:
            shares.append(seconds / self.config.max_seconds)
        return max(shares)

    began: float | None = None

    def _seconds(self) -> float:
        """Seconds of training so far, over all runs in this workdir; the clock starts when the step is compiled."""
        return self.seconds_before + (0.0 if self.began is None else time.monotonic() - self.began)

    def _out_of_time(self, step: int, seconds: float) -> bool:
        return bool(self.config.max_seconds) and seconds >= self.config.max_seconds and step > 0

    def _wish(self, step: int, seconds: float) -> int:
        """What this process, for itself, would do now."""
        return STOP if self.stop() else OUT_OF_TIME if self._out_of_time(step, seconds) else GO_ON

    @staticmethod
    def _common(wish: int, ending) -> int:
        """What all processes do now: the last step's largest wish, so that they end at the same step."""
        if jax.process_count() == 1:
            return wish
        return GO_ON if ending is None else int(ending)

    def _read(self, pending, *, last: bool = False) -> None:
        """Reads the metrics of the step before the one in flight, so that the device never waits for the host."""
        self.saver.poll()
        if pending is None:
            return
        step, metrics = pending
        in_a_row = self.throughput.end(lambda: int(metrics["skipped_in_a_row"]))
        if last or in_a_row or step % self.config.log_every == 0 or step == 1:
            values = {name: float(value) for name, value in metrics.items()}
            self.writer.write(step, values | self.throughput.row())
            self.last_loss = values["loss"]
        stuck = last and in_a_row and in_a_row >= step - max(self._committed(), 0)
        if stuck or in_a_row >= self.config.step.guard.in_a_row:
            raise _Diverged(f"{in_a_row} updates in a row did not count, the last at step {step}")

    def _committed(self) -> int:
        """The newest step that surely stays, the same for all processes."""
        if jax.process_count() > 1:
            self.saver.wait()
        return distributed.from_first(lambda: self.saver.committed)

    def _go_back(self, reason: "_Diverged") -> TrainState:
        """To the last checkpoint, or the start; the data drawn since are left out."""
        self.saver.wait()
        self.meta, began_at = find_start(self.workdir, self.config), self.start_step
        self.start_step = self.meta["step"] if self.meta else 0
        self.roll_backs = self.roll_backs + 1 if self.start_step == began_at else 1
        if self.roll_backs > self.config.step.guard.roll_backs:
            raise UserError(
                f"training diverged: {reason}, after going back {self.roll_backs - 1} times to step {self.start_step}; "
                "what helps is a lower learning rate or other data",
                DIVERGED,
            )
        self.ledger.went_back(self.start_step)
        first, self.left_out = self.start_step + self.left_out, self.position - self.start_step
        if distributed.is_first():
            left_out = f"the batches {first} to {self.position - 1}"
            print(f"warning: {reason}; back to step {self.start_step}, without {left_out}", file=sys.stderr)
        self.writer.cut_after(self.start_step)
        row = {"first_batch_left_out": first, "last_batch_left_out": self.position - 1, "roll_backs": self.roll_backs}
        self.writer.write(self.start_step, row, kind="back")
        with self.ledger.during("restore"):
            return self._state()

    last_loss = float("nan")

    def _note(self, batches: dict) -> str:
        skipped = sum(len(stream.skipped) for stream in batches.values())
        return f"loss {self.last_loss:.4f}" + (f", {skipped} unusable" if skipped else "")

    def _between_steps(self, state: TrainState, pending, seconds: float) -> None:
        config, step = self.config, pending[0]
        if config.evaluate_every and step % config.evaluate_every == 0:
            with self.ledger.during("look"):
                if losses := self.looks.held_out_loss(state):
                    self.writer.write(step, losses, kind="held_out")
        if config.sample_every and step % config.sample_every == 0:
            with self.ledger.during("look"):
                self.looks.write_samples(state, step)
        if step % config.checkpoint_every == 0 and step < config.steps:
            self._save(state, pending, seconds)

    def _profile(self, step: int) -> None:
        if not distributed.is_first():
            return
        # After the tenth step, when all is warm; a shorter run is traced at its end.
        left = self.config.steps - self.start_step - self.config.profile_steps
        begin = self.start_step + max(min(10, left), 1)
        if self.config.profile_steps and step == begin:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self.tracing = True
        if self.tracing and step >= begin + self.config.profile_steps:
            self._end_trace()

    tracing = False

    def _end_trace(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()

    # Ending.

    def _save(self, state: TrainState, pending, seconds: float, *, wait: bool = False) -> None:
        """A state that is not finite is never saved; one in a row of updates that do not count waits for its end."""
        step, metrics = pending
        if metrics is not None and not np.isfinite(float(metrics["parameter_norm"])):
            raise _Diverged(f"the parameters are not finite at step {step}")
        if metrics is not None and int(metrics["skipped_in_a_row"]) and not wait:
            return
        told = self.inputs.embeddings.info, self.inputs.contents
        meta = meta_of(self.config, *told, seconds=seconds, left_out=self.left_out)
        with self.ledger.during("save"):
            self.safe[step] = self.ledger.saving(step)
            save = self.saver.save if wait else self.saver.start
            save(step, {name: getattr(state, name) for name in SAVED}, meta)

    def _saved(self, step: int, values: dict) -> None:
        self.writer.write(step, values, kind="save")
        self.ledger.saved(step, self.safe.pop(step, {}))


class _Diverged(Exception):
    """Training has to go back; the text says why."""
