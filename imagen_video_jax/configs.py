"""Config file -> checked frozen dataclasses: the only reader of ConfigDict in the package.

`experiments/FILE.py[:SCALE]` is a Python file with `get_config(scale) -> ConfigDict`. A file that is not on disk is
looked for in the installed package, so that the same names work outside a checkout. An unknown field is an error that
names the nearest one.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pathlib
import sys
import types
import typing

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from imagen_video_jax import storage
from imagen_video_jax.data.default_set import default_set
from imagen_video_jax.data.embed_captions import embed_data
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.sweep import SweepConfig
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.text.embed import EncoderConfig, open_encoder
from imagen_video_jax.text.embedding_cache import describe, user_folder
from imagen_video_jax.training.distill import DistillConfig
from imagen_video_jax.training.resume import check_early
from imagen_video_jax.training.teachers import find_teacher
from imagen_video_jax.training.train_config import TrainConfig

PREFIX = "--config."


def load(argument: str, overrides: list[str] = ()) -> ConfigDict:
    """Reads `FILE.py[:SCALE]` and applies overrides of the form `--config.field=value`."""
    name, scale = argument, ""
    if ":" in argument and not argument.endswith(".py"):
        name, _, scale = argument.rpartition(":")
    module = _load_module(name)
    try:
        config = module.get_config(scale) if scale else module.get_config()
    except ValueError as error:
        raise UserError(f"--config {argument}: {error}") from None
    except Exception as error:
        raise UserError(f"--config {argument}: get_config raises {_told(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {argument}: get_config must return a ConfigDict, got a {type(config).__name__}")
    config = ConfigDict(config)  # a frozen one, too
    for override in overrides:
        _apply(config, override)
    return config


def _values(argument: str, overrides: list[str]) -> dict:
    """The fields of a config, nested; UserError for a required placeholder that nothing fills."""
    try:
        return load(argument, overrides).to_dict()
    except RequiredValueError as error:
        raise UserError(f"--config {argument} has a required field without a value: {_told(error)}") from None


def training(argument: str, overrides: list[str] = ()) -> TrainConfig:
    """A checked training config."""
    values = _values(argument, overrides)
    for field, command in (("teacher", "distill"), ("cascade", "evaluate")):
        if field in values:
            raise UserError(f"--config {argument} is for `imagen-video {command}`; name the experiment file of a stage")
    return to_dataclass(TrainConfig, values, "config")


def sweep(argument: str, overrides: list[str] = ()) -> SweepConfig:
    """A checked evaluation config."""
    return to_dataclass(SweepConfig, _values(argument, overrides), "config")


def with_data(config: TrainConfig, workdir: pathlib.Path) -> TrainConfig:
    """Fills in what was not given: the embedded default data set, and the embedding cache of the data's captions.

    Embeddings are keyed by caption and encoder, so one cache in the user's folder serves every data set. What `workdir`
    could not go on with is refused before anything is made, and so is one that cannot be written.
    """
    storage.check_writable(workdir)
    check_early(workdir, config)
    encoder = None
    if not config.embeddings and config.encoder != EncoderConfig():
        encoder = open_encoder(config.encoder)  # before data are made for nothing
    if not config.data:
        default = default_set("tiny" if config.scale == "tiny" else "mini")
        config = dataclasses.replace(
            config,
            data=str(default.train),
            validation=config.validation or str(default.validation),
            embeddings=config.embeddings or (str(default.embeddings) if config.encoder == EncoderConfig() else ""),
        )
    if not config.embeddings:
        encoder = encoder or open_encoder(config.encoder)
        check_early(workdir, config, describe(encoder))
        folder = user_folder(encoder)
        embed_data([part for part in (config.data, config.validation) if part], folder, encoder)
        config = dataclasses.replace(config, embeddings=str(folder))
    return config


def distillation(argument: str, overrides: list[str], workdir: pathlib.Path) -> DistillConfig:
    """A checked distillation config with its data; what it leaves open is as its teacher was trained."""
    values = _values(argument, overrides)
    if missing := {"teacher", "data", "step", "scale", *_TEACHER_ONLY, *_OF_THE_CHAIN} - set(values):
        raise UserError(
            f"--config {argument} has no field {', '.join(sorted(missing))}; distillation takes one like "
            "experiments/distill.py:mini"
        )
    if not values["teacher"]:
        raise UserError("distillation needs --config.teacher=WORKDIR, the folder of a trained stage or of a bundle's")
    teacher = find_teacher(values["teacher"], values["stage"])
    trained, stage = teacher.trained, teacher.stage
    _check_teacher(values, stage, trained["scale"])
    base = stage.kind == "base"
    own = {"teacher": str(teacher.path), "calls": values["calls_base" if base else "calls_others"]}
    own |= {name: values[name] for name in _OF_THE_CHAIN}
    fields = {name: value for name, value in values.items() if name not in own and name not in _TEACHER_ONLY}
    fields["step"] = _as_taught(fields["step"], trained["step"])
    fields = _as_taught(fields, trained) | {"encoder": trained["encoder"], "buckets": tuple(trained["buckets"])}
    if not values["data"] and teacher.data:
        fields |= _data_of(trained)
    checked = to_dataclass(TrainConfig, fields | {"stage": {}}, "config", stage=stage)
    to_dataclass(DistillConfig, own | {"train": {}}, "config", train=checked)  # before data are made for nothing
    return to_dataclass(DistillConfig, own | {"train": {}}, "config", train=with_data(checked, workdir))


_OF_THE_CHAIN = ("last_calls", "guided_steps", "halving_rate", "weights", "weighting", "clip", "samples")
_TEACHER_ONLY = ("stage", "calls_base", "calls_others")


def _check_teacher(values: dict, stage: StageConfig, scale: str) -> None:
    teacher = values["teacher"]
    if values["stage"] not in ("", stage.name):
        raise UserError(f"{teacher} holds {stage.name}, --config.stage asks for {values['stage']}: name its workdir")
    if scale and scale != values["scale"]:
        raise UserError(
            f"{teacher} was trained at scale {scale}, --config is for {values['scale']}; use distill.py:{scale}"
        )
    if stage.network.guidance:
        raise UserError(f"{teacher} is a student itself; name the workdir of the stage that it was distilled from")
    if stage.text_drop == 0 and values["weights"][1] > 0:
        raise UserError(
            f"{teacher} was trained without text dropout, so it has no guidance to distil: --config.weights=(0,0), "
            "or train it with --config.stage.text_drop=0.1"
        )


def _as_taught(values: dict, trained: dict) -> dict:
    """Values with what is -1 or empty taken from the teacher's config."""
    taken = ("batch_size", "image_batch_size", "crop", "short", "accumulate")
    return {name: trained[name] if name in taken and value in (-1, "") else value for name, value in values.items()}


