"""What distillation starts from: the newest checkpoint of a trained stage's workdir, or a stage of a bundle.

A teacher is known by one path: of a checkpoint, or of the stage's folder in the bundle.
"""

import dataclasses
import pathlib

from imagen_video_jax import bundle, checkpoint, storage
from imagen_video_jax.cascade_file import stage_config
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.text.embed import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained stage.

    Attributes:
      path: see above.
      stage: its config.
      trained: how it was trained, as far as that is known: the fields of a TrainConfig, nested.
      data: whether `trained` says where its data are (a bundle gives no more than their names).
    """

    path: pathlib.Path
    stage: StageConfig
    trained: dict
    data: bool


def find_teacher(path: str, name: str) -> Teacher:
    """The teacher that `path` names: a workdir, a bundle (its stage called `name`), or a stage's folder in a bundle."""
    folder = pathlib.Path(path)
    if bundle.is_bundle(folder):
        return _of_bundle(folder, name)
    if bundle.is_bundle(folder.parent):
        return _of_bundle(folder.parent, name, folder.name)
    newest = checkpoint.require_newest(folder)
    trained = checkpoint.read_meta(newest)["config"]
    return Teacher(newest, stage_config(trained["stage"]), trained, data=True)


def _of_bundle(folder: pathlib.Path, name: str, place: str = "") -> Teacher:
    _, content = bundle.read_description(folder)
    entries = {bundle.inside(folder, entry.get("weights")).parent.name: entry for entry in content["stages"]}
    chosen = place or next((own for own, entry in entries.items() if entry.get("name") == name), "")
    if chosen not in entries:
        missing = f"holds no stage {chosen or name}" if chosen or name else "is a bundle of several stages"
        raise UserError(f"{folder} {missing}; name the folder of one: {', '.join(entries)}")
    config = storage.read_json(folder / chosen / "config.json")
    facts = config.get("training") if isinstance(config, dict) else None
    facts = facts if isinstance(facts, dict) else {}
    step = facts.get("step") if isinstance(facts.get("step"), dict) else {}
    missing = {"batch_size", "image_batch_size", "crop"} - set(facts) | {"accumulate"} - set(step)
    if missing:
        raise UserError(f"{folder / chosen} does not say with which {', '.join(sorted(missing))} it was trained")
    trained = {"scale": "", "short": "repeat", "buckets": (), **facts, "encoder": _encoder(content.get("encoder"))}
    return Teacher(folder / chosen, stage_config(entries[chosen].get("stage")), trained, data=False)


def _encoder(info: dict | None) -> dict:
    """The fields of an EncoderConfig, as a cascade describes its encoder."""
    info = info if isinstance(info, dict) else {}
    fields = {"name": info.get("encoder", "minilm"), "max_length": info.get("max_length", 0)}
    fields |= {name: info[name] for name in ("weights", "vocabulary") if info.get(name)}
    try:
        config = EncoderConfig(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"the bundle's text encoder is not known here: {error}") from None
    default = config.name == "minilm" and config.max_length == 64
    return dataclasses.asdict(EncoderConfig() if default else config)


def weights_of(path: pathlib.Path, stage: str, abstract):
    """The (EMA) weights of a teacher in the structure and shardings of `abstract`; verified."""
    if _is_checkpoint(path):
        return checkpoint.restore(checkpoint.verify(path), "ema", abstract)
    return bundle.initial_params(path, stage, abstract)


def sha256_of(path: pathlib.Path) -> str:
    """What tells a teacher's weights from any others."""
    if _is_checkpoint(path):
        return storage.sha256_file(path / storage.MANIFEST)
    _, content = bundle.read_description(path.parent)
    (weights,) = [entry["weights"] for entry in content["stages"] if entry["weights"].startswith(path.name + "/")]
    return bundle.weights_sha256(path.parent, weights)


def is_there(path: pathlib.Path) -> bool:
    return _is_checkpoint(path) or bundle.is_bundle(path.parent)


def _is_checkpoint(path: pathlib.Path) -> bool:
    return (path / storage.MANIFEST).exists()
