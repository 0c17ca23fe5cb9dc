"""Cascade -> bundle: one folder that loads wherever a cascade does, and that is published by uploading it.

The layout is in bundle.py. The folder appears whole, by one rename, or not at all.
"""

import contextlib
import dataclasses
import inspect
import os
import pathlib
import shutil

import jax

from imagen_video_jax import __version__, bundle, bundle_sampler, checkpoint, stablehlo, storage
from imagen_video_jax.cascade_file import VERSION, Member, read_members
from imagen_video_jax.errors import UserError
from imagen_video_jax.functional import parameter_count
from imagen_video_jax.model_card import model_card
from imagen_video_jax.text.safetensors_format import write_file
from imagen_video_jax.training.metrics import progress_bar, read_rows

DTYPES = ("float32", "bfloat16")
_LARGEST = 5 << 30  # bytes of a weights file; hubs want no larger ones
_SHOWN = ("data", "validation", "steps", "batch_size", "image_batch_size", "crop", "seed", "scale", "optimizer", "step")


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What to write. Attributes as the flags of `imagen-video export`.

    `scores` is where from -> {metric: number}, `about` Markdown for the card.
    """

    dtype: str = "float32"
    programs: bool = False
    title: str = ""
    scores: dict[str, dict] = dataclasses.field(default_factory=dict)
    about: str = ""


def export(cascade: str | os.PathLike, out: str | os.PathLike, request: ExportRequest = ExportRequest()) -> None:
    """Writes the bundle `out`, which must not exist or be an empty folder.

    Raises UserError: `out` is taken or cannot be written, the cascade cannot be read, programs cannot be made.
    """
    out = storage.local_path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; a bundle is written once: name another --out, or remove it")
    if request.programs:
        stablehlo.check_serializable()
    content, members = read_members(cascade)
    storage.writable_folder(out.absolute().parent)
    with storage.claim(out) as mine, _one_line_if_full(out):
        if not mine:
            raise UserError(f"{out} is being written by another process; wait for it or name another --out")
        for left in storage.left_behind(out):
            shutil.rmtree(left, ignore_errors=True)  # of a killed export
        with storage.atomic_folder(out) as folder:
            _write(folder, pathlib.Path(cascade), content, members, request, out.name)


@contextlib.contextmanager
def _one_line_if_full(out: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; nothing of it is left") from None


def _write(folder: pathlib.Path, cascade: pathlib.Path, content: dict, members, request: ExportRequest, title: str):
    source = cascade if cascade.is_dir() else cascade.parent
    entries, stages = [], {}
    bar, task = progress_bar("exporting", len(content["stages"]))
    with bar:
        for number, (member, old) in enumerate(zip(members, content["stages"]), 1):
            name = f"{number}_{member.stage.config.name}"
            entry = _stage_entry(member, old, source / member.checkpoint, request.dtype)
            (folder / name).mkdir()
            entry["weights"] = f"{name}/{_write_weights(folder / name, member.params, request.dtype)}"
            if entries:
                entry["input"] = _hand_off(folder, entries[-1])
            storage.write_json(folder / name / "config.json", entry)
            entries.append(entry)
            stages[name] = member.stage
            bar.update(task, advance=1)
    if request.programs:
        stablehlo.write_programs(folder / stablehlo.FOLDER, stages, request.dtype)
        (folder / "sample.py").write_text(inspect.getsource(bundle_sampler))
    encoder = public_encoder(content.get("encoder") or {})
    kept = ("name", "step", "role", "weights", "input", "stage")
    described = [{key: entry[key] for key in kept if key in entry} for entry in entries]
    description = {"bundle": bundle.VERSION, "version": VERSION, "made_by": f"imagen_video_jax {__version__}"}
    storage.write_json(folder / bundle.CASCADE, description | {"stages": described, "encoder": encoder})
    scores = _scores_beside(source) | request.scores
    card = model_card(request.title or title, entries, encoder, scores, request.about, request.programs)
    storage.write_text(folder / bundle.CARD, card)
    _write_sums(folder)


def _stage_entry(member: Member, old: dict, path: pathlib.Path, dtype: str) -> dict:
    """What `config.json` holds of a stage; `path` is its checkpoint, or its weights where a bundle is exported."""
    if path.is_dir():
        training = _training(path)
    else:
        training = storage.read_json(path.parent / "config.json").get("training", {})
    return {
        "name": member.stage.config.name,
        "step": old.get("step"),
        "role": old.get("role", "teacher"),
        "parameters": parameter_count(member.stage.network.abstract),
        "dtype": dtype,
        "stage": dataclasses.asdict(member.stage.config),
        "training": training,
    }


def _training(step: pathlib.Path) -> dict:
    """How a checkpoint was trained, without the paths of this machine."""
    meta = checkpoint.read_meta(step)
    config = meta.get("config", {})
    known = {name: config[name] for name in _SHOWN if name in config}
    for name in ("data", "validation"):
        if known.get(name):
            known[name] = ", ".join(pathlib.PurePath(part).name for part in str(known[name]).split(","))
    if "seconds" in meta:
        known["seconds"] = round(meta["seconds"], 1)
    rows = [row for row in read_rows(step.parent.parent / "metrics.jsonl") if row.get("kind") == "held_out"]
    rows = [row for row in rows if row.get("step", 0) <= int(step.name) and "loss" in row]
    return known | ({"held_out_loss": rows[-1]["loss"]} if rows else {})


def _write_weights(folder: pathlib.Path, params, dtype: str) -> str:
    """Writes the weights, in several files where one would be too large; the name of the file to open."""
    arrays = checkpoint.flatten(params)
    size = jax.numpy.dtype(dtype).itemsize
    shards, room = [[]], _LARGEST
    for name in sorted(arrays):
        needed = arrays[name].size * size
        if needed > room and shards[-1]:
            shards.append([])
            room = _LARGEST
        shards[-1].append(name)
        room -= needed
    if len(shards) == 1:
        write_file(folder / "model.safetensors", arrays, dtype)
        return "model.safetensors"
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: arrays[name] for name in names}, dtype)
        places |= dict.fromkeys(names, file)
    total = sum(array.size for array in arrays.values()) * size
    index = "model.safetensors.index.json"
    storage.write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})
    return index


def _hand_off(folder: pathlib.Path, before: dict) -> dict:
    """The stage whose videos the next one takes: which weights, and what they give."""
    stage = before["stage"]
    size = {name: stage[name] for name in ("frames", "height", "width", "fps")}
    return {
        "stage": before["name"],
        "step": before["step"],
        "weights_sha256": bundle.weights_sha256(folder, before["weights"]),
        **size,
    }


def public_encoder(encoder: dict) -> dict:
    """The record of a text encoder without paths of this machine; buckets are for everybody."""
    paths = ("weights", "vocabulary")
    return {key: value for key, value in encoder.items() if key not in paths or str(value).startswith("gs://")}


def _scores_beside(folder: pathlib.Path) -> dict[str, dict]:
    """What the demo's judge said of this cascade; a scores.json of another shape is of something else."""
    try:
        scores = storage.read_json(folder / "scores.json")
        shares = {f"{name} right (share)": float(value["accuracy"]) for name, value in scores.items()}
    except (UserError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return {}
    return {"judge of motion_shapes, base samples": shares} if shares else {}


def _write_sums(folder: pathlib.Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != bundle.CARD)
    lines = [f"{storage.sha256_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    storage.write_text(folder / bundle.CHECKSUMS, "".join(lines))