def _data_of(trained: dict) -> dict:
    """The teacher's data where they still are; the embedded default set is found by itself."""
    data = pathlib.Path(trained["data"])
    if data.exists() or not data.is_absolute():
        fields = {name: trained[name] for name in ("data", "validation", "embeddings")}
        return fields if pathlib.Path(fields["embeddings"]).exists() else fields | {"embeddings": ""}
    if data.parent.parent.name == "motion_shapes":
        return {}
    raise UserError(f"the teacher's data {data} are not there any more; name others with --config.data")


def to_dataclass(cls, values: dict, where: str, **given):
    """Builds a (nested) frozen dataclass from a dict; UserError for wrong fields. `given` ones are ready."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a group of fields, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in fields:
            raise UserError(f"unknown field {where}.{name}{_nearest(name, fields)}")
    built = {}
    for name, value in values.items():
        if name in given:
            built[name] = given[name]
            continue
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = to_dataclass(hint, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        if value is None and types.NoneType not in typing.get_args(hint):
            raise UserError(f"{where}.{name} has no value; set it with {PREFIX}{f'{where}.{name}'.partition('.')[2]}=")
        built[name] = _optional(name, value, hint)
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError):
            raise UserError(f"{where}: {error}") from None
        group = where.rsplit(".", 1)[-1]  # some classes name it themselves, for messages without a config
        raise UserError(f"{where}.{str(error).removeprefix(group + '.')}") from None


def _optional(name: str, value, hint):
    """ConfigDict fields keep one type, so None is written as -1 or (0, 0) in the files."""
    if types.NoneType not in typing.get_args(hint):
        return value
    return None if value in (-1.0, -1, (0, 0)) else value


def _apply(config: ConfigDict, override: str) -> None:
    if not override.startswith(PREFIX) or "=" not in override:
        raise UserError(f"unknown argument {override!r}; config fields are set as {PREFIX}field=value")
    path, text = override[len(PREFIX) :].split("=", 1)
    *parents, last = path.split(".")
    node, where = config, "config"
    for name in [*parents, last]:
        if not isinstance(node, ConfigDict) or name not in node:
            known = list(node) if isinstance(node, ConfigDict) else []
            raise UserError(f"unknown field {where}.{name}{_nearest(name, known)}")
        parent, node, where = node, _value(node, name), f"{where}.{name}"
    parent[last] = _parse(where, text, node, _kind(parent, last))


def _value(config: ConfigDict, name: str):
    """A field's value, None of a placeholder."""
    try:
        return config[name]
    except RequiredValueError:
        return None


