"""Weights load as their owners publish them, whatever the packaging; anything else is named in one line."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from imagen_video_jax import partitioning
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.text import safetensors_format
from imagen_video_jax.text.t5_encoder import T5Config
from imagen_video_jax.text.t5_weights import open_weights
from tests.text.t5_checkpoints import (
    BFLOAT16,
    hugging_face,
    random_arrays,
    write_safetensors,
    write_t5x,
)

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x_tiny"
ARRAYS = random_arrays()


def loaded(path) -> dict[str, np.ndarray]:
    """T5X name -> array, of what the package makes of a path."""
    weights = open_weights(path)
    params = weights.load(jnp.float32)
    names = {
        "embedding": "token_embedder/embedding",
        "position_bias": "encoder/relpos_bias/rel_embedding",
        "norm.scale": "encoder/encoder_norm/scale",
        "attention_norm.scale": "pre_attention_layer_norm/scale",
        "feed_forward_norm.scale": "pre_mlp_layer_norm/scale",
        **{f"attention.{name}": f"attention/{name}/kernel" for name in ("query", "key", "value", "out")},
        "feed_forward.gate": "mlp/wi_0/kernel",
        "feed_forward.up": "mlp/wi_1/kernel" if weights.config.gated else "mlp/wi/kernel",
        "feed_forward.down": "mlp/wo/kernel",
    }
    found = {}
    for where, array in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(where, simple=True, separator=".")
        layer, _, rest = name.partition(".")
        inside = f"encoder/layers_{layer[5:]}/{names[rest]}" if layer.startswith("layer") else names[name]
        found[inside] = np.asarray(array)
    return found


def assert_same(path, arrays=ARRAYS, dtype=np.float32):
    found = loaded(path)
    expected = {name: a.astype(dtype).astype(np.float32) for name, a in arrays.items() if not name.startswith("dec")}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_what_t5x_wrote_is_read_to_the_bit():
    with np.load(FIXTURE / "params_ref.npz") as file:
        expected = {name: file[name] for name in file.files}
    assert_same(FIXTURE, expected)


T5X = {
    "gzip": {},
    "zstd": {"compressor": "zstd"},
    "plain": {"compressor": None},
    "many chunks": {"parts": 4},
    "many zstd chunks in bfloat16": {"parts": 3, "compressor": "zstd", "dtype": BFLOAT16},
    "bfloat16": {"dtype": BFLOAT16},
    "before versions": {"version": None},
    "version 0": {"version": None, "leaves": "msgpack"},
    "in the msgpack file": {"leaves": "msgpack"},
    "in the msgpack file, bfloat16": {"leaves": "msgpack", "dtype": BFLOAT16},
    "in the msgpack file, in pieces": {"leaves": "chunked"},
    "one file": {"leaves": "single"},
    "gfile": {"kvstore": {"driver": "gfile"}},
    "bucket": {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}},
    "old specs": {"kvstore": {"driver": "file", "old": True}},
}


@pytest.mark.parametrize("options", T5X.values(), ids=T5X)
def test_every_packaging_of_t5x_loads_alike(options, tmp_path):
    path = write_t5x(tmp_path / "checkpoint_100", ARRAYS, **options)
    assert_same(path, dtype=options.get("dtype", np.float32))


def test_a_model_folder_means_its_last_finished_checkpoint(tmp_path):
    for step in (900, 1000):
        write_t5x(tmp_path / f"checkpoint_{step}", random_arrays(seed=step))
    write_t5x(tmp_path / "checkpoint_1100.tmp-1700000000", random_arrays(seed=1))
    assert_same(tmp_path, random_arrays(seed=1000))


SAFETENSORS = {
    "encoder": ({"decoder": False, "alias": False}, {}),
    "encoder with its alias": ({"decoder": False}, {}),
    "whole model": ({}, {}),
    "shards": ({}, {"shards": 3}),
    "bfloat16": ({}, {"dtype": BFLOAT16, "shards": 2}),
    "float16": ({}, {"dtype": np.float16}),
}


@pytest.mark.parametrize(("names", "options"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_every_packaging_of_safetensors_loads_alike(names, options, tmp_path):
    folder = write_safetensors(tmp_path, hugging_face(ARRAYS, **names), **options)
    assert_same(folder, dtype=options.get("dtype", np.float32))
    (named,) = folder.glob("*.index.json") if "shards" in options else folder.glob("*.safetensors")
    assert_same(named, dtype=options.get("dtype", np.float32))


def test_the_embedding_may_be_there_under_its_alias_only(tmp_path):
    stored = hugging_face(ARRAYS)
    del stored["shared.weight"]
    assert_same(write_safetensors(tmp_path, stored))


def test_sizes_are_read_from_the_weights(tmp_path):
    config = T5Config(vocabulary=17, width=6, heads=5, head_width=2, feed_forward=9, layers=12, gated=False, buckets=32)
    assert open_weights(write_t5x(tmp_path / "a", random_arrays(config))).config == config
    assert open_weights(write_safetensors(tmp_path / "b", hugging_face(random_arrays(config)))).config == config


@pytest.mark.parametrize("kind", ["t5x", "safetensors"])
def test_every_device_gets_its_part(kind, tmp_path):
    config = T5Config(vocabulary=64, width=32, heads=4, head_width=8, feed_forward=64, layers=1)
    arrays = random_arrays(config)
    if kind == "t5x":
        path = write_t5x(tmp_path / "c", arrays, parts=4)
    else:
        path = write_safetensors(tmp_path, hugging_face(arrays))
    mesh = partitioning.make_mesh(MeshShape(fsdp=8))
    params = open_weights(path).load(jnp.bfloat16, mesh)
    up = params["layer0"]["feed_forward"]["up"]
    assert up.dtype == jnp.bfloat16
    assert up.addressable_shards[0].data.shape == (4, 64)
    np.testing.assert_array_equal(up, arrays["encoder/layers_0/mlp/wi_1/kernel"].astype(BFLOAT16))


def test_the_same_weights_have_the_same_hash_in_every_packaging(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = open_weights(write_t5x(tmp_path / "a", ARRAYS))
    first = weights.content_hash()
    decoder = ARRAYS | {"decoder/logits_dense/kernel": ARRAYS["decoder/logits_dense/kernel"] + 1}
    alike = (
        write_t5x(tmp_path / "b", decoder, parts=3, compressor="zstd"),
        write_t5x(tmp_path / "c", ARRAYS, leaves="single"),
        write_safetensors(tmp_path / "d", hugging_face(ARRAYS), shards=2),
    )
    assert {open_weights(path).content_hash() for path in alike} == {first}
    changed = ARRAYS | {"encoder/encoder_norm/scale": ARRAYS["encoder/encoder_norm/scale"] + 1}
    assert open_weights(write_t5x(tmp_path / "e", changed)).content_hash() != first
    monkeypatch.setattr(weights, "_hash", lambda: pytest.fail("read again"))
    assert weights.content_hash() == first


# What is wrong, each in one line.


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        open_weights(path).load(jnp.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


QUERY = "target.encoder.layers_1.attention.query.kernel"


@pytest.mark.parametrize("compressor", ["gzip", "zstd", None])
def test_a_cut_or_lost_chunk_is_named_by_its_array(compressor, tmp_path):
    path = write_t5x(tmp_path / "c", ARRAYS, parts=2, compressor=compressor)
    chunk = path / QUERY / "1.0"
    whole = chunk.read_bytes()
    # The last 8 bytes of gzip are a checksum: data that is all there is read without it.
    for lost in (9 if compressor == "gzip" else 1, len(whole) // 2, len(whole)):
        chunk.write_bytes(whole[:-lost])
        assert f"array {QUERY} is damaged" in refused(path)
    chunk.unlink()
    assert f"array {QUERY} is damaged" in refused(path)
    shutil.rmtree(path / QUERY)
    assert f"array {QUERY} is missing" in refused(path)


def altered(kind: str, tmp_path, change) -> pathlib.Path:
    arrays = dict(ARRAYS)
    change(arrays)
    if kind == "t5x":
        return write_t5x(tmp_path / "c", arrays)
    return write_safetensors(tmp_path, hugging_face(arrays))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("t5x", "encoder/layers_0/mlp/wo/kernel"), ("safetensors", "encoder.block.0.layer.1.DenseReluDense.wo.weight")],
)
def test_a_missing_array_is_named(kind, name, tmp_path):
    path = altered(kind, tmp_path, lambda arrays: arrays.pop("encoder/layers_0/mlp/wo/kernel"))
    assert f"array {name} is missing" in refused(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("t5x", "encoder/layers_1/attention/key/kernel"),
        ("safetensors", "encoder.block.1.layer.0.SelfAttention.k.weight"),
    ],
)
def test_a_misshaped_array_is_named_with_both_shapes(kind, name, tmp_path):
    def change(arrays):
        arrays["encoder/layers_1/attention/key/kernel"] = np.zeros((12, 8), np.float32)

    assert f"array {name} has shape (12, 8), expected (12, 12)" in refused(altered(kind, tmp_path, change))


def test_an_array_more_is_named(tmp_path):
    def change(arrays):
        arrays["encoder/layers_1/attention/query/bias"] = np.zeros(12, np.float32)

    assert "array encoder/layers_1/attention/query/bias more" in refused(altered("t5x", tmp_path, change))
    # umT5 has a table of position biases in every layer.
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    stored = hugging_face(ARRAYS) | {name: np.zeros((32, 3), np.float32)}
    assert f"array {name} more" in refused(write_safetensors(tmp_path / "hf", stored))


def test_a_lost_layer_is_named(tmp_path):
    config = T5Config(vocabulary=8, width=4, heads=1, head_width=4, feed_forward=4, layers=3)
    arrays = {name: array for name, array in random_arrays(config).items() if "layers_1/" not in name}
    assert "arrays encoder/layers_1/* are missing" in refused(write_t5x(tmp_path / "c", arrays))


def test_another_network_in_safetensors_is_refused(tmp_path):
    stored = {"embeddings.word_embeddings.weight": np.zeros((4, 4), np.float32)}
    assert "is no T5 encoder" in refused(write_safetensors(tmp_path, stored))
    folder = write_safetensors(tmp_path / "silu", hugging_face(ARRAYS))
    (folder / "config.json").write_text(json.dumps({"feed_forward_proj": "gated-silu"}))
    assert "feed_forward_proj is 'gated-silu'" in refused(folder)


def test_an_index_may_not_lead_astray(tmp_path):
    folder = write_safetensors(tmp_path / "model", hugging_face(ARRAYS), shards=2)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    for name, says in (
        ("../outside.safetensors", "which is outside its folder"),
        (str(tmp_path / "outside.safetensors"), "which is outside its folder"),
        ("gone.safetensors", "gone.safetensors, which is missing"),
        ("model-00002-of-00002.safetensors", "has no array"),
    ):
        first = sorted(whole["weight_map"])[0]
        index.write_text(json.dumps(whole | {"weight_map": whole["weight_map"] | {first: name}}))
        assert says in refused(folder)
    index.write_text("{")
    assert "is no index of safetensors files" in refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_cut_safetensors_file_is_named(keep, tmp_path):
    file = write_safetensors(tmp_path, hugging_face(ARRAYS)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"cannot read weights {file}" in refused(file)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pytorch_model.bin", b"PK\x03\x04 a zip", "is a pickle"),
        ("old.pt", b"\x80\x02}q", "is a pickle"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt-1000"\n', "TensorFlow checkpoint"),
        ("model.ckpt-1000.index", b"\0\0", "TensorFlow checkpoint"),
        ("saved_model.pb", b"\0\0", "TensorFlow checkpoint"),
    ],
)
def test_another_kind_of_file_is_recognised(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name)
    assert says.removeprefix("is ") in refused(tmp_path)


@pytest.mark.parametrize(
    "marker", ["_METADATA", "_CHECKPOINT_METADATA", "1000/_METADATA", "default/_METADATA", "state/checkpoint"]
)
def test_an_orbax_checkpoint_is_recognised(marker, tmp_path):
    (tmp_path / marker).parent.mkdir(exist_ok=True)
    (tmp_path / marker).write_text("{}")
    assert "Orbax checkpoint" in refused(tmp_path)


def test_an_orbax_checkpoint_in_t5x_clothes_is_recognised(tmp_path):
    tree = {"encoder": {"encoder_norm": {"scale": "PLACEHOLDER://target.encoder.encoder_norm.scale"}}}
    (tmp_path / "checkpoint").write_bytes(msgpack.packb({"version": 3, "optimizer": {"target": tree}}))
    assert "Orbax checkpoint" in refused(tmp_path)


def test_what_is_no_checkpoint_at_all_is_said(tmp_path):
    assert "no such weights" in refused(tmp_path / "nothing")
    assert "looked for checkpoint, checkpoint_STEP and *.safetensors" in refused(tmp_path)
    (tmp_path / "checkpoint").write_bytes(b"\x93\x01")
    assert "is no T5X checkpoint, or is cut" in refused(tmp_path)
    (tmp_path / "checkpoint").write_bytes(msgpack.packb({"version": 1, "optimizer": {}}))
    assert "of version 1; known are" in refused(tmp_path)
    (tmp_path / "checkpoint").write_bytes(msgpack.packb({"params": {}}))
    assert "it has no 'target'" in refused(tmp_path)
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint_5.tmp-17").mkdir()
    assert "checkpoint_5.tmp-17 was never finished" in refused(tmp_path)


def test_a_spec_cannot_lead_out_of_the_checkpoint(tmp_path):
    write_t5x(tmp_path / "other", random_arrays(seed=9))
    path = write_t5x(tmp_path / "c", ARRAYS)
    content = msgpack.unpackb((path / "checkpoint").read_bytes())
    spec = content["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"]
    spec["kvstore"]["path"] = "../other/target.encoder.encoder_norm.scale/"
    (path / "checkpoint").write_bytes(msgpack.packb(content))
    assert_same(path)


@pytest.mark.parametrize(
    ("leaf", "says"),
    [
        ({"driver": "zarr", "metadata": {}, "kvstore": {"driver": "file", "path": "a\0b/"}}, r"array a\x00b cannot be"),
        (
            {"driver": "zarr", "metadata": {}, "kvstore": {"driver": "file", "path": "x/../"}},
            "without a path is missing",
        ),
        ({"driver": "zarr", "metadata": {}, "kvstore": ["x"]}, "without a path is missing"),
        ({"driver": "zarr", "metadata": {}, "kvstore": {"driver": "file", "path": 7}}, "without a path is missing"),
        ([1.0, [2.0, 3.0]], "encoder/encoder_norm/scale is no array but list"),
    ],
)
def test_a_leaf_that_is_no_array_of_the_checkpoint_is_refused(leaf, says, tmp_path):
    path = write_t5x(tmp_path / "c", ARRAYS)
    content = msgpack.unpackb((path / "checkpoint").read_bytes())
    content["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = leaf
    (path / "checkpoint").write_bytes(msgpack.packb(content))
    assert says in refused(path)


def test_a_header_that_promises_too_much_is_refused():
    for header in (
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}},
    ):
        text = json.dumps(header).encode()
        with pytest.raises(ValueError, match="array a"):
            safetensors_format.parse_header(len(text).to_bytes(8, "little") + text, 8 + len(text) + 4)
