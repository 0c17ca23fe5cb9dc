"""A sampling job: prompts -> one mp4 per prompt and number, in a folder, with `samples.jsonl` beside them."""

import dataclasses
import json
import pathlib

import numpy as np

from imagen_video_jax import __version__, storage
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.data.clips import ClipSpec, cut_clip
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import MeshShape, make_mesh
from imagen_video_jax.stages.stage import StageConfig
from imagen_video_jax.stages.tiles import Tiling
from imagen_video_jax.training.metrics import progress_bar
from imagen_video_jax.video.files import read_video, write_video


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """What to sample. Attributes as the flags of `imagen-video sample`; what is empty is the stages' own.

    `fields` are further fields of the samplers, (name, values), one value or one per stage that runs.
    """

    prompts: tuple[str, ...]
    num: int = 1
    seed: int = 0
    batch: int = 4
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    sampler: tuple[str, ...] = ()
    fields: tuple[tuple[str, tuple], ...] = ()
    start_at: str | None = None
    stop_after: str | None = None
    input: str | None = None
    size: tuple[int, int] | None = None
    negative: str | None = None
    keep_stages: bool = False
    weights: str = ""
    vocabulary: str = ""
    mesh: MeshShape | None = None
    tile: tuple[int, int, int] = (0, 0, 0)
    overlap: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class _Job:
    prompt: str
    prompt_number: int
    number: int
    index: int  # of the sample in the whole job: with the seed it alone decides the noise

    @property
    def file(self) -> str:
        return f"{self.prompt_number:04d}-{self.number:03d}.mp4"


def sample_to_folder(cascade_path: str, request: SampleRequest, out: pathlib.Path) -> list[dict]:
    """Writes the videos and returns the rows of `samples.jsonl`: prompt, number, seed, path."""
    cascade = Cascade.load(
        cascade_path,
        weights=request.weights,
        vocabulary=request.vocabulary,
        mesh=make_mesh(request.mesh) if request.mesh else None,
        tiling=Tiling(request.tile, request.overlap),
    )
    stages = out / "stages" if request.keep_stages else None
    return sample_with(cascade, request, out, name=str(cascade_path), stage_videos=stages)


def sample_with(
    cascade: Cascade, request: SampleRequest, out: pathlib.Path, *, name: str, stage_videos: pathlib.Path | None = None
) -> list[dict]:
    """The same with a loaded cascade.

    Args: name goes into the files' provenance; stage_videos is where every stage's video goes, if anywhere.
    """
    start = cascade.position(request.start_at) if request.start_at else 0
    stop = cascade.position(request.stop_after) + 1 if request.stop_after else len(cascade.members)
    if stop <= start:
        raise UserError(f"--stop-after {request.stop_after} comes before --start-at {request.start_at}")
    samplers = _samplers(request, start, stop)
    _check_negative(request, cascade, samplers)
    video = _input_video(request, cascade.members[start].stage.config)
    out = storage.writable_folder(out)
    jobs = [
        _Job(prompt, i, number, i * request.num + number)
        for i, prompt in enumerate(request.prompts)
        for number in range(request.num)
    ]
    size = min(request.batch, len(jobs))
    bar, task = progress_bar("sampling", len(jobs))
    rows = []
    with bar:
        for begin in range(0, len(jobs), size):
            chunk = jobs[begin : begin + size]
            # Full chunks only: a shorter last one would compile every stage again.
            padded = [job.prompt for job in chunk] + [chunk[-1].prompt] * (size - len(chunk))
            kept = {}
            last = cascade.sample(
                padded,
                seed=request.seed,
                first=begin,
                start=start,
                stop=stop,
                video_BTHWC=None if video is None else np.repeat(video[None], size, axis=0),
                size=request.size,
                negative=request.negative,
                samplers=samplers,
                on_stage=kept.__setitem__ if stage_videos else None,
            )
            fps = {index: cascade.members[index].stage.config.fps for index in range(start, stop)}
            for row, job in enumerate(chunk):
                meta = _provenance(job, request.seed, name)
                for index, videos in kept.items():
                    folder = stage_videos / f"{index + 1}_{cascade.names[index]}"
                    folder.mkdir(parents=True, exist_ok=True)
                    write_video(folder / job.file, videos[row], fps=fps[index], metadata=meta)
                write_video(out / job.file, last[row], fps=fps[stop - 1], metadata=meta)
                rows.append({"prompt": job.prompt, "number": job.number, "seed": request.seed, "path": job.file})
                bar.update(task, advance=1)
    storage.write_text(out / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _provenance(job: _Job, seed: int, cascade: str) -> dict[str, str]:
    return {
        "made_by": f"imagen_video_jax {__version__}",
        "cascade": cascade,
        "prompt": job.prompt,
        "seed": str(seed),
        "number": str(job.index),
    }


def _check_negative(request: SampleRequest, cascade: Cascade, samplers: dict[int, dict]) -> None:
    weights = [
        changes.get("guidance", cascade.members[i].stage.config.sampler.guidance) for i, changes in samplers.items()
    ]
    if request.negative and all(cascade.members[i].stage.config.network.guidance for i in samplers):
        raise UserError(
            "--negative needs a stage that guides by two calls; students have learned guidance by null text"
        )
    if request.negative and not any(weights):
        raise UserError("--negative acts through guidance, which is 0 in every stage that runs; raise --guidance")


_FLAGS = {"steps": "steps", "guidance": "guidance", "name": "sampler"}


def _samplers(request: SampleRequest, start: int, stop: int) -> dict[int, dict]:
    """Stage index -> changed sampler fields."""
    changes: dict[int, dict] = {index: {} for index in range(start, stop)}
    flags = (("steps", request.steps), ("guidance", request.guidance), ("name", request.sampler), *request.fields)
    for field, values in flags:
        if len(values) not in (0, 1, stop - start):
            flag = _FLAGS.get(field, f"set {field}")
            raise UserError(f"--{flag} takes one value or one per stage ({stop - start}), got {len(values)}")
        for offset, index in enumerate(range(start, stop)):
            if values:
                value = values[offset if len(values) > 1 else 0]
                if field == "steps" and value < 1:
                    raise UserError(f"--steps must be at least 1, got {value}")
                if field == "guidance" and not 0 <= value < 1000:
                    raise UserError(f"--guidance must be at least 0 (0 is off), got {value:g}")
                changes[index][field] = value
    return changes


def _input_video(request: SampleRequest, stage: StageConfig) -> np.ndarray | None:
    """The file that enters the first stage, cut to what the stage was trained on (frames, size, rate)."""
    if stage.kind == "base":
        if request.input:
            raise UserError("--input needs --start-at a super-resolution stage")
        return None
    if not request.input:
        raise UserError(f"--start-at {request.start_at} needs --input VIDEO")
    frames, height, width, fps = stage.input_size
    spec = ClipSpec(frames, height, width, fps)
    return cut_clip(read_video(request.input), spec, np.random.default_rng(0))
