"""T5 checkpoints in every packaging that their owners use, written without the code under test; a reference network."""

import json
import pathlib

import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts
from safetensors.numpy import save_file

from imagen_video_jax.text.t5_encoder import T5Config

BFLOAT16 = ml_dtypes.bfloat16
TINY = T5Config(vocabulary=50, width=12, heads=3, head_width=4, feed_forward=20, layers=2)


def random_arrays(config: T5Config = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """T5X name -> array, of an encoder and a bit of a decoder; norm scales are not one."""
    rng, D, inner = np.random.default_rng(seed), config.width, config.heads * config.head_width

    def draw(*shape, mean=0.0, deviation=None):
        return (mean + rng.normal(size=shape) * (deviation or shape[0] ** -0.5)).astype(np.float32)

    up = ("wi_0", "wi_1") if config.gated else ("wi",)
    arrays = {
        "token_embedder/embedding": draw(config.vocabulary, D, deviation=1.0),
        "encoder/relpos_bias/rel_embedding": draw(config.heads, config.buckets, deviation=1.0),
        "encoder/encoder_norm/scale": draw(D, mean=1.0, deviation=0.3),
        "decoder/logits_dense/kernel": draw(D, config.vocabulary),
        "decoder/layers_0/self_attention/query/kernel": draw(D, inner),
    }
    for layer in range(config.layers):
        prefix = f"encoder/layers_{layer}/"
        for norm in ("pre_attention_layer_norm", "pre_mlp_layer_norm"):
            arrays[f"{prefix}{norm}/scale"] = draw(D, mean=1.0, deviation=0.3)
        for name in ("query", "key", "value"):
            deviation = D**-0.5 * (config.head_width**-0.25 if name != "value" else 1.0)
            arrays[f"{prefix}attention/{name}/kernel"] = draw(D, inner, deviation=deviation)
        arrays[f"{prefix}attention/out/kernel"] = draw(inner, D)
        arrays |= {f"{prefix}mlp/{name}/kernel": draw(D, config.feed_forward) for name in up}
        arrays[f"{prefix}mlp/wo/kernel"] = draw(config.feed_forward, D)
    return arrays


def _msgpack_array(array: np.ndarray) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def _chunked(array: np.ndarray, parts: int) -> dict:
    pieces = np.array_split(array.ravel(), parts)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {str(i): _msgpack_array(piece) for i, piece in enumerate(pieces)},
    }


