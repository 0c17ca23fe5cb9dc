"""The videos of a cell and their features: made in chunks, each by one of however many processes, never twice.

    WORKDIR/samples/CELL/000000.mp4 ...     every sample, to look at
    WORKDIR/features/EXTRACTOR/CELL-000000.npy

Features are read off the pixels as they were sampled: mp4 halves the colour resolution, which small videos cannot
spare. A sample is done when its file and all its features are there, so adding a metric samples again (alike).
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from imagen_video_jax import checkpoint, storage
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import placed
from imagen_video_jax.errors import DIVERGED, NO_CHECKPOINT, UserError
from imagen_video_jax.evaluation import steadiness
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.evaluation.scenes import Prompts
from imagen_video_jax.evaluation.sweep import Cell, SweepConfig, Trained, digest_of
from imagen_video_jax.partitioning import MeshShape, make_mesh
from imagen_video_jax.stages.tiles import Tiling
from imagen_video_jax.video.files import write_video

SECONDS, SHIFTS = "seconds-1", "colour_shift-1"  # kept like features: time per sample, colour shift per stage
_WAIT = 0.5


def _mesh(shape: MeshShape) -> jax.sharding.Mesh | None:
    """Over this process's own devices: processes make different videos."""
    devices = jax.local_devices()
    count = math.prod(shape.sizes(len(devices)))
    return make_mesh(shape, devices[:count]) if count > 1 else None


