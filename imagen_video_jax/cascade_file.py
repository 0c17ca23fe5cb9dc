"""`cascade.json`: which checkpoint is which stage. Written for trained stages that fit together, read with its weights.

Needs nothing of training.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax

from imagen_video_jax import bundle, checkpoint, partitioning, storage
from imagen_video_jax.diffusion.distillation import StudentConfig
from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.diffusion.schedules import Schedule
from imagen_video_jax.errors import NO_CHECKPOINT, UserError
from imagen_video_jax.models.video_unet import VideoUNetConfig
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.stages.tiles import WHOLE, Tiling
from imagen_video_jax.text.embed import ENCODERS
from imagen_video_jax.text.embedding_cache import check_same

VERSION = 1


@dataclasses.dataclass
class Member:
    """One stage of a cascade: its functions and its (EMA) weights."""

    stage: Stage
    params: dict | None  # None where the checkpoint is gone, if that was allowed
    checkpoint: str
    sha256: str = ""  # which weights these are: of the checkpoint's manifest, or of the bundle's files
    step: int = 0  # of its training


def join(workdirs: Sequence[str], out: str | os.PathLike, *, students: Sequence[int] = ()) -> dict:
    """Writes `cascade.json` for trained stages, in order; refuses stages that do not fit together.

    Args: students are the positions of the workdirs that distillation made; their last round is taken.
    """
    entries, previous, encoder = [], None, None
    out = storage.local_path(out)
    for position, workdir in enumerate(workdirs):
        if not pathlib.Path(workdir).is_dir():
            raise UserError(f"no such stage folder: {workdir}")
        path = last_checkpoint(pathlib.Path(workdir), student=position in students)
        meta = checkpoint.read_meta(path)
        values = meta["config"]["stage"]
        check_same(meta.get("encoder"), workdir, encoder, "the stage before")
        encoder = meta.get("encoder", encoder)
        stage = stage_config(values)
        check_fit(previous, stage)
        relative = os.path.relpath(path.absolute(), out.absolute().parent)
        role = "student" if stage.network.guidance else "teacher"
        entries.append(
            {"name": stage.name, "checkpoint": relative, "step": int(path.name), "stage": values, "role": role}
        )
        previous = stage
    storage.writable_folder(out.parent)
    cascade = {"version": VERSION, "stages": entries, "encoder": encoder}
    storage.write_json(out, cascade)
    return cascade


def last_checkpoint(workdir: pathlib.Path, *, student: bool) -> pathlib.Path:
    """The newest good step of a training folder, or that of the last round of a distillation."""
    file = workdir / "rounds.jsonl"
    distilled = file.exists() or (workdir / "distill.json").exists()
    if student and not distilled:
        raise UserError(f"{workdir} holds no rounds.jsonl of imagen-video distill; leave --student out after it")
    if not student:
        if distilled:
            raise UserError(f"{workdir} is a folder of imagen-video distill; write --student after it")
        return checkpoint.require_newest(workdir)
    rows = read_rounds(workdir)
    if not rows:
        raise UserError(f"{file} has no round that is done; run imagen-video distill first", NO_CHECKPOINT)
    return checkpoint.verify(workdir / rows[-1]["checkpoint"])


def read_rounds(workdir: pathlib.Path) -> list[dict]:
    """The rows of the rounds of a distillation that are done; UserError (exit code 5) where the file is damaged."""
    file = workdir / "rounds.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        rows = [None]
    if not all(isinstance(row, dict) and isinstance(row.get("checkpoint"), str) for row in rows):
        # The rounds themselves are not lost: one whose updates are done is not trained again.
        fix = "remove it and run imagen-video distill again, which writes it anew from the rounds"
        raise UserError(f"{file} is damaged: not a row for each round; {fix}", NO_CHECKPOINT)
    return rows


def check_fit(previous: StageConfig | None, stage: StageConfig) -> None:
    """UserError unless `stage` can take what `previous` gives."""
    if previous is None:
        if stage.kind != "base":
            raise UserError(f"a cascade starts with a base stage, {stage.name} is {stage.kind}")
        return
    if stage.kind == "base":
        raise UserError(f"{stage.name} is a base stage and cannot follow {previous.name}")
    given, wanted = previous.output_size, stage.input_size
    if given != wanted:
        raise UserError(f"{stage.name} takes {describe(wanted)}, but {previous.name} gives {describe(given)}")
    if previous.network.text_width != stage.network.text_width:
        raise UserError(
            f"{stage.name} reads text {stage.network.text_width} wide, {previous.name} {previous.network.text_width}: "
            "they were trained with different text encoders"
        )


def describe(size: tuple[int, int, int, float]) -> str:
    count, height, width, fps = size
    return f"{count} frames of {height}x{width} at {fps:g} fps"


def read_members(
    path: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    tiling: Tiling = WHOLE,
    allow_gone: bool = False,
) -> tuple[dict, Iterator[Member]]:
    """What a `cascade.json` or a bundle says, and its stages, each loaded when it is asked for."""
    folder, content = bundle.read_description(path)
    if not isinstance(content, dict) or content.get("version") != VERSION or not content.get("stages"):
        raise UserError(f"{path} is not a cascade of version {VERSION}")
    where = "weights" if "bundle" in content else "checkpoint"
    stages = content["stages"] if isinstance(content["stages"], list) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get(where), str) for entry in stages):
        raise UserError(f"{path} does not say where the weights of its stages are; make the cascade anew")
    for entry in stages:
        if not isinstance(entry.get("step") or 0, int):
            raise UserError(f"{path} says of a stage that its step is {entry['step']!r}; make the cascade anew")
    _check_encoder(path, content.get("encoder") or {})
    configs = [stage_config(entry.get("stage")) for entry in stages]
    for previous, config in zip([None, *configs], configs):
        check_fit(previous, config)

    def members():
        for entry, config in zip(stages, configs):
            trained = entry.get("step") or 0
            stage = Stage(config, WHOLE if config.kind == "base" else tiling)
            abstract = placed(stage, mesh)
            if "bundle" in content:
                params = bundle.read_weights(folder, entry["weights"], abstract)
                yield Member(stage, params, entry["weights"], bundle.weights_sha256(folder, entry["weights"]), trained)
                continue
            step = folder / entry["checkpoint"]
            params, digest = _weights_of(step, path, abstract, allow_gone)
            yield Member(stage, params, entry["checkpoint"], digest, trained)

    return content, members()


def _check_encoder(path: str | os.PathLike, info) -> None:
    """UserError unless `info`, what a cascade says of its text encoder, is of one that can be opened here."""
    kinds = {"encoder": str, "fingerprint": str, "weights": str, "vocabulary": str, "max_length": int}
    if not isinstance(info, dict) or not all(isinstance(info.get(name, kind()), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} does not say what its text encoder is; make the cascade anew")
    if (name := info.get("encoder", "minilm")) not in ENCODERS:
        raise UserError(f"{path} needs text encoder {name[:60]!r}; this version knows {', '.join(ENCODERS)}")


def _weights_of(step: pathlib.Path, named_by, abstract, allow_gone: bool) -> tuple[dict | None, str]:
    """The EMA weights of a checkpoint and the hash of its manifest; (None, "") where it is gone and may be."""
    try:
        if not step.is_dir():
            raise UserError(f"{named_by} names checkpoint {step}, which does not exist; make the cascade anew")
        params = checkpoint.restore(checkpoint.verify(step), "ema", abstract)
        return params, storage.sha256_file(step / storage.MANIFEST)
    except (UserError, OSError) as error:
        if allow_gone and not step.is_dir():
            return None, ""
        if isinstance(error, UserError):
            raise
        raise UserError(f"checkpoint {step} cannot be read: {error}", NO_CHECKPOINT) from None


def placed(stage: Stage, mesh: jax.sharding.Mesh | None):
    """The abstract params of a stage, with their shardings where there is a mesh."""
    abstract = stage.network.abstract
    if mesh is None:
        return abstract
    shardings = partitioning.shardings_of(mesh, abstract, stage.network.axes)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def stage_config(values: dict) -> StageConfig:
    """A StageConfig from the nested dict that a checkpoint or cascade.json holds."""

    def plain(cls, fields):
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})

    try:
        nested = {
            "schedule": plain(Schedule, values["schedule"]),
            "sampler": plain(SamplerConfig, values["sampler"]),
            "network": plain(VideoUNetConfig, values["network"]),
            "student": plain(StudentConfig, values.get("student", {})),
        }
        return plain(StageConfig, {**values, **nested})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"the stage's stored config is not one of this version: {error}") from None