def _kind(config: ConfigDict, name: str) -> type:
    """The type that a field is to hold, a placeholder's too."""
    try:
        return config.get_type(name)
    except RequiredValueError:
        return config.get_ref(name).get_type()


def _parse(where: str, text: str, current, kind: type):
    """Text -> the type of the value it replaces; `kind`, what a placeholder is to hold."""
    if isinstance(current, ConfigDict):
        raise UserError(f"{where} is a group of fields: {', '.join(current)}")
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            each = type(current[0]) if current else str
            parts = [part.strip().strip("'\"") for part in text.strip("()[] ").split(",") if part.strip()]
            if each is bool:
                return tuple({"true": True, "1": True, "false": False, "0": False}[part.lower()] for part in parts)
            return tuple(each(part) for part in parts)
        return kind(text)
    except (TypeError, ValueError, KeyError):
        like = "" if current is None and kind is not types.NoneType else f" like {current!r}"
        raise UserError(f"{where} must be of type {kind.__name__}{like}, got {text!r}") from None


def _nearest(name: str, known) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(sorted(known))}"


def _load_module(name: str):
    path = pathlib.Path(name)
    if path.suffix != ".py":
        raise UserError(f"--config must name a Python file like experiments/base_16f_24x40.py:mini, got {name!r}")
    try:
        module = _executed(path)
    except UserError:
        raise
    except Exception as error:  # whatever a person's own code may raise
        raise UserError(f"config file {name} cannot be loaded: {_told(error)}") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} has no get_config(scale)")
    return module


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _executed(path: pathlib.Path):
    if path.is_file():
        # Experiment files import `experiments`: the folder beside them, or the packaged one.
        own = pathlib.Path(__file__).parent
        _make_importable(path.resolve().parent.parent, own.parent, own)
        spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if path.parent.name == "experiments":
        return packaged(path.stem)
    raise UserError(f"no such config file: {path}")


def packaged(stem: str):
    """An experiment file of the checkout, or of the installed package (where the folder travels inside it)."""
    _make_importable(pathlib.Path(__file__).parent.parent, pathlib.Path(__file__).parent)
    known = sorted(file.stem for file in _folder().glob("*.py") if file.stem != "__init__")
    if stem not in known:
        raise UserError(f"no such config file: experiments/{stem}.py{_nearest(stem, known)}")
    return importlib.import_module(f"experiments.{stem}")


def _folder() -> pathlib.Path:
    return pathlib.Path(importlib.import_module("experiments").__file__).parent


def _make_importable(*roots: pathlib.Path) -> None:
    """Makes `experiments` importable from the first root that holds it, unless it is already."""
    if importlib.util.find_spec("experiments") is None:
        sys.path.insert(0, str(next(root for root in roots if (root / "experiments" / "scales.py").is_file())))
