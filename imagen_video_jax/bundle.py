"""Bundles: a cascade as one folder of safetensors and JSON, verified and read; `export.py` writes them.

    README.md                     the model card
    cascade.json                  stages in order (config, weights file, hand-off record) and the text encoder
    1_base_16f_24x40/config.json  the same stage by itself, and how it was trained
    1_base_16f_24x40/model.safetensors
    SHA256SUMS                    of every other file but the card, on which people write; for `sha256sum --check`
    programs/, sample.py          with --programs: StableHLO, and a script that runs it without this package

Tensor names are the paths of the network's parameters, e.g. `down0_block0.residual.conv1.kernel`; kernels are laid out
(window..., in, out). Weights larger than 5 GB are split into several files with a `model.safetensors.index.json`.
A bundle is not trusted: nothing outside of its folder is read, and every file only after its checksum was right.
"""

import hashlib
import json
import os
import pathlib

import jax

from imagen_video_jax import checkpoint, distributed, storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError
from imagen_video_jax.text.safetensors_format import open_file, open_index
from imagen_video_jax.text.stored_array import StoredArray

VERSION = 1
CASCADE, CHECKSUMS, CARD = "cascade.json", "SHA256SUMS", "README.md"
# Characters of a file or folder, and of a path; more than file systems take is an error of theirs.
_LONGEST_NAME, _LONGEST_PATH = 200, 1000
_PICKLED = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


def read_description(path: str | os.PathLike) -> tuple[pathlib.Path, dict]:
    """The content of a `cascade.json`, or of the one in a bundle's folder, and the folder that it lies in.

    A bundle is verified whole. Raises UserError: no such file, a pickle, another version, a file outside of the folder,
    (exit code 5) a file that is damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / CASCADE).is_file():
            raise UserError(f"{path} holds no {CASCADE}: no folder that imagen-video export or demo wrote")
        path = path / CASCADE
    refuse_pickle(path)
    content = storage.read_json(path)
    if isinstance(content, dict) and "bundle" in content:
        _verify(path.parent, content)
    return path.parent, content


def refuse_pickle(path: pathlib.Path) -> None:
    """UserError for files whose reading could run anything."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError:
        return  # said by whoever reads it
    if path.suffix in _PICKLED or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise UserError(
            f"{path} is a pickle, which could run anything when read; a cascade is a {CASCADE} or a folder that "
            "imagen-video export wrote"
        )


def _verify(folder: pathlib.Path, content: dict) -> None:
    if content["bundle"] != VERSION:
        raise UserError(f"{folder} is a bundle of version {content['bundle']!r}, this program reads version {VERSION}")
    stages = content.get("stages")
    if not isinstance(stages, list) or not all(isinstance(entry, dict) for entry in stages):
        raise UserError(f"{folder / CASCADE} has no list of stages")
    sums = _read_sums(folder)
    for name in [*(entry.get("weights") for entry in stages), *sums]:
        inside(folder, name)
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"bundle {folder} is damaged: {name} is missing", NO_CHECKPOINT)
        if storage.sha256_file(folder / name) != expected:
            raise UserError(f"bundle {folder} is damaged: {name} is not what was exported", NO_CHECKPOINT)
    _check_listed(folder, content, sums)


def _check_listed(folder: pathlib.Path, content: dict, sums: dict[str, str]) -> None:
    """Every file that is going to be read has a checksum, and each stage follows the one it was exported with."""
    before = None
    for entry in content["stages"]:
        for name in [CASCADE, entry["weights"], *shards(folder, entry["weights"])]:
            if name not in sums:
                raise UserError(f"bundle {folder} is damaged: {CHECKSUMS} does not list {name}", NO_CHECKPOINT)
        given = entry.get("input")
        if before and isinstance(given, dict) and given.get("weights_sha256") != weights_sha256(folder, before, sums):
            raise UserError(f"stage {entry.get('name')} of {folder} was handed off from other weights than {before}")
        before = entry["weights"]


