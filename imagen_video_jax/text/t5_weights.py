"""T5 weights as their owners publish them -> the parameters of `T5Encoder`, each shard read into its place.

Two formats: T5X checkpoints (t5x_format.py) and Hugging Face safetensors (safetensors_format.py), of `T5EncoderModel`
or `T5ForConditionalGeneration`. The sizes are read from the weights. Decoders are left on disk. Nothing is unpickled.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence

import jax
import numpy as np

from imagen_video_jax import functional, partitioning, storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import safetensors_format, t5x_format, weight_store
from imagen_video_jax.text.stored_array import StoredArray
from imagen_video_jax.text.t5_encoder import MAX_DISTANCE, T5Config, T5Encoder

# Ours, T5X below `target`, Hugging Face. Kernels of the latter are (out, in); {} is the number of a layer.
_NAMES = (
    ("embedding", "token_embedder/embedding", "shared.weight"),
    ("position_bias", "encoder/relpos_bias/rel_embedding",
     "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    ("norm.scale", "encoder/encoder_norm/scale", "encoder.final_layer_norm.weight"),
)  # fmt: skip
_LAYER_NAMES = (
    ("attention_norm.scale", "pre_attention_layer_norm/scale", "layer.0.layer_norm.weight"),
    ("attention.query", "attention/query/kernel", "layer.0.SelfAttention.q.weight"),
    ("attention.key", "attention/key/kernel", "layer.0.SelfAttention.k.weight"),
    ("attention.value", "attention/value/kernel", "layer.0.SelfAttention.v.weight"),
    ("attention.out", "attention/out/kernel", "layer.0.SelfAttention.o.weight"),
    ("feed_forward_norm.scale", "pre_mlp_layer_norm/scale", "layer.1.layer_norm.weight"),
    ("feed_forward.down", "mlp/wo/kernel", "layer.1.DenseReluDense.wo.weight"),
)
_GATED_NAMES = (
    ("feed_forward.gate", "mlp/wi_0/kernel", "layer.1.DenseReluDense.wi_0.weight"),
    ("feed_forward.up", "mlp/wi_1/kernel", "layer.1.DenseReluDense.wi_1.weight"),
)
_PLAIN_NAMES = (("feed_forward.up", "mlp/wi/kernel", "layer.1.DenseReluDense.wi.weight"),)
_LAYER = ("encoder/layers_{}/", "encoder.block.{}.")
_T5X, _HUGGING_FACE = 0, 1
_NOT_READ = ("decoder.", "lm_head.")  # of Hugging Face; of T5X only what begins as follows is opened
_READ = ("encoder/", "token_embedder/")
_ALIAS = "encoder.embed_tokens.weight"
_HASHED = "T5 encoder 1"  # raised when `content_hash` is computed otherwise


class T5Weights:
    """A checkpoint, opened: nothing but its headers is read before `load`.

    Attributes:
      config: sizes, read from the arrays.
    """

    def __init__(self, path: str, arrays: dict[str, StoredArray], format_: int, files: Sequence[pathlib.Path]):
        """UserError names an array that is missing, too many, or of another shape than the others ask for."""
        self.path, self._files = path, files
        arrays = dict(arrays)
        if format_ == _HUGGING_FACE:
            arrays = {name: array for name, array in arrays.items() if not name.startswith(_NOT_READ)}
            alias = arrays.pop(_ALIAS, None)
            if alias is not None:
                arrays.setdefault("shared.weight", alias)
        names = _name_table(path, arrays, format_)
        missing = [theirs for theirs in names.values() if theirs not in arrays]
        if missing:
            raise UserError(f"{path} is no whole T5 encoder: array {missing[0]} is missing")
        extra = sorted(set(arrays) - set(names.values()))
        if extra:
            raise UserError(f"{path} is no T5 encoder of a kind known here: it has an array {extra[0]} more")
        self._arrays = {}
        for ours, theirs in names.items():
            array = arrays[theirs]
            turned = format_ == _HUGGING_FACE and len(array.shape) == 2 and ours != "embedding"
            self._arrays[ours] = array.T if turned else array
        self.config = self._config()
        self._check_shapes()

    def load(self, dtype, mesh: jax.sharding.Mesh | None = None) -> dict:
        """Parameters of `T5Encoder(config, dtype)` over the devices of `mesh` (None: the first device)."""
        network = functional.split(lambda rngs: T5Encoder(self.config, dtype))
        if mesh is None:
            place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: place, network.abstract)
        else:
            shardings = partitioning.shardings_of(mesh, network.abstract, network.axes)

        def read(where, abstract, sharding):
            return self._arrays[_dotted(where)].placed(sharding, abstract.dtype)

        return jax.tree_util.tree_map_with_path(read, network.abstract, shardings)

    def content_hash(self) -> str:
        """sha256 over the encoder's arrays as float32: the same weights have the same hash in every packaging.

        Remembered where the files are local; in a bucket every array is read for it.
        """
        return storage.remembered(self._files, _HASHED, self._hash) if self._files else self._hash()

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays.items()):
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array.whole(), np.float32))
        return digest.hexdigest()

    def _config(self) -> T5Config:
        shapes = {name: array.shape for name, array in self._arrays.items()}
        for name in ("embedding", "position_bias", "layer0.attention.query", "layer0.feed_forward.up"):
            if len(shapes[name]) != 2:
                raise UserError(f"{self.path}: array {self._arrays[name].name} has shape {shapes[name]}, expected two")
        (vocabulary, width), (heads, buckets) = shapes["embedding"], shapes["position_bias"]
        inner = shapes["layer0.attention.query"][1]
        if not heads or inner % heads:
            raise UserError(
                f"{self.path}: {self._arrays['layer0.attention.query'].name} is {inner} wide, which {heads} heads "
                "do not divide"
            )
        return T5Config(
            vocabulary=vocabulary,
            width=width,
            heads=heads,
            head_width=inner // heads,
            feed_forward=shapes["layer0.feed_forward.up"][1],
            layers=len({name.split(".")[0] for name in shapes if name.startswith("layer")}),
            gated="layer0.feed_forward.gate" in shapes,
            buckets=buckets,
        )

    def _check_shapes(self) -> None:
        abstract = functional.split(lambda rngs: T5Encoder(self.config)).abstract
        for where, wanted in jax.tree_util.tree_leaves_with_path(abstract):
            array = self._arrays[_dotted(where)]
            if array.shape != wanted.shape:
                raise UserError(f"{self.path}: array {array.name} has shape {array.shape}, expected {wanted.shape}")
            if not jax.numpy.issubdtype(array.dtype, np.floating):
                raise UserError(f"{self.path}: array {array.name} is of type {array.dtype}, expected floating point")


def open_weights(path: str | os.PathLike) -> T5Weights:
    """Opens a T5X checkpoint (its folder, its model's folder, or a single file) or safetensors (file, index, folder).

    Raises:
      UserError: nothing there, or another kind of checkpoint, which is named; what `T5Weights` finds.
    """
    path = os.fspath(path)
    if weight_store.in_bucket(path):
        if path.endswith((".json", ".safetensors")):
            return _open_safetensors(path)
        path = path.rstrip("/").removesuffix(f"/{t5x_format.FILE}")
    else:
        if not os.path.exists(path):
            raise UserError(f"no such weights: {path}")
        if os.path.isfile(path):
            return _open_file(path)
        if (what := _other_kind(path, _ORBAX)) is not None:
            raise UserError(f"{path} holds no T5 weights: {what}")
    if t5x_format.holds_checkpoint(path):
        return _open_t5x(path)
    newest = t5x_format.newest(path)
    if newest is not None:
        return _open_t5x(newest)
    found = safetensors_format.files_of(path)
    chosen = [name for name in found if name.endswith(".index.json")] or found
    if len(chosen) == 1:
        return _open_safetensors(chosen[0])
    if chosen:
        raise UserError(f"{path} holds {len(chosen)} safetensors files without one index; name the file that is meant")
    what = None if weight_store.in_bucket(path) else _other_kind(path, _OTHER_KINDS)
    looked = f"looked for {t5x_format.FILE}, checkpoint_STEP and *.safetensors"
    if weight_store.in_bucket(path):
        looked += "; there is no such bucket or folder, or this account may not list it"
    raise UserError(f"{path} holds no T5 weights: {what or looked}")


def _open_file(path: str) -> T5Weights:
    with open(path, "rb") as file:
        head = file.read(64)
    if path.endswith((".json", ".safetensors")) or head[8:10] == b'{"':
        return _open_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UserError(f"{path} is a pickle, which could run anything when read; convert it to safetensors first")
    if re.search(r"\.ckpt.*\.(index|data-\d+-of-\d+|meta)$", path) or path.endswith(".pb"):
        raise UserError(f"{path} belongs to a TensorFlow checkpoint; T5X or safetensors weights are wanted")
    if os.path.basename(path) == t5x_format.FILE:
        return _open_t5x(os.path.dirname(path) or ".")
    return _open_t5x(path)


def _open_t5x(path: str) -> T5Weights:
    checkpoint = t5x_format.T5XCheckpoint(path, _READ)
    return T5Weights(path, checkpoint.arrays, _T5X, checkpoint.files)


def _open_safetensors(path: str) -> T5Weights:
    _check_kind(os.path.join(os.path.dirname(path), "config.json"))
    open_ = safetensors_format.open_index if path.endswith(".json") else safetensors_format.open_file
    arrays = open_(path)
    return T5Weights(path, arrays, _HUGGING_FACE, safetensors_format.local_files(path))


def _check_kind(config: str) -> None:
    """Refuses relatives of T5 whose arrays look alike but mean something else."""
    if not weight_store.exists(config):
        return
    try:
        values = json.loads(weight_store.read(config))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {config}: {error}") from None
    known = {
        "feed_forward_proj": ("relu", "gated-gelu"),
        "relative_attention_max_distance": (MAX_DISTANCE,),
        "layer_norm_epsilon": (1e-6,),
    }
    for field, allowed in known.items():
        if isinstance(values, dict) and values.get(field, allowed[0]) not in allowed:
            raise UserError(f"{config}: {field} is {values[field]!r}, known are {', '.join(map(str, allowed))}")


def _name_table(path: str, arrays: dict[str, StoredArray], format_: int) -> dict[str, str]:
    """{our name: the name in the checkpoint} of an encoder with as many layers as the checkpoint has."""
    pattern = re.compile(re.escape(_LAYER[format_]).replace(r"\{\}", r"(\d+)"))
    numbers = {int(match[1]) for name in arrays if (match := pattern.match(name))}
    if not numbers:
        raise UserError(f"{path} is no T5 encoder: no array begins with {_LAYER[format_].format(0)}")
    if len(numbers) <= max(numbers):
        absent = min(set(range(max(numbers))) - numbers)
        raise UserError(f"{path} is no whole T5 encoder: arrays {_LAYER[format_].format(absent)}* are missing")
    first = _LAYER[format_].format(0)
    gated = any(first + row[1 + format_] in arrays for row in _GATED_NAMES)
    table = {row[0]: row[1 + format_] for row in _NAMES}
    for number in sorted(numbers):
        prefix = _LAYER[format_].format(number)
        for row in (*_LAYER_NAMES, *(_GATED_NAMES if gated else _PLAIN_NAMES)):
            table[f"layer{number}.{row[0]}"] = prefix + row[1 + format_]
    return table


_ORBAX = (
    ("{} is part of an Orbax checkpoint; T5X's own or safetensors are wanted",
     ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "*/_METADATA", "*/_CHECKPOINT_METADATA",
      "*/manifest.ocdbt", "state/checkpoint", "*/state/checkpoint")),
)  # fmt: skip
_OTHER_KINDS = (
    ("{} is part of a TensorFlow checkpoint; T5X or safetensors are wanted",
     ("*.ckpt*.index", "saved_model.pb", "tf_model.h5")),
    ("{} is a pickle, which is never read; convert it to safetensors first",
     ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")),
    ("{} was never finished", ("checkpoint_*.tmp-*", "*.tmp-*")),
)  # fmt: skip


def _other_kind(path: str, kinds) -> str | None:
    """What a folder holds that people take for T5 weights."""
    for text, patterns in kinds:
        for pattern in patterns:
            match = next(iter(sorted(pathlib.Path(path).glob(pattern))), None)
            if match is not None:
                return text.format(match.relative_to(path))
    return None


def _dotted(where) -> str:
    return jax.tree_util.keystr(where, simple=True, separator=".")
