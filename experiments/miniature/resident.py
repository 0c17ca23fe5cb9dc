"""Training of a small stage with the whole data set in the device's memory: many updates a call, no host between them.

    python -m experiments.miniature.resident --config experiments/base_16f_24x40.py:mini --workdir DIR [--config.F=V]

On a GPU an update of a miniature takes less time than the host needs to read and send its batch. So every clip is
decoded and cut once, at one moment, and stays on the device, beside the embeddings of all captions; a program makes
`--updates` updates and draws their batches itself, with replacement. The update, the config and the checkpoints are
those of imagen-video train. What else that does is not here: held-out losses and samples, going back, buckets,
mixtures, a bad file stepped over, SIGTERM, several devices.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax import checkpoint, configs, partitioning, storage
from imagen_video_jax.batch import Batch
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory, use_compilation_cache
from imagen_video_jax.data.clips import ClipSpec, cut_clip
from imagen_video_jax.data.examples import Example
from imagen_video_jax.data.loading import decode
from imagen_video_jax.errors import DIVERGED, UserError
from imagen_video_jax.stages.stage import Stage, named_key
from imagen_video_jax.training.inputs import Inputs
from imagen_video_jax.training.metrics import MetricsWriter, progress_bar
from imagen_video_jax.training.resume import meta_of
from imagen_video_jax.training.start import find_start, start_state
from imagen_video_jax.training.state import SAVED, TrainState
from imagen_video_jax.training.step import OWN_LOSS, Objective, make_train_step
from imagen_video_jax.training.train_config import TrainConfig, check_divisible

UPDATES = 50  # of one program call
NULL = ""  # the caption of what has none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """Every caption's token states: states_ULD (bfloat16), mask_UL; row 0 is the null text."""

    states_ULD: jax.Array
    mask_UL: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """Examples of one kind: video_NTHWC (uint8), captions_NC (rows of `Texts`), fps (scalar)."""

    video_NTHWC: jax.Array
    captions_NC: jax.Array
    fps: jax.Array

    def draw(self, texts: Texts, key: jax.Array, size: int) -> Batch:
        """`size` examples, each with one of its captions."""
        which, of = jax.random.split(key)
        index_B = jax.random.randint(which, (size,), 0, self.video_NTHWC.shape[0])
        row_B = self.captions_NC[index_B, jax.random.randint(of, (size,), 0, self.captions_NC.shape[1])]
        return Batch(
            video_BTHWC=self.video_NTHWC[index_B],
            text_BLD=texts.states_ULD[row_B].astype(jnp.float32),
            text_mask_BL=texts.mask_UL[row_B],
            fps_B=jnp.full(size, self.fps),
            id_B=index_B,
            valid_B=jnp.ones(size, bool),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE.py[:SCALE]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of one program call")
    arguments, overrides = parser.parse_known_args()
    keep_freed_memory()
    use_compilation_cache()
    config = configs.training(arguments.config, overrides)
    check_calls(config.steps, arguments.updates)  # before data are made for nothing
    config = configs.with_data(config, arguments.workdir)
    train(config, arguments.workdir, updates=arguments.updates)


def train(
    config: TrainConfig, workdir: pathlib.Path, *, objective: Objective = OWN_LOSS, updates: int = UPDATES
) -> None:
    """Trains on one device until the config's steps or seconds are used up; goes on where a checkpoint in `workdir` is.

    Raises: UserError for what is not here (see above), where the steps that are left are no multiple of `updates`, a
      file cannot be read, or training diverges.
    """
    check_calls(config.steps, updates)
    storage.writable_folder(workdir)
    with storage.directory_lock(workdir):
        meta = find_start(workdir, config)
        done, before = (meta["step"], meta["seconds"]) if meta else (0, 0.0)
        if done >= config.steps or (config.max_seconds and before >= config.max_seconds):
            return
        check_calls(config.steps - done, updates)
        mesh = partitioning.make_mesh(config.mesh)
        check_divisible(config, mesh)
        inputs = Inputs(config)
        if mesh.size > 1:
            raise UserError(f"this trains on one device, the mesh has {mesh.size}; add --config.mesh.data=1")
        if config.buckets or len(inputs.source.weights) > 1:
            raise UserError("this knows no buckets and no mixtures of data sets; use imagen-video train")
        inputs.check_text((meta or {}).get("encoder"), workdir)
        state = start_state(config, Stage(config.stage), objective, mesh, jax.random.key(config.seed), meta)
        examples, texts = read(config, inputs)

        def save(state: TrainState, seconds: float) -> None:
            facts = meta_of(config, inputs.embeddings.info, inputs.contents, seconds=seconds, left_out=0)
            trees = {name: getattr(state, name) for name in SAVED}
            checkpoint.save(workdir / "checkpoints", int(state.step), trees, facts, keep=config.keep)

        run(config, state, examples, texts, workdir, save, objective=objective, updates=updates, before=before)


def check_calls(steps: int, updates: int) -> None:
    """UserError unless so many steps are whole calls."""
    if updates < 1 or steps % updates:
        raise UserError(f"the steps to do must be a multiple of the updates of a call, got {steps} and {updates}")


def run(
    config: TrainConfig,
    state: TrainState,
    examples: dict[str, Held],
    texts: Texts,
    workdir: pathlib.Path,
    save: Callable[[TrainState, float], None],
    *,
    objective: Objective = OWN_LOSS,
    updates: int = UPDATES,
    before: float = 0.0,
) -> TrainState:
    """Updates until the config's steps or seconds are used up, `before` of them already; `save(state, seconds)` at its
    checkpoints and at the end."""
    examples, texts = jax.device_put((examples, texts))
    step, key = int(state.step), jax.random.key(config.seed)
    program = jax.jit(functools.partial(_many, config, objective, updates), donate_argnums=0)
    program = program.lower(state, examples, texts, key, np.float32(0)).compile()
    bar, task = progress_bar(config.stage.name, config.steps, step, shown=True)
    began, seconds, saved = time.monotonic() - before, before, step
    with bar, contextlib.closing(MetricsWriter(workdir, start_step=step)) as writer:
        while step < config.steps and not (config.max_seconds and seconds >= config.max_seconds):
            progress = max(step / config.steps, seconds / config.max_seconds if config.max_seconds else 0.0)
            state, metrics = program(state, examples, texts, key, np.float32(progress))
            values = {name: float(value) for name, value in metrics.items()}
            if values["skipped_in_a_row"] >= config.step.guard.in_a_row:
                raise UserError(f"training diverged before step {step + updates}; lower the learning rate", DIVERGED)
            step, seconds = step + updates, time.monotonic() - began
            writer.write(step, values | {"seconds": seconds})
            bar.update(task, completed=step, note=f"loss {values['loss']:.4f}")
            if step - saved >= config.checkpoint_every and not values["skipped_in_a_row"]:
                save(state, seconds)
                saved = step
    if saved < step:
        save(state, seconds)
    return state


def _many(config: TrainConfig, objective: Objective, updates: int, state, examples, texts, key, progress):
    """(state, metrics) after `updates` updates: their means, and the most that did not count in a row."""
    update = make_train_step(Stage(config.stage), config.optimizer, config.step, objective)
    sizes = {"video": config.batch_size, "image": config.image_batch_size}

    def one(state, _):
        drawn = jax.random.fold_in(named_key(key, "draw"), state.step)
        batches = {kind: held.draw(texts, named_key(drawn, kind), sizes[kind]) for kind, held in examples.items()}
        return update(state, batches, key, progress)

    state, metrics = jax.lax.scan(one, state, None, length=updates)
    means = {name: jnp.nanmean(values) for name, values in metrics.items()}
    return state, means | {"skipped_in_a_row": jnp.max(metrics["skipped_in_a_row"])}


# Reading.


def read(config: TrainConfig, inputs: Inputs) -> tuple[dict[str, Held], Texts]:
    """Everything of the config's data that is trained on, at the size of the stage's clips; UserError for nothing."""
    stage, rows, examples = config.stage, {NULL: 0}, {}
    videos = ("video", inputs.source.videos, config.batch_size, stage.train_frames)
    images = ("image", inputs.source.images, config.image_batch_size, 1)
    for kind, of, size, frames in (videos, images):
        if of and size:
            spec = ClipSpec(frames, stage.height, stage.width, stage.fps, crop=config.crop, short=config.short)
            examples[kind] = hold(of, spec, rows, seed=config.seed)
    if not examples:
        raise UserError(f"{config.data} holds nothing to train on with these batch sizes")
    states_ULD = np.zeros((len(rows), stage.text_length, inputs.embeddings.width), jnp.bfloat16)
    mask_UL = np.zeros(states_ULD.shape[:2], bool)
    mask_UL[:, 0] = True
    for caption, row in rows.items():
        if caption != NULL:
            states_LD = inputs.embeddings.lookup(caption)[: stage.text_length]
            states_ULD[row, : len(states_LD)], mask_UL[row, : len(states_LD)] = states_LD, True
    return examples, Texts(states_ULD, mask_UL)


def hold(examples: Sequence[Example], spec: ClipSpec, rows: dict[str, int], *, seed: int) -> Held:
    """Decodes the examples; numbers their captions in `rows`."""

    def clip(example: Example) -> np.ndarray:
        video = decode(example, height=spec.height, width=spec.width, apart=False)
        return cut_clip(video, spec, np.random.default_rng([seed, example.id]))

    most = max(len(example.captions) for example in examples) or 1
    numbers = []
    for example in examples:
        own = example.captions or (NULL,)
        numbers.append([rows.setdefault(own[place % len(own)], len(rows)) for place in range(most)])
    bar, task = progress_bar("reading", len(examples), 0, shown=True)
    with bar, concurrent.futures.ThreadPoolExecutor() as pool:
        clips = []
        for clip_THWC in pool.map(clip, examples):
            clips.append(clip_THWC)
            bar.update(task, completed=len(clips))
    return Held(np.stack(clips), np.array(numbers, np.int32), np.float32(spec.fps))


if __name__ == "__main__":
    sys.exit(in_one_line(main))
