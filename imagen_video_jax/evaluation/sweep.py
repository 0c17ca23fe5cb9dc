"""`SweepConfig` and its cells: which checkpoint, sampled how. A cell is known by what its samples depend on."""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Sequence

from imagen_video_jax.data.motion_shapes import SPLITS
from imagen_video_jax.diffusion.samplers import SAMPLERS
from imagen_video_jax.evaluation.networks import Weights
from imagen_video_jax.partitioning import MeshShape

PARAPHRASE = "paraphrase"
PROMPT_SPLITS = (*SPLITS, PARAPHRASE)
CHECKPOINTS = ("cascade", "newest", "all")
OWN = "own"
CONSTANT = -1.0
_SWEPT = ("checkpoints", "ema", "guidance", "guidance_low", "steps", "samplers", "seeds")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A sweep; experiments/evaluate.py explains the fields.

    Attributes:
      vary: name, number or kind of the stage that is swept, or "all".
      checkpoints: "cascade", "newest", "all" or step numbers, of the swept stage's training folder.
      follow_minutes: with "all": wait so long for another checkpoint before ending.
      guidance_low: with each weight, the low one that it oscillates with; -1 for a constant weight.
      steps, samplers: 0 and "own" are the stage's own.
      prompts: file with a prompt a line; empty for motion_shapes captions.
      real: folder of real videos; empty for videos of the same scenes.
      mesh: over the devices of each process; processes share the work by chunks of `batch` videos.
      tile, overlap: super-resolution in tiles of so many frames, rows and columns (0: whole).
      metrics: names, or empty for all that can be had.
      loss_clips: scenes of the validation loss by noise level; 0 for none.
    """

    cascade: str
    vary: str = "base"
    checkpoints: tuple[str, ...] = ("cascade",)
    follow_minutes: float = 0.0
    ema: tuple[bool, ...] = (True,)
    guidance: tuple[float, ...] = (0.0,)
    guidance_low: tuple[float, ...] = (CONSTANT,)
    steps: tuple[int, ...] = (0,)
    samplers: tuple[str, ...] = (OWN,)
    seeds: tuple[int, ...] = (0,)
    stop_after: str = ""
    prompts: str = ""
    split: str = "validation"
    videos: int = 64
    batch: int = 8
    mesh: MeshShape = MeshShape(data=1)
    tile: tuple[int, int, int] = (0, 0, 0)
    overlap: tuple[int, int, int] = (0, 0, 0)
    metrics: tuple[str, ...] = ()
    real: str = ""
    frames: int = 16
    pool: int = 100
    loss_clips: int = 0
    i3d: str = ""
    inception: str = ""
    clip: str = ""
    shown: int = 4
    wandb: str = ""

    def __post_init__(self):
        if not self.cascade:
            raise ValueError("cascade must name a cascade.json: --config.cascade=FILE")
        for field in _SWEPT:
            if not getattr(self, field):
                raise ValueError(f"{field} must hold at least one value")
        for name in self.checkpoints:
            if name not in CHECKPOINTS and not name.isdecimal():
                raise ValueError(f"checkpoints are {', '.join(CHECKPOINTS)} or step numbers, got {name!r}")
        for field, least in (("videos", 1), ("batch", 1), ("frames", 2), ("pool", 2), ("loss_clips", 0), ("shown", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if not all(low == CONSTANT or 0.0 <= low < math.inf for low in self.guidance_low):
            raise ValueError(
                f"guidance_low must be at least 0, or {CONSTANT:g} for constant weights, got {self.guidance_low}"
            )
        for field, values in (("guidance", self.guidance), ("follow_minutes", (self.follow_minutes,))):
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{field} must be finite, got {getattr(self, field)}")
        if self.follow_minutes < 0:
            raise ValueError(f"follow_minutes must be at least 0, got {self.follow_minutes}")
        for field, values in (("guidance", self.guidance), ("steps", self.steps), ("seeds", self.seeds)):
            if min(values) < 0:
                raise ValueError(f"{field} must be at least 0, got {min(values)}")
        if max(self.seeds) >= 2**32:
            raise ValueError(f"seeds must be in [0, 2^32), got {max(self.seeds)}")
        for name in self.samplers:
            if name not in (OWN, *SAMPLERS):
                raise ValueError(f"samplers are {OWN}, {', '.join(SAMPLERS)}, got {name!r}")
        if self.split not in PROMPT_SPLITS:
            raise ValueError(f"split must be one of {', '.join(PROMPT_SPLITS)}, got {self.split!r}")

    def repeated(self) -> list[str]:
        """What stands more than once in a swept field, a line each."""
        lines = []
        for field in _SWEPT:
            values = getattr(self, field)
            for value in dict.fromkeys(values):
                if values.count(value) > 1:
                    lines.append(f"{field} holds {value} twice or more: its cells are made once")
        return lines

    @property
    def weights(self) -> Weights:
        return Weights(i3d=self.i3d, inception=self.inception, clip=self.clip, frames=self.frames)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of the swept stage.

    Attributes:
      folder: where it lies; "" for the one that cascade.json names.
      step: of its training.
      digest: of its manifest, which holds the hash of every file.
    """

    folder: str
    step: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the sweep."""

    trained: Trained
    ema: bool
    guidance: float
    guidance_low: float
    steps: int
    sampler: str
    seed: int

    def changes(self) -> dict:
        """Fields of the swept stage's sampler to change."""
        found: dict = {"guidance": self.guidance, "guidance_low": self.low}
        if self.steps:
            found["steps"] = self.steps
        if self.sampler != OWN:
            found["name"] = self.sampler
        return found

    @property
    def low(self) -> float | None:
        return None if self.guidance_low == CONSTANT else self.guidance_low

    @property
    def title(self) -> str:
        """What distinguishes it, for people."""
        own = [
            f"step {self.trained.step}",
            f"w {self.guidance:g}" + ("" if self.low is None else f" and {self.low:g} in turn"),
        ]
        own += [f"{self.steps} calls"] if self.steps else []
        own += [self.sampler] if self.sampler != OWN else []
        own += [] if self.ema else ["without EMA"]
        return ", ".join([*own, f"seed {self.seed}"])


def cells_of(config: SweepConfig, checkpoints: Sequence[Trained]) -> list[Cell]:
    """Every combination once, whatever stands twice in the config."""
    product = itertools.product(
        checkpoints, config.ema, config.guidance, config.guidance_low, config.steps, config.samplers, config.seeds
    )  # fmt: skip
    return list(dict.fromkeys(Cell(*values) for values in product))


def digest_of(*values) -> str:
    """A short hash of JSON-serialisable values: names of folders and rows."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def committed(folder: pathlib.Path) -> str:
    """The digest of a checkpoint's manifest; FileNotFoundError where it is gone."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
