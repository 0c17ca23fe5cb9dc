"""Our own parsers, as the fuzzer sees them: good input to begin with, and what may come of bad input."""

import dataclasses
import functools
import io
import json
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np

from imagen_video_jax import bundle, export, storage
from imagen_video_jax.data import manifests, records, tar_shards
from imagen_video_jax.evaluation import pickled_arrays, torch_file
from imagen_video_jax.text import safetensors_format, t5x_format
from imagen_video_jax.text.embedding_cache import EmbeddingCache, key_of, shard_name, write_shard
from imagen_video_jax.training import goodput, metrics
from imagen_video_jax.video import containers
from tests.text.t5_checkpoints import random_arrays, write_t5x


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
      seeds: an empty folder -> good inputs.
      parse: (the folder, input) -> None; raises what the parser raises.
      refusals: exceptions beside UserError that its docstring names.
    """

    seeds: Callable[[pathlib.Path], list[bytes]]
    parse: Callable[[pathlib.Path, bytes], object]
    refusals: tuple[type[Exception], ...] = ()


def _put(folder: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# safetensors.


def _safetensors(folder: pathlib.Path) -> list[bytes]:
    out = []
    for arrays, dtype in (
        ({"a": np.arange(6).reshape(2, 3), "layer.kernel": np.ones((4, 2, 2)), "s": np.float64(3)}, np.float32),
        ({"only": np.zeros((3, 5))}, ml_dtypes.bfloat16),
    ):
        safetensors_format.write_file(folder / "seed", {k: np.asarray(v) for k, v in arrays.items()}, dtype)
        out.append((folder / "seed").read_bytes())
    return out


def _read_safetensors(folder: pathlib.Path, data: bytes) -> None:
    for array in safetensors_format.open_file(str(_put(folder, "w.safetensors", data))).values():
        array.whole()


def _index(folder: pathlib.Path) -> list[bytes]:
    safetensors_format.write_file(folder / "part-1.safetensors", {"a": np.ones((2, 3)), "b": np.ones(4)}, np.float32)
    return [json.dumps({"metadata": {}, "weight_map": dict.fromkeys("ab", "part-1.safetensors")}).encode()]


def _read_index(folder: pathlib.Path, data: bytes) -> None:
    for array in safetensors_format.open_index(str(_put(folder, "model.safetensors.index.json", data))).values():
        array.whole()


# Pickles of others.


def _pickles(_) -> list[bytes]:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"params": {"a/b": {"kernel": kernel, "again": kernel}, "t": np.asfortranarray(kernel)}, "n": kernel[0]}
    return [pickle.dumps(tree, protocol) for protocol in (3, 4)]


# A state dict of one tensor of torch, whose storage is named from outside.
_STATE_DICT = (
    b"\x80\x02}X\x0c\0\0\0layer.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtRs."
)


def _torch(_) -> list[bytes]:
    numbers, zipped = np.arange(6, dtype=np.float32).tobytes(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", _STATE_DICT)
        archive.writestr("archive/data/0", numbers)
    head = [pickle.dumps(row, 2) for row in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    older = b"".join([*head, _STATE_DICT, pickle.dumps(["0"], 2), (6).to_bytes(8, "little"), numbers])
    return [zipped.getvalue(), older]


# What describes data.


def _captions(_) -> list[bytes]:
    rows = [{"path": "a.mp4", "caption": "a cat"}, {"path": "b/c.mp4", "captions": ["x", "ünïcödé 猫"], "fps": 24}]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


def _csv(_) -> list[bytes]:
    return [b'path,caption,fps\na.mp4,"a cat, sleeping",24\nb/c.mp4,"two\nlines",\n']


def _tar(_) -> list[bytes]:
    out = io.BytesIO()
    members = {"a.mp4": b"x" * 700, "a.txt": b"a cat\nsleeping", "a.json": b'{"caption": "b", "fps": 24}'}
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return [out.getvalue()]


def _list_tar(folder: pathlib.Path, data: bytes) -> None:
    path = _put(folder, "shard.tar", data)
    for example in tar_shards.list_tars(folder, [path]).examples:
        example.media()


def _containers(_) -> list[bytes]:
    box = lambda kind, content: (8 + len(content)).to_bytes(4, "big") + kind + content  # noqa: E731
    mp4 = box(b"ftyp", b"isom" * 4) + box(b"moov", b"\0" * 40) + box(b"mdat", b"x" * 100)
    matroska = b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67\x90" + b"y" * 16
    avi = b"RIFF" + (40).to_bytes(4, "little") + b"AVI " + b"LIST" * 9
    return [mp4, matroska, avi, b"GIF89a" + b"z" * 30 + b";", (b"G" + b"\0" * 187) * 3]


def _container(folder: pathlib.Path, data: bytes) -> None:
    demuxer = containers.demuxer_of(data[:512])
    if demuxer:
        containers.what_is_missing(demuxer, io.BytesIO(data), len(data))


def _records(_) -> list[bytes]:
    return [records.pack(path="a.mp4", captions=["a cat"], facts={"fps": 24}, sha256="0" * 64, media=b"m" * 50)]


# Weights, embeddings, checkpoints, bundles.


def _t5x(folder: pathlib.Path) -> list[bytes]:
    out = []
    for number, leaves in enumerate(("zarr", "msgpack")):
        arrays = {name: array for name, array in random_arrays().items() if "layers" not in name}
        write_t5x(folder / f"seed{number}", arrays, leaves=leaves)
        out.append((folder / f"seed{number}" / "checkpoint").read_bytes())
    (folder / "seed0").rename(folder / "t5x")
    return out


def _read_t5x(folder: pathlib.Path, data: bytes) -> None:
    _put(folder, "t5x/checkpoint", data)
    for array in t5x_format.T5XCheckpoint(str(folder / "t5x"), ("token_embedder", "encoder")).arrays.values():
        array.whole()


_CAPTIONS = ("a cat", "a dog runs")


def _shards(folder: pathlib.Path) -> list[bytes]:
    keys = sorted(map(key_of, _CAPTIONS))
    info = {"encoder": "fake", "fingerprint": "f" * 64, "width": 6, "max_length": 5}
    (folder / "cache").mkdir()
    storage.write_json(folder / "cache" / "fingerprint.json", info)
    write_shard(folder / "cache" / shard_name(keys), keys, [np.ones((3, 6)), np.zeros((2, 6))], "f" * 64, [])
    return [(folder / "cache" / shard_name(keys)).read_bytes()]


def _read_shard(folder: pathlib.Path, data: bytes) -> None:
    (path,) = (folder / "cache").glob("shard-*")
    path.write_bytes(data)
    cache = EmbeddingCache.open(folder / "cache")
    for caption in _CAPTIONS:
        cache.lookup(caption)


def _manifest(folder: pathlib.Path) -> list[bytes]:
    _put(folder, "step/params/a", b"abc")
    _put(folder, "step/meta.json", b"{}")
    storage.write_manifest(folder / "step")
    return [(folder / "step" / storage.MANIFEST).read_bytes()]


def _check_manifest(folder: pathlib.Path, data: bytes) -> None:
    _put(folder, f"step/{storage.MANIFEST}", data)
    if storage.damaged_files(folder / "step"):
        raise Damaged


class Damaged(Exception):
    """Stands for a list of problems."""


def _bundle(folder: pathlib.Path, which: str) -> list[bytes]:
    stage = folder / "bundle" / "1_base"
    stage.mkdir(parents=True)
    safetensors_format.write_file(stage / "model.safetensors", {"a": np.ones(3)}, np.float32)
    entry = {"name": "base", "weights": "1_base/model.safetensors", "stage": {"kind": "base"}}
    content = {"bundle": bundle.VERSION, "version": 1, "stages": [entry], "encoder": {}}
    storage.write_json(folder / "bundle" / bundle.CASCADE, content)
    export._write_sums(folder / "bundle")
    return [(folder / "bundle" / which).read_bytes()]


def _read_bundle(folder: pathlib.Path, data: bytes, which: str) -> None:
    _put(folder, f"bundle/{which}", data)
    if which == bundle.CASCADE:  # an attacker writes the checksums too
        (folder / "bundle" / bundle.CHECKSUMS).unlink(missing_ok=True)
        export._write_sums(folder / "bundle")
    bundle.read_description(folder / "bundle")


# What a run reads of an earlier one.


def _account(_) -> list[bytes]:
    run = {"began": 1.0, "ended": 9.0, "seconds": {"start": 1.0, "step": 7.0}, "saves": {"3": {"step": 2.0}}}
    return [json.dumps({"runs": [run, run]}).encode()]


def _rows(_) -> list[bytes]:
    return [b'{"step": 1, "kind": "train", "loss": 0.5}\n{"step": 2, "kind": "train", "loss": null}\n']


def _cut_rows(folder: pathlib.Path, data: bytes) -> None:
    metrics._cut_rows_after(_put(folder, "metrics.jsonl", data), 1)


def _of_file(parse: Callable, name: str) -> Callable:
    return lambda folder, data: parse(_put(folder, name, data))


def _bundle_target(which: str) -> Target:
    return Target(functools.partial(_bundle, which=which), functools.partial(_read_bundle, which=which))


TARGETS = {
    "safetensors": Target(_safetensors, _read_safetensors),
    "safetensors index": Target(_index, _read_index),
    "pickled arrays": Target(_pickles, _of_file(pickled_arrays.read, "w.pkl")),
    "torch file": Target(_torch, _of_file(torch_file.read, "w.pth")),
    "captions.jsonl": Target(_captions, _of_file(manifests.read_manifest, "captions.jsonl")),
    "captions.csv": Target(_csv, _of_file(manifests.read_manifest, "captions.csv")),
    "tar shard": Target(_tar, _list_tar),
    "media container": Target(_containers, _container),
    "record": Target(_records, lambda _, data: records.unpack(data), (ValueError,)),
    "T5X checkpoint": Target(_t5x, _read_t5x),
    "embedding shard": Target(_shards, _read_shard),
    "checkpoint manifest": Target(_manifest, _check_manifest, (Damaged,)),
    "bundle description": _bundle_target(bundle.CASCADE),
    "bundle checksums": _bundle_target(bundle.CHECKSUMS),
    "account of time": Target(_account, _of_file(lambda path: goodput.Ledger(path, start_step=3).totals(), "g.json")),
    "metrics rows": Target(_rows, _cut_rows),
}