def weights_sha256(folder: pathlib.Path, weights: str, sums: dict[str, str] | None = None) -> str:
    """What tells a stage's weights from any others: the sha256 of their file, or of those of their files in a row."""
    if sums is None and (folder / CHECKSUMS).exists():
        sums = _read_sums(folder)
    digests = [(sums or {}).get(name) or storage.sha256_file(folder / name) for name in shards(folder, weights)]
    if not digests:
        return (sums or {}).get(weights) or storage.sha256_file(folder / weights)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_sums(folder: pathlib.Path) -> dict[str, str]:
    """{file name: hex sha256} of `SHA256SUMS`."""
    try:
        lines = inside(folder, CHECKSUMS).read_text().splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"bundle {folder} is damaged: {CHECKSUMS}: {reason}", NO_CHECKPOINT) from None
    sums = {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise UserError(f"bundle {folder} is damaged: {CHECKSUMS}, line {number} is no checksum", NO_CHECKPOINT)
        sums[name] = digest
    return sums


def inside(folder: pathlib.Path, name) -> pathlib.Path:
    """The file of a bundle that `name` means; UserError where that is not inside of the bundle."""
    plain = isinstance(name, str) and 0 < len(name) <= _LONGEST_PATH and not set(name) & {"\\", "\0", ":"}
    parts = name.split("/") if plain else []
    if not plain or name.startswith("/") or {".", ".."} & set(parts) or max(map(len, parts)) > _LONGEST_NAME:
        raise UserError(f"bundle {folder} names {name!r}, which is no file inside of it; refused")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"bundle {folder} has a link that leads out of it: {name}; refused")
    return path


def shards(folder: pathlib.Path, weights: str) -> list[str]:
    """The files that an index of weights names, as names in the bundle; none where `weights` are one file."""
    if not weights.endswith(".json"):
        return []
    content = storage.read_json(folder / weights)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise UserError(f"{folder / weights} is no index of safetensors files")
    parent = weights.rpartition("/")[0]
    names = sorted({f"{parent}/{place}" for place in places.values()})
    for name in names:
        inside(folder, name)
    return names


def read_weights(folder: pathlib.Path, weights: str, abstract):
    """Parameters from a verified bundle, in the structure, dtypes and shardings of `abstract`.

    UserError where names or shapes are not those of the network. Each process reads what its own devices hold.
    """
    path = inside(folder, weights)
    arrays = open_index(path) if weights.endswith(".json") else open_file(path)
    wanted = checkpoint.flatten(abstract)
    _check_arrays(path, arrays, wanted)

    def place(name, leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return arrays[name].placed(sharding, leaf.dtype)

    return jax.tree.unflatten(jax.tree.structure(abstract), [place(*item) for item in wanted.items()])


def _check_arrays(path: pathlib.Path, arrays: dict[str, StoredArray], wanted: dict) -> None:
    lines = [f"{name} is missing" for name in wanted if name not in arrays]
    lines += [f"{name!r} is not part of the model" for name in arrays if name not in wanted]
    for name in wanted:
        if name in arrays and (found := arrays[name].shape) != wanted[name].shape:
            lines.append(f"{name} is {list(found)}, expected {list(wanted[name].shape)}")
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise UserError(f"{path} does not fit this model: {'; '.join(lines[:3])}{more}")


def initial_params(path: str | os.PathLike, stage: str, abstract):
    """EMA weights to start a run from: of a training workdir, or of a stage in a bundle.

    Args: path of a workdir, a bundle (its stage called `stage`, or its only one) or a stage's folder in a bundle.
    """
    path = pathlib.Path(path)
    if path.is_file():
        refuse_pickle(path)
    for folder in (path, path.parent):
        if is_bundle(folder):
            _, content = read_description(folder)
            weights = {entry.get("name"): entry["weights"] for entry in content["stages"]}
            by_folder = {name.split("/")[0]: name for name in weights.values()}
            chosen = by_folder.get(path.name) if folder != path else weights.get(stage)
            if chosen is None and folder == path and len(weights) == 1:
                (chosen,) = weights.values()
            if chosen is None:
                raise UserError(f"{path} holds no stage {stage}; name the folder of one: {', '.join(by_folder)}")
            return read_weights(folder, chosen, abstract)
    if path.is_file():
        raise UserError(f"{path} is a file; weights to start from are a training workdir or a bundle")
    newest = distributed.from_first(lambda: str(checkpoint.require_newest(path)))
    return checkpoint.restore(pathlib.Path(newest), "ema", abstract)


def is_bundle(folder: pathlib.Path) -> bool:
    try:
        content = json.loads((folder / CASCADE).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "bundle" in content