def write_t5x(
    folder: pathlib.Path,
    arrays: dict[str, np.ndarray],
    *,
    leaves: str = "zarr",
    compressor: str | None = "gzip",
    parts: int = 1,
    dtype=np.float32,
    version: int | None = 3,
    kvstore: dict | None = None,
) -> pathlib.Path:
    """Writes a checkpoint folder, or with `leaves` "single" the msgpack file alone.

    Args:
      leaves: "zarr"; "msgpack", "chunked" or "single": arrays inside the msgpack file.
      parts: chunks along every dimension.
      version: None leaves it and the level 'optimizer' out.
      kvstore: what specs say of where they are; "path" in it makes the old kind of spec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree: dict = {}
    for name, array in arrays.items():
        array, *path = array.astype(dtype), *name.split("/")
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        stored = f"target.{name.replace('/', '.')}"
        if leaves == "zarr":
            _write_zarr(folder / stored, array, compressor, parts)
            where = dict(kvstore or {"driver": "file"})
            metadata = {"shape": list(array.shape), "chunks": [1], "compressor": {"id": "gzip", "level": 1}}
            spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
            old = where.pop("old", False)
            spec |= {"kvstore": where, "path": stored} if old else {"kvstore": where | {"path": stored + "/"}}
            node[path[-1]] = spec
        else:
            node[path[-1]] = _chunked(array, 3) if leaves == "chunked" else _msgpack_array(array)
    inner = {"target": tree, "state": {"step": 7}}
    content = inner if version is None else {"version": version, "optimizer": inner}
    path = folder.with_name(folder.name + ".single") if leaves == "single" else folder / "checkpoint"
    path.write_bytes(msgpack.packb(content, use_bin_type=True))
    return path if leaves == "single" else folder


def _write_zarr(path: pathlib.Path, array: np.ndarray, compressor: str | None, parts: int) -> None:
    kinds = {"gzip": {"id": "gzip", "level": 1}, "zstd": {"id": "zstd", "level": 1}, None: None}
    chunks = [-(-size // parts) for size in array.shape]
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {"shape": list(array.shape), "chunks": chunks, "compressor": kinds[compressor]},
        "dtype": array.dtype.name,
    }
    ts.open(spec, create=True).result().write(array).result()


def hugging_face(arrays: dict[str, np.ndarray], *, decoder: bool = True, alias: bool = True) -> dict[str, np.ndarray]:
    """The same weights under Hugging Face's names."""
    names = {
        "token_embedder/embedding": "shared.weight",
        "encoder/relpos_bias/rel_embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/logits_dense/kernel": "lm_head.weight",
        "decoder/layers_0/self_attention/query/kernel": "decoder.block.0.layer.0.SelfAttention.q.weight",
    }
    inside = {
        "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
        "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
        **{f"attention/{n}/kernel": f"layer.0.SelfAttention.{n[0]}.weight" for n in ("query", "key", "value", "out")},
        **{f"mlp/{n}/kernel": f"layer.1.DenseReluDense.{n}.weight" for n in ("wi", "wi_0", "wi_1", "wo")},
    }
    stored = {}
    for name, array in arrays.items():
        if name not in names:
            layer, rest = name.removeprefix("encoder/layers_").split("/", 1)
            theirs = f"encoder.block.{layer}.{inside[rest]}"
        else:
            theirs = names[name]
        if decoder or not theirs.startswith(("decoder.", "lm_head.")):
            turn = array.ndim == 2 and theirs != "shared.weight"
            stored[theirs] = np.ascontiguousarray(array.T if turn else array)
    if alias:
        stored["encoder.embed_tokens.weight"] = stored["shared.weight"].copy()
    return stored


def write_safetensors(folder: pathlib.Path, stored: dict[str, np.ndarray], *, shards: int = 1, dtype=np.float32):
    """`model.safetensors`, or several files with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: array.astype(dtype) for name, array in stored.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return folder
    names, places = sorted(stored), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: stored[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def reference(arrays: dict[str, np.ndarray], ids_L: np.ndarray, config: T5Config) -> np.ndarray:
    """The encoder for one row without padding, in float64 and loops: states (L, D)."""
    get = {name: array.astype(np.float64) for name, array in arrays.items()}
    L, N, K = len(ids_L), config.heads, config.head_width

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * get[f"{name}/scale"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]  # of the buckets of one sign
    bias = np.zeros((N, L, L))
    for q in range(L):
        for k in range(L):
            bucket = sum(abs(k - q) >= start for start in starts) - 1 + (16 if k > q else 0)
            bias[:, q, k] = get["encoder/relpos_bias/rel_embedding"][:, bucket]
    x = get["token_embedder/embedding"][ids_L]
    for layer in range(config.layers):
        p = f"encoder/layers_{layer}/"
        y = norm(x, p + "pre_attention_layer_norm")
        q, k, v = ((y @ get[f"{p}attention/{n}/kernel"]).reshape(L, N, K) for n in ("query", "key", "value"))
        logits = np.stack([q[:, n] @ k[:, n].T for n in range(N)]) + bias
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.stack([weights[n] @ v[:, n] for n in range(N)], 1).reshape(L, N * K)
        x = x + y @ get[p + "attention/out/kernel"]
        y = norm(x, p + "pre_mlp_layer_norm")
        if config.gated:
            hidden = gelu(y @ get[p + "mlp/wi_0/kernel"]) * (y @ get[p + "mlp/wi_1/kernel"])
        else:
            hidden = np.maximum(y @ get[p + "mlp/wi/kernel"], 0)
        x = x + hidden @ get[p + "mlp/wo/kernel"]
    return norm(x, "encoder/encoder_norm")