class CellSampler:
    """One loaded cascade, whose swept stage is given the weights of one cell after the other."""

    def __init__(self, config: SweepConfig, prompts: Prompts, workdir: pathlib.Path, store: FeatureStore):
        self.config, self.prompts, self.workdir, self.store = config, prompts, workdir, store
        self.root = pathlib.Path(config.cascade)
        # A running training has long deleted what cascade.json names; other checkpoints of it can be swept.
        gone = "cascade" not in config.checkpoints
        tiling = Tiling(config.tile, config.overlap)
        self.cascade = Cascade.load(self.root, mesh=_mesh(config.mesh), tiling=tiling, allow_gone=gone)
        self.own = [member.params for member in self.cascade.members]
        members = len(self.own)
        self.stop = self.cascade.position(config.stop_after) + 1 if config.stop_after else members
        everywhere = config.vary == "all"
        self.swept = list(range(self.stop)) if everywhere else [self.cascade.position(config.vary)]
        if self.swept[0] >= self.stop:
            raise UserError(f"--config.vary={config.vary} comes after --config.stop_after={config.stop_after}")
        if everywhere and set(config.checkpoints) != {"cascade"}:
            raise UserError(
                "--config.vary=all sweeps no checkpoints; name one stage, or leave --config.checkpoints out"
            )
        own = self.root if self.root.is_dir() else self.root.parent
        self.folders = [own / member.checkpoint for member in self.cascade.members[: self.stop]]
        for index, folder in enumerate(self.folders):
            if self.own[index] is None and index != self.main:
                raise UserError(f"{self.root} names checkpoint {folder}, which does not exist; make the cascade anew")
        self.digests = [member.sha256 for member in self.cascade.members[: self.stop]]
        bundled = any(folder.is_file() for folder in self.folders)
        if bundled and (set(config.checkpoints) != {"cascade"} or not all(config.ema)):
            raise UserError(
                f"{self.root} is a bundle, which holds one checkpoint of EMA weights: leave --config.checkpoints and "
                "--config.ema out"
            )
        self._loaded: tuple | None = None

    @property
    def size(self) -> tuple[int, int, int, float]:
        return self.cascade.members[self.stop - 1].stage.config.output_size

    @property
    def main(self) -> int:
        """Index of the stage whose checkpoints and losses are looked at."""
        return self.swept[0]

    def own_checkpoint(self) -> Trained:
        return Trained("", self.cascade.members[self.main].step, self.digests[self.main])

    def key(self, cell: Cell) -> str:
        """Names what the samples of a cell depend on."""
        digests = list(self.digests)
        digests[self.main] = cell.trained.digest
        how = [cell.ema, cell.guidance, cell.low, cell.steps, cell.sampler, cell.seed, self.swept, self.stop]
        if any(self.config.tile):
            how.append([self.config.tile, self.config.overlap])
        stages = [dataclasses.asdict(member.stage.config) for member in self.cascade.members[: self.stop]]
        return digest_of("sample-3", digests, stages, how, self.prompts.digest)

    # Weights.

    def load(self, cell: Cell) -> None:
        """Puts the cell's weights into the cascade; UserError where the checkpoint is gone, damaged or holds NaN."""
        wanted = (cell.trained, cell.ema)
        if self._loaded == wanted:
            return
        self._loaded = None
        for index in self.swept:
            params = self.own[index]
            if cell.trained.folder or not cell.ema:
                folder = pathlib.Path(cell.trained.folder) if cell.trained.folder else self.folders[index]
                params = self._restored(folder, index, "ema" if cell.ema else "params")
            self.cascade.members[index].params = params
            if not all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(params)):
                raise UserError(f"the weights of {self.cascade.names[index]} hold NaN or infinity", DIVERGED)
        self._loaded = wanted

    def _restored(self, folder: pathlib.Path, index: int, tree: str):
        try:
            checkpoint.verify(folder)
            return checkpoint.restore(folder, tree, placed(self.cascade.members[index].stage, self.cascade.mesh))
        except (OSError, ValueError, KeyError, UserError) as error:
            if not folder.is_dir():
                raise UserError(f"checkpoint {folder} was deleted", NO_CHECKPOINT) from None
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"checkpoint {folder} cannot be read: {reason}", NO_CHECKPOINT) from None

    # Samples.

    def make(
        self,
        cell: Cell,
        extractors: dict[str, Extractor],
        *,
        share: tuple[int, int] = (0, 1),
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> bool:
        """Makes what is missing of a cell, together with the other processes at it; False where it was stopped."""
        folder = self.workdir / "samples" / self.key(cell)
        folder.mkdir(parents=True, exist_ok=True)
        chunks = range(0, len(self.prompts.captions), self.config.batch)
        first = len(chunks) * share[0] // share[1]  # each process begins elsewhere
        pending = [*chunks[first:], *chunks[:first]]
        while pending:
            rest = []
            for begin in pending:
                if should_stop():
                    return False
                if self._done(cell, begin, extractors):
                    continue
                with storage.claim(folder / f"chunk{begin:06d}") as mine:
                    if not mine:
                        rest.append(begin)
                    elif not self._done(cell, begin, extractors):
                        self._make_chunk(cell, begin, extractors, folder)
                progress(len(chunks) - len(pending) + 1)
            if len(rest) == len(pending):
                time.sleep(_WAIT)
            pending = rest
        return True

    def _done(self, cell: Cell, begin: int, extractors: dict[str, Extractor]) -> bool:
        folder, key = self.workdir / "samples" / self.key(cell), self.key(cell)
        names = [SECONDS, SHIFTS, *(one.key for one in extractors.values())]
        return all(
            (folder / f"{i:06d}.mp4").is_file() and all(self.store.has(name, f"{key}-{i:06d}") for name in names)
            for i in self._numbers(begin)
        )

    def _numbers(self, begin: int) -> range:
        return range(begin, min(begin + self.config.batch, len(self.prompts.captions)))

    def _make_chunk(self, cell: Cell, begin: int, extractors: dict[str, Extractor], folder: pathlib.Path) -> None:
        self.load(cell)
        numbers, size = self._numbers(begin), min(self.config.batch, len(self.prompts.captions))
        captions = [self.prompts.captions[i] for i in numbers]
        stages: dict[int, np.ndarray] = {}
        began = time.monotonic()
        videos = self.cascade.sample(
            captions + captions[-1:] * (size - len(captions)),  # one shape, one compiled program
            seed=cell.seed,
            first=begin,
            stop=self.stop,
            samplers={index: cell.changes() for index in self.swept},
            on_stage=stages.__setitem__,
        )
        seconds = (time.monotonic() - began) / len(captions)
        fps, key = self.size[3], self.key(cell)
        for row, number in enumerate(numbers):
            name, what = f"{key}-{number:06d}", f"sample {number} of {cell.title}"
            for extractor in extractors.values():
                self.store.put(extractor.key, name, extractor(videos[row], what))
            self.store.put(SHIFTS, name, self._shifts({index: video[row] for index, video in stages.items()}))
            self.store.put(SECONDS, name, np.array([[seconds]]))
            tags = {"prompt": self.prompts.captions[number], "seed": str(cell.seed), "cell": cell.title}
            file = folder / f"{number:06d}.mp4"
            for part in storage.left_behind(file):
                part.unlink(missing_ok=True)  # of a killed process: the chunk is ours
            write_video(file, videos[row], fps=fps, metadata=tags)

    def _shifts(self, stages: dict[int, np.ndarray]) -> np.ndarray:
        """Colour shift of every stage after the first against its own input, [1, stages - 1]."""
        values = [steadiness.colour_shift(stages[i], stages[i - 1]) for i in range(1, self.stop)]
        return np.array([values], np.float64).reshape(1, -1)

    def arrays(self, cell: Cell, name: str) -> list[np.ndarray]:
        """What the store holds of all samples of a cell."""
        keys = [f"{self.key(cell)}-{i:06d}" for i in range(len(self.prompts.captions))]
        found = [self.store.get(name, key) for key in keys]
        for key, array in zip(keys, found):
            if array is None:
                raise UserError(f"{self.store.folder / name / key}.npy is damaged; remove it and run again")
        return found
