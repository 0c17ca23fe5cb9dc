"""A sampling job: prompts -> one mp4 per prompt and number, in a folder, with `samples.jsonl` beside them.

Every file appears whole or not at all, and a job that was killed goes on: what is there is not made again, as long as
`.job.json` says that it is of the same request and the same weights.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable

import jax
import numpy as np

from imagen_video_jax import __version__, storage
from imagen_video_jax.cascade import Cascade, changed_sampler
from imagen_video_jax.errors import UserError
from imagen_video_jax.given_frames import ending, first_frame, input_video
from imagen_video_jax.partitioning import MeshShape, batch_divisor, make_mesh
from imagen_video_jax.stages.tiles import Tiling
from imagen_video_jax.training.metrics import progress_bar
from imagen_video_jax.video.files import write_video

_VIDEO = r"\d{4,}-\d{3,}\.mp4"  # of any job
_PARTIAL = r"\..*\.tmp-.*"


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """What to sample. Attributes as the flags of `imagen-video sample`; what is empty is the stages' own.

    `fields` are further fields of the samplers, (name, values), one value or one per stage that runs.
    """

    prompts: tuple[str, ...]
    num: int = 1
    seed: int = 0
    seeds: tuple[int, ...] = ()
    batch: int = 4
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    sampler: tuple[str, ...] = ()
    fields: tuple[tuple[str, tuple], ...] = ()
    start_at: str | None = None
    stop_after: str | None = None
    input: str | None = None
    first_frame: str | None = None
    extend: str | None = None
    extend_from: float = 0.0
    reconstruction: float = 9.0
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
    number: int
    seed: int
    index: int  # with the seed it alone decides the noise
    file: str

    def row(self) -> dict:
        return {"prompt": self.prompt, "number": self.number, "seed": self.seed, "path": self.file}


def sample_to_folder(
    cascade_path: str, request: SampleRequest, out: pathlib.Path, *, note: Callable[[], None] = lambda: None
) -> list[dict]:
    """Writes the videos and returns the rows of `samples.jsonl`: prompt, number, seed, path.

    Args: note is called when the request was found to be a good one, before the work begins.
    """
    cascade = Cascade.load(
        cascade_path,
        weights=request.weights,
        vocabulary=request.vocabulary,
        mesh=_mesh(request.mesh),
        tiling=Tiling(request.tile, request.overlap),
    )
    stages = out / "stages" if request.keep_stages else None
    return sample_with(cascade, request, out, name=str(cascade_path), stage_videos=stages, note=note)


def _mesh(shape: MeshShape | None):
    """The devices as asked for; by default each takes its part of a batch, where there are several."""
    if shape is not None:
        return make_mesh(shape)
    return make_mesh() if jax.process_count() == 1 and jax.device_count() > 1 else None


def sample_with(
    cascade: Cascade,
    request: SampleRequest,
    out: pathlib.Path,
    *,
    name: str,
    stage_videos: pathlib.Path | None = None,
    note: Callable[[], None] = lambda: None,
) -> list[dict]:
    """The same with a loaded cascade.

    Args: name goes into the files' provenance; stage_videos is where every stage's video goes, if anywhere.
    """
    run = _Run(cascade, request, name, stage_videos)
    out = storage.writable_folder(out)
    with storage.directory_lock(out):
        goes_on = run.goes_on(out)
        jobs, size = run.jobs, run.chunk_size()
        chunks = [jobs[begin : begin + size] for begin in range(0, len(jobs), size)]
        # Whole chunks: what a sample comes out as may depend, in its last bits, on the samples beside it.
        ready = [goes_on and all(run.is_done(out, job) for job in chunk) for chunk in chunks]
        missing = [chunk for chunk, there in zip(chunks, ready) if not there]
        if missing:
            run.say_what_is_cut()  # opens the encoder, and finds it to be the right one, before another job's videos go
        note()
        if goes_on:
            run.remove(out, _PARTIAL)
        else:
            run.start_anew(out)
        done = [job for chunk, there in zip(chunks, ready) if there for job in chunk]
        storage.write_text(out / "samples.jsonl", _lines(done))
        with _Progress(cascade, run.start, run.stop, len(jobs), len(done)) as advance:
            for chunk in missing:
                run.make(out, chunk, size, advance)
                with open(out / "samples.jsonl", "a") as file:
                    file.write(_lines(chunk))
        storage.write_text(out / "samples.jsonl", _lines(jobs))
    return [job.row() for job in jobs]


def _lines(jobs: list[_Job]) -> str:
    return "".join(json.dumps(job.row()) + "\n" for job in jobs)


class _Run:
    """A request that was checked against a cascade, before anything is written."""

    def __init__(self, cascade: Cascade, request: SampleRequest, name: str, stage_videos: pathlib.Path | None):
        self.cascade, self.request, self.name, self.stage_videos = cascade, request, name, stage_videos
        start = cascade.position(request.start_at) if request.start_at else 0
        stop = cascade.position(request.stop_after) + 1 if request.stop_after else len(cascade.members)
        if stop <= start:
            raise UserError(f"--stop-after {request.stop_after} comes before --start-at {request.start_at}")
        self.start, self.stop = start, stop
        self.samplers = _samplers(request, start, stop)
        _check_negative(request, cascade, self.samplers)
        for index, changes in self.samplers.items():
            changed_sampler(cascade.members[index].stage.config, changes)
        self.video = input_video(request.input, request.start_at, cascade.members[start].stage.config)
        self.before, self.known = self._given()
        if request.size:
            cascade.base_size(request.size, start, stop)
        self.jobs = _jobs(request)

    def _given(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(the video to go on with, the first frames of the new ones), at the last stage's size and rate."""
        request, last = self.request, self.cascade.members[self.stop - 1].stage.config
        if request.first_frame and request.extend:
            raise UserError("give either --first-frame IMAGE or --extend VIDEO")
        if not 0.0 <= request.reconstruction < 1e4:
            raise UserError(f"--reconstruction must be at least 0 (VDM used 9 and 50), got {request.reconstruction:g}")
        size = request.size or (last.height, last.width)
        if request.first_frame:
            return None, first_frame(request.first_frame, size)
        if not request.extend:
            return None, None
        # Known frames of the first stage that runs, so that every stage knows the same span.
        first = self.cascade.members[self.start].stage.config
        longest = (first.frames - 1) / first.fps
        seconds = request.extend_from or first.frames / first.fps / 2
        count = round(seconds * first.fps) if math.isfinite(seconds) else 0
        if not 1 <= count < first.frames:
            raise UserError(
                f"--extend-from must be from {1 / first.fps:.2f} to {longest:.2f} seconds, got {request.extend_from:g}"
            )
        return ending(request.extend, size, fps=last.fps, count=count * round(last.fps / first.fps))

    def chunk_size(self) -> int:
        """Videos made at once: full chunks only, as a shorter last one would compile every stage again."""
        size = min(self.request.batch, len(self.jobs))
        devices = batch_divisor(self.cascade.mesh) if self.cascade.mesh is not None else 1
        return -(-size // devices) * devices

    def say_what_is_cut(self) -> None:
        """Says on stderr how many prompts are longer than the encoder and the stages read, and what one of them loses.

        UserError where the encoder cannot be opened.
        """
        encoder, negative = self.cascade.encoder, self.request.negative
        prompts = [*self.request.prompts, *([negative] if negative else ())]
        limit = min(self.cascade.members[i].stage.config.text_length for i in range(self.start, self.stop))
        # A stage that reads fewer tokens than the encoder gives loses the closing one, which is no text, before others.
        lost = encoder.tokenize(prompts, min(limit + 1, encoder.max_length)).lost
        if lost:
            prompt, rest = lost[0]
            print(
                f"note: {len(lost)} of {len(prompts)} prompts are longer than the "
                f"{min(limit, encoder.max_length)} tokens that are read; {prompt[:40]!r}... loses {len(rest)} of "
                f"{len(prompt)} characters, from {rest[:40]!r} on",
                file=sys.stderr,
            )

    # What is there.

    def goes_on(self, out: pathlib.Path) -> bool:
        """Whether the folder holds files of this very job."""
        file = out / ".job.json"
        return file.exists() and storage.read_json(file) == self._job()

    def start_anew(self, out: pathlib.Path) -> None:
        """Removes what lies in the way of this job, and whatever another one left: its videos, those of its stages too,
        and what it was writing when it was killed."""
        if (out / ".job.json").exists():
            self._say_what_goes(out)
            self.remove(out, f"{_VIDEO}|{_PARTIAL}")
        for job in self.jobs:
            (out / job.file).unlink(missing_ok=True)
        (out / "samples.jsonl").unlink(missing_ok=True)
        storage.write_json(out / ".job.json", self._job())

    def _say_what_goes(self, out: pathlib.Path) -> None:
        videos = sum(1 for file in out.iterdir() if re.fullmatch(_VIDEO, file.name))
        if videos:
            print(f"note: {videos} videos of another request in {out} are replaced", file=sys.stderr, flush=True)

    def remove(self, out: pathlib.Path, names: str) -> None:
        """Removes the files of a job's folder, and of its stages' folders, whose whole names match."""
        stages = {out / "stages", self.stage_videos or out / "stages"}
        for file in [*out.glob("*"), *(file for folder in stages for file in folder.glob("*/*"))]:
            if re.fullmatch(names, file.name) and file.is_file():
                file.unlink()

    def _job(self) -> dict:
        return {"sha256": self._identity()}

    def _identity(self) -> str:
        """Which videos this job makes: the request, the files it names, and the stages."""
        fields = dataclasses.asdict(self.request)
        for field in ("input", "first_frame", "extend"):
            if fields[field]:
                fields[field] = storage.sha256_file(fields[field])
        for field in ("keep_stages", "weights", "vocabulary", "mesh"):
            fields.pop(field)
        stages = [
            (member.checkpoint, member.sha256, dataclasses.asdict(member.stage.config))
            for member in self.cascade.members[self.start : self.stop]
        ]
        return hashlib.sha256(json.dumps([fields, stages, __version__], sort_keys=True).encode()).hexdigest()

    def is_done(self, out: pathlib.Path, job: _Job) -> bool:
        folders = [self._stage_folder(i) for i in range(self.start, self.stop)] if self.stage_videos else []
        return all((folder / job.file).exists() for folder in [out, *folders])

    # What is made.

    def make(self, out: pathlib.Path, chunk: list[_Job], size: int, advance: Callable[[int, int], None]) -> None:
        """Samples a chunk, padded to `size`, and writes its files."""
        padded = chunk + [chunk[-1]] * (size - len(chunk))
        kept = {}

        def on_stage(index: int, videos: np.ndarray) -> None:
            if self.stage_videos:
                kept[index] = videos
            advance(index, len(chunk))

        def repeated(frames_THWC):
            return None if frames_THWC is None else np.repeat(frames_THWC[None], size, axis=0)

        last = self.cascade.sample(
            [job.prompt for job in padded],
            seed=[job.seed for job in padded],
            numbers=[job.index for job in padded],
            start=self.start,
            stop=self.stop,
            video_BTHWC=repeated(self.video),
            size=self.request.size,
            negative=self.request.negative,
            samplers=self.samplers,
            known_BTHWC=repeated(self.known),
            reconstruction=self.request.reconstruction,
            on_stage=on_stage,
        )
        fps = {index: self.cascade.members[index].stage.config.fps for index in range(self.start, self.stop)}
        for row, job in enumerate(chunk):
            meta = self._provenance(job)
            for index, videos in kept.items():
                self._stage_folder(index).mkdir(parents=True, exist_ok=True)
                write_video(self._stage_folder(index) / job.file, videos[row], fps=fps[index], metadata=meta)
            video = last[row]
            if self.before is not None:
                video = np.concatenate([self.before, video[len(self.known) :]])
            write_video(out / job.file, video, fps=fps[self.stop - 1], metadata=meta)

    def _stage_folder(self, index: int) -> pathlib.Path:
        return self.stage_videos / f"{index + 1}_{self.cascade.names[index]}"

    def _provenance(self, job: _Job) -> dict[str, str]:
        return {
            "made_by": f"imagen_video_jax {__version__}",
            "cascade": self.name,
            "prompt": job.prompt,
            "seed": str(job.seed),
            "number": str(job.index),
        }


class _Progress:
    """A bar for each stage, with its remaining time: a context that gives a function of (stage, videos made)."""

    def __init__(self, cascade: Cascade, start: int, stop: int, total: int, done: int):
        self._bar, first = progress_bar(f"{start + 1} {cascade.names[start]}", total, done)
        self._tasks = {start: first}
        for index in range(start + 1, stop):
            name = f"{index + 1} {cascade.names[index]}"
            self._tasks[index] = self._bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda index, count: self._bar.update(self._tasks[index], advance=count)

    def __exit__(self, *_) -> None:
        self._bar.stop()


def _jobs(request: SampleRequest) -> list[_Job]:
    """One job per prompt and number. With a seed per prompt the prompt's place in the list decides nothing."""
    if request.seeds and len(request.seeds) != len(request.prompts):
        raise UserError(f"--seeds holds {len(request.seeds)} seeds for {len(request.prompts)} prompts; one each")
    # Names sort by prompt, then number, however many there are.
    digits = max(4, len(str(len(request.prompts) - 1))), max(3, len(str(request.num - 1)))
    jobs = []
    for place, prompt in enumerate(request.prompts):
        for number in range(request.num):
            seed, index = request.seed, place * request.num + number
            if request.seeds:
                seed, index = request.seeds[place], number
            file = f"{place:0{digits[0]}d}-{number:0{digits[1]}d}.mp4"
            jobs.append(_Job(prompt, number, seed, index, file))
    return jobs


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
