"""The sweep: every cell sampled and measured once, whatever kills it and however many processes share it.

    WORKDIR/rows/KEY.json      one finished row each, written once
    WORKDIR/results.jsonl      all of them, in the order in which they were finished
    WORKDIR/report.html        tables, curves and playing videos

A row is known by what its samples and its numbers depend on, so running again makes only what is missing, and a cell
that fails (a deleted checkpoint, NaN) is named and does not stop the others.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable

from imagen_video_jax import __version__, storage
from imagen_video_jax.errors import FAILED, NO_CHECKPOINT, STOPPED_AFTER_SAVING, UserError
from imagen_video_jax.evaluation import noise_levels, pinned, scenes, sweep_report
from imagen_video_jax.evaluation.cell_samples import SECONDS, SHIFTS, CellSampler
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.evaluation.folders import read_set
from imagen_video_jax.evaluation.metrics import (
    METRICS,
    Options,
    VideoSet,
    check_names,
    described,
    finite,
    frechet_extractors,
    measure,
    unable,
)
from imagen_video_jax.evaluation.networks import open_extractor
from imagen_video_jax.evaluation.sweep import Cell, SweepConfig, Trained, cells_of, committed, digest_of
from imagen_video_jax.evaluation.video_folders import list_videos
from imagen_video_jax.training.metrics import progress_bar

_POLL = 2.0


def evaluate(
    config: SweepConfig,
    workdir: pathlib.Path,
    *,
    prompts: scenes.Prompts,
    share: tuple[int, int] = (0, 1),
    should_stop: Callable[[], bool] = lambda: False,
    on_row: Callable[[dict], None] = lambda row: None,
) -> int:
    """Runs the sweep in `workdir`; returns the exit code.

    Args:
      share: (number of this process, how many there are).
      on_row: called with every row that this process makes.
    """
    return _Sweep(config, storage.writable_folder(workdir), prompts, share, should_stop, on_row).run()


class _Sweep:
    """What one call holds while it lasts."""

    def __init__(self, config, workdir, prompts, share, should_stop, on_row):
        self.config, self.workdir, self.prompts = config, workdir, prompts
        self.share, self.should_stop, self.on_row = share, should_stop, on_row
        self.left_out: dict[str, str] = {}  # metric -> why it is not measured
        if config.metrics:
            check_names(config.metrics)
        self.store = FeatureStore(workdir / "features")
        self.sampler = CellSampler(config, prompts, workdir, self.store)
        self.metrics, self.extractors = self._choose_metrics()
        self.failed: dict[str, UserError] = {}  # title of a cell -> why
        (workdir / "rows").mkdir(exist_ok=True)

    def run(self) -> int:
        real = self._real()
        until = None
        while True:
            cells = self._cells()
            missing = [cell for cell in cells if cell.title not in self.failed and not self._row_path(cell).exists()]
            if not self._run_cells(missing, len(cells), real):
                return STOPPED_AFTER_SAVING
            self._unpin(cells)
            self._write_results(cells)
            until = time.monotonic() + 60 * self.config.follow_minutes if missing or until is None else until
            if time.monotonic() >= until:
                break
            time.sleep(_POLL)
            if self.should_stop():
                return STOPPED_AFTER_SAVING
        if self.failed and not any(self._row_path(cell).exists() for cell in cells):
            codes = {error.exit_code for error in self.failed.values()}
            code = codes.pop() if len(codes) == 1 else FAILED
            raise UserError("every cell failed, see above; run the same command again to go on", code)
        return FAILED if self.failed else 0

    # What there is to do.

    def _cells(self) -> list[Cell]:
        config, found = self.config, []
        if "cascade" in config.checkpoints:
            found.append(self.sampler.own_checkpoint())
        folder = self.sampler.folders[self.sampler.main].parent
        found += pinned.held(config.checkpoints, self.workdir / "pinned")
        for step in pinned.wanted(config.checkpoints, folder):
            try:
                found.append(self._pinned(folder / str(step)))
            except UserError as error:
                self._fail(f"step {step}", error)
        if not found:
            raise UserError(f"no checkpoint to evaluate in {folder}", NO_CHECKPOINT)
        return cells_of(config, found)

    def _pinned(self, folder: pathlib.Path) -> Trained:
        own = self.sampler.own_checkpoint()
        if (
            folder.name == str(own.step)
            and folder.is_dir()
            and committed(folder) == own.digest
            and all(self.config.ema)
        ):
            return own  # its EMA weights are in memory
        with contextlib.suppress(OSError):
            done = Trained("", int(folder.name), committed(folder))
            if all(self._row_path(cell).exists() for cell in cells_of(self.config, [done])):
                return done  # nothing reads it any more
        return pinned.pin(folder, self.workdir / "pinned")

    def _choose_metrics(self) -> tuple[tuple[str, ...], dict[str, Extractor]]:
        """The metrics asked for, or all that can be had here; what cannot is said."""
        extractors: dict[str, Extractor] = {}
        chosen: list[str] = []
        here = VideoSet({}, self.prompts.captions, self.prompts.labels)
        real = here if self.prompts.scenes or self.config.real else None
        for name in self.config.metrics or METRICS:
            key = METRICS[name].features
            reason = "compares pairs of files, with --real and --generated" if not key else unable(name, real, here)
            if reason is None and key not in extractors:
                try:
                    extractors[key] = open_extractor(key, self.config.weights)
                except UserError as error:
                    reason = str(error).replace("name them with --", "name them with --config.")
            if reason is None:
                chosen.append(name)
            elif self.config.metrics:
                raise UserError(f"{name}: {reason}")
            else:
                self.left_out[name] = reason
        for line in [*self.config.repeated(), *sweep_report.grouped(self.left_out)]:
            print(f"note: {line}", file=sys.stderr)
        used = {METRICS[name].features for name in chosen}
        return tuple(chosen), {key: one for key, one in extractors.items() if key in used}

    def _real(self) -> VideoSet | None:
        """The real videos; what is read off them is kept in the user cache, for all sweeps."""
        store = FeatureStore(storage.writable_folder(storage.user_cache() / "features"))
        real = self._read_real(store)
        needed = {name: self.extractors[name].key for name in frechet_extractors(self.metrics)}
        return real and real.with_moments(store.folder, needed)

    def _read_real(self, store: FeatureStore) -> VideoSet | None:
        bar, task = progress_bar("real videos", 1)
        with bar:

            def progress(what: str, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            if self.config.real:
                items = list_videos(self.config.real, "real")
                return read_set("real", items, self.extractors, store, progress).videos
            if not self.prompts.scenes:
                return None
            scenes.write_shown(self.prompts, self.sampler.size, self.workdir, self.config.shown)
            return scenes.reference(self.prompts, self.sampler.size, self.extractors, store, progress)

    # One cell.

    def _row_path(self, cell: Cell) -> pathlib.Path:
        measured = [list(self.metrics), sorted(one.key for one in self.extractors.values()), self.config.real]
        options = [self.config.pool, self.config.loss_clips]
        return self.workdir / "rows" / f"{digest_of(self.sampler.key(cell), measured, options)}.json"

    def _run_cells(self, cells: list[Cell], total: int, real: VideoSet | None) -> bool:
        """Makes the rows; False where it was stopped."""
        bar, task = progress_bar("cells", total, total - len(cells))
        with bar:
            for number, cell in enumerate(cells, total - len(cells)):
                bar.update(task, completed=number, note=cell.title)
                try:
                    if not self._run_cell(cell, real):
                        return False
                except UserError as error:
                    self._fail(cell.title, error)
                bar.update(task, completed=number + 1)
                if self.config.follow_minutes:
                    self._cells()  # keeps checkpoints that training would delete before their turn
        return True

    def _run_cell(self, cell: Cell, real: VideoSet | None) -> bool:
        made = self.sampler.make(cell, self.extractors, share=self.share, should_stop=self.should_stop)
        if not made:
            return False
        path = self._row_path(cell)
        while not path.exists():
            with storage.claim(path) as mine:
                if mine and not path.exists():
                    row = self._row(cell, real, path.stem)
                    storage.write_text(path, json.dumps(row) + "\n")
                    self.store.discard_partial(self.sampler.key(cell))
                    self.on_row(row)
            if not path.exists():
                time.sleep(_POLL)
        self._write_results([cell])
        return True

    def _row(self, cell: Cell, real: VideoSet | None, key: str) -> dict:
        sampler = self.sampler
        features = {name: sampler.arrays(cell, one.key) for name, one in self.extractors.items()}
        generated = VideoSet(features, self.prompts.captions, self.prompts.labels)
        options = Options({name: one.text for name, one in self.extractors.items() if one.text}, self.config.pool)
        values: dict = {}
        for name in self.metrics:
            values |= measure(name, real, generated, options)
        values |= finite(self._shifts(cell) | self._losses(cell, options.notes))
        seconds = sum(float(array.sum()) for array in sampler.arrays(cell, SECONDS))
        digests = dict(zip(sampler.cascade.names, sampler.digests))
        digests[sampler.cascade.names[sampler.main]] = cell.trained.digest
        return {
            "key": key,
            "cell": cell.title,
            "stage": sampler.cascade.names[sampler.main],
            "step": cell.trained.step,
            "ema": cell.ema,
            "guidance": cell.guidance,
            "guidance_low": cell.low,
            "steps": cell.steps or sampler.cascade.members[sampler.main].stage.config.sampler.steps,
            "sampler": cell.changes().get("name", sampler.cascade.members[sampler.main].stage.config.sampler.name),
            "seed": cell.seed,
            "checkpoints": digests,
            "prompts": self.prompts.digest,
            "videos": len(self.prompts.captions),
            "real_videos": len(real.captions) if real else 0,
            "size": list(sampler.size),
            "samples": f"samples/{sampler.key(cell)}",
            "seconds": round(seconds, 3),
            "finished": round(time.time(), 3),
            "version": __version__,
            "metrics": values,
            "notes": options.notes,
            "config": dataclasses.asdict(self.config),
        }

    def _shifts(self, cell: Cell) -> dict:
        """Colour shift of each stage after the base against its own input."""
        found: dict = {}
        arrays = self.sampler.arrays(cell, SHIFTS)
        for column in range(arrays[0].shape[1]):
            name = f"colour_shift_{self.sampler.cascade.names[column + 1]}"
            found |= described(name, [array[0, column] for array in arrays])
        return found

    def _losses(self, cell: Cell, notes: list[str]) -> dict:
        """Validation loss of the swept stage on the first scenes, kept for all cells of a checkpoint."""
        count = min(self.config.loss_clips, len(self.prompts.scenes))
        if not count:
            return {}
        member = self.sampler.cascade.members[self.sampler.main]
        stage = member.stage.config
        if stage.network.guidance:
            notes.append(f"no validation_loss: {stage.name} is a student, which learned a teacher's steps and no loss")
            return {}
        key = digest_of("loss-2", dataclasses.asdict(stage), cell.trained.digest, cell.ema, self.prompts.digest, count)
        array = self.store.get("loss-2", key)
        if array is None:
            self.sampler.load(cell)
            size = (stage.train_frames, stage.height, stage.width, stage.fps)
            videos = [scenes.rendered(scene, size) for scene in self.prompts.scenes[:count]]
            text, mask = self.sampler.cascade.encoder(list(self.prompts.captions[:count]))
            array = noise_levels.losses(member.stage, member.params, videos, text, mask, batch=self.config.batch)
            self.store.put("loss-2", key, array)
        return noise_levels.by_level(array)

    # What is left behind.

    def _fail(self, title: str, error: UserError) -> None:
        if title not in self.failed:
            print(f"failed: {title}: {error}", file=sys.stderr, flush=True)
        self.failed[title] = error

    def _unpin(self, cells: list[Cell]) -> None:
        for trained in {cell.trained for cell in cells if cell.trained.folder}:
            if all(self._row_path(cell).exists() for cell in cells if cell.trained == trained):
                pinned.unpin(trained)

    def _write_results(self, cells: list[Cell]) -> None:
        """results.jsonl and the report, anew from all rows."""
        with storage.directory_lock(self.workdir, wait=True):
            rows = [_read_row(path) for path in (self.workdir / "rows").glob("*.json")]
            rows.sort(key=lambda row: (row["finished"], row["key"]))
            storage.write_text(self.workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            if rows:
                page = sweep_report.page(
                    self.workdir, rows, self.prompts, self.left_out, self.failed, self.config.shown
                )
                storage.write_text(self.workdir / "report.html", page)


def _read_row(path: pathlib.Path) -> dict:
    """A finished row; UserError naming the file where it is something else."""
    row = storage.read_json(path)
    numbers = isinstance(row, dict) and isinstance(row.get("finished"), float) and isinstance(row.get("metrics"), dict)
    if not numbers or row.get("key") != path.stem:
        raise UserError(f"{path} is not the row of a cell; remove it and run again")
    return row
