"""CLIP: frames and texts -> unit vectors in one space (Radford et al. 2021); ViT-B/32, L/14 and their like.

Frames as OpenAI's code has them: bicubic, the shorter side to 224, the middle cut out, normalised by mean and
deviation. Weights and vocabulary: a folder from the Hugging Face hub (model.safetensors, tokenizer.json, config.json),
named by the user. Sizes are read from the weights.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from PIL import Image

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import pixels, weight_files

WHERE = (
    "model.safetensors, tokenizer.json and config.json of https://huggingface.co/openai/clip-vit-base-patch32 "
    "or clip-vit-large-patch14"
)
HEAD_WIDTH = 64  # of every published CLIP

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_EPSILON = 1e-5
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A transformer. `gelu` is "quick_gelu" (OpenAI's) or "gelu"."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    gelu: str = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers.

    Attributes:
      image_size, patch: pixels of a side.
      positions: text tokens at most.
      closing: number of the token that ends a text, whose state stands for it.
    """

    image: TowerConfig
    text: TowerConfig
    image_size: int
    patch: int
    vocabulary: int
    positions: int
    closing: int
    embedding: int


def _parameter(*shape):
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class _Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int):
        self.kernel, self.bias = _parameter(inputs, outputs), _parameter(outputs)

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...]


class _LayerNorm(nnx.Module):
    def __init__(self, width: int):
        self.scale, self.bias = _parameter(width), _parameter(width)

    def __call__(self, x):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + _EPSILON)
        return normal * self.scale[...] + self.bias[...]


class _Layer(nnx.Module):
    """Self-attention and a feed-forward network, each normalised before (pre-LayerNorm)."""

    def __init__(self, config: TowerConfig):
        D = config.width
        self.config = config
        self.norm1, self.norm2 = _LayerNorm(D), _LayerNorm(D)
        self.query, self.key, self.value, self.out = (_Linear(D, D) for _ in range(4))
        self.up, self.down = _Linear(D, config.feed_forward), _Linear(config.feed_forward, D)

    def __call__(self, x_BLD, causal: bool):
        B, L, D = x_BLD.shape
        x = self.norm1(x_BLD)
        q, k, v = (f(x).reshape(B, L, self.config.heads, -1) for f in (self.query, self.key, self.value))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(B, L, D)
        x_BLD = x_BLD + self.out(y)
        x = self.up(self.norm2(x_BLD))
        x = x * jax.nn.sigmoid(1.702 * x) if self.config.gelu == "quick_gelu" else jax.nn.gelu(x, approximate=False)
        return x_BLD + self.down(x)


class _Tower(nnx.Module):
    def __init__(self, config: TowerConfig):
        self.count = config.layers
        for index in range(config.layers):
            setattr(self, f"layer{index}", _Layer(config))

    def __call__(self, x_BLD, causal: bool):
        for index in range(self.count):
            x_BLD = getattr(self, f"layer{index}")(x_BLD, causal)
        return x_BLD


class ImageTower(nnx.Module):
    """Normalised frames (N, image_size, image_size, 3) -> unit vectors (N, embedding)."""

    def __init__(self, config: CLIPConfig):
        D, P = config.image.width, config.patch
        self.patch = P
        self.kernel, self.opening = _parameter(P * P * 3, D), _parameter(D)
        self.positions = _parameter((config.image_size // P) ** 2 + 1, D)
        self.norm_before, self.norm_after = _LayerNorm(D), _LayerNorm(D)
        self.tower, self.projection = _Tower(config.image), _parameter(D, config.embedding)

    def __call__(self, frames_NHWC):
        N, H, W, C = frames_NHWC.shape
        P = self.patch
        patches = frames_NHWC.reshape(N, H // P, P, W // P, P, C).swapaxes(2, 3).reshape(N, -1, P * P * C)
        x = patches @ self.kernel[...]
        x = jnp.concatenate([jnp.broadcast_to(self.opening[...], (N, 1, x.shape[-1])), x], 1) + self.positions[...]
        x = self.tower(self.norm_before(x), False)
        return _unit(self.norm_after(x[:, 0]) @ self.projection[...])


class TextTower(nnx.Module):
    """Token numbers (N, L), int32 -> unit vectors (N, embedding)."""

    def __init__(self, config: CLIPConfig):
        D = config.text.width
        self.closing = config.closing
        self.words, self.positions = _parameter(config.vocabulary, D), _parameter(config.positions, D)
        self.tower, self.norm_after = _Tower(config.text), _LayerNorm(D)
        self.projection = _parameter(D, config.embedding)

    def __call__(self, ids_NL):
        x = self.words[...][ids_NL] + self.positions[...][: ids_NL.shape[1]]
        x = self.norm_after(self.tower(x, True))
        end_N = jnp.argmax(ids_NL == self.closing, -1)  # the first one; padding comes after it
        return _unit(x[jnp.arange(len(ids_NL)), end_N] @ self.projection[...])


class CLIPNetwork(nnx.Module):
    """Both towers."""

    def __init__(self, config: CLIPConfig):
        self.image, self.text = ImageTower(config), TextTower(config)


def _unit(x):
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))


# Our name -> the name in the safetensors file.
_TOWERS = {"image": "vision_model", "text": "text_model"}
_IN_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_OUTSIDE = {
    "image.kernel": "vision_model.embeddings.patch_embedding.weight",
    "image.opening": "vision_model.embeddings.class_embedding",
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "image.norm_before": "vision_model.pre_layrnorm",  # their spelling
    "image.norm_after": "vision_model.post_layernorm",
    "image.projection": "visual_projection.weight",
    "text.words": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm_after": "text_model.final_layer_norm",
    "text.projection": "text_projection.weight",
}


def _source(name: str):
    """The stored array for one of our params; matrices are stored (out, in), patches (out, colour, height, width)."""
    if name == "image.kernel":
        return _OUTSIDE[name], lambda array: array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    if name in _OUTSIDE:
        return _OUTSIDE[name], np.transpose if name.endswith("projection") else np.asarray
    unit, leaf = name.rsplit(".", 1)
    if unit in _OUTSIDE:
        stored = _OUTSIDE[unit]
    else:
        tower, _, layer, part = unit.split(".")
        stored = f"{_TOWERS[tower]}.encoder.layers.{layer.removeprefix('layer')}.{_IN_LAYER[part]}"
    ending = "bias" if leaf == "bias" else "weight"
    return f"{stored}.{ending}", np.transpose if leaf == "kernel" else np.asarray


def config_of(arrays: Mapping[str, np.ndarray], published: Mapping, path: pathlib.Path) -> CLIPConfig:
    """Sizes from the arrays; heads, activation and closing token from config.json, where there is one.

    Raises:
      UserError: naming an array without which this is no CLIP.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim != axes:
            problem = "missing" if name not in arrays else f"{arrays[name].shape}, which does not fit"
            raise UserError(f"{path} holds no CLIP: array {name} is {problem}")
        return arrays[name].shape

    def tower(ours: str, width: int) -> TowerConfig:
        said, prefix = published.get(f"{'vision' if ours == 'image' else 'text'}_config") or {}, _TOWERS[ours]
        layers = 0
        while f"{prefix}.encoder.layers.{layers}.mlp.fc1.weight" in arrays:
            layers += 1
        feed_forward, _ = shape(f"{prefix}.encoder.layers.0.mlp.fc1.weight", 2)
        heads = said.get("num_attention_heads") or max(width // HEAD_WIDTH, 1)
        if not isinstance(heads, int) or width % heads:
            raise UserError(f"{path}: {heads} attention heads do not divide a width of {width}")
        gelu = said.get("hidden_act") or "quick_gelu"
        if gelu not in ("quick_gelu", "gelu"):
            raise UserError(f"{path}: the activation must be quick_gelu or gelu, got {gelu!r}")
        return TowerConfig(width, layers, heads, feed_forward, gelu)

    image_width, _, patch, _ = shape(_OUTSIDE["image.kernel"], 4)
    places, _ = shape(_OUTSIDE["image.positions"], 2)
    vocabulary, text_width = shape(_OUTSIDE["text.words"], 2)
    positions, _ = shape(_OUTSIDE["text.positions"], 2)
    embedding, _ = shape(_OUTSIDE["text.projection"], 2)
    closing = (published.get("text_config") or {}).get("eos_token_id")
    return CLIPConfig(
        image=tower("image", image_width),
        text=tower("text", text_width),
        image_size=round((places - 1) ** 0.5) * patch,
        patch=patch,
        vocabulary=vocabulary,
        positions=positions,
        # Files of the first years say 2 and mean the largest number, which is what closes a text.
        closing=closing if isinstance(closing, int) and closing != 2 else vocabulary - 1,
        embedding=embedding,
    )


@dataclasses.dataclass(frozen=True)
class CLIP:
    """The network with its weights; `load(folder)` makes one. `tokenizer` is None where only images are embedded."""

    params: functional.Params
    config: CLIPConfig
    tokenizer: tokenizers.Tokenizer | None = None

    def image_features(self, frames_NHWC: np.ndarray, *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Unit vectors, float32 (N, embedding).

        Args:
          frames_NHWC: uint8, or floats in [-1, 1] (rounded to bytes, as the reference reads files), of any size.
          progress: called with the number of frames done.
        """
        frames_NHWC = pixels.checked(frames_NHWC, "NHWC")

        def apply(frames):
            seen = prepared(pixels.bytes_of(frames), self.config.image_size)
            return _embed_images(self.config, self.params["image"], seen)

        found = list(pixels.in_batches(apply, frames_NHWC, size=_BATCH, progress=progress))
        return np.concatenate(found or [np.zeros((0, self.config.embedding), np.float32)])

    def text_features(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Unit vectors, float32 (N, embedding); what goes beyond 77 tokens is cut off, as in the reference.

        Raises:
          UserError: the model was loaded without a tokenizer.
        """
        ids_NL = self.tokenize(texts)

        def apply(ids):
            return _embed_texts(self.config, self.params["text"], ids)

        found = list(pixels.in_batches(apply, ids_NL, size=_BATCH, progress=progress))
        return np.concatenate(found or [np.zeros((0, self.config.embedding), np.float32)])

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """int32 (N, positions): opening token, text, closing token, then closing tokens to the end."""
        if self.tokenizer is None:
            raise UserError(f"CLIP reads text with tokenizer.json, which is missing beside the weights; {WHERE}")
        L, closing = self.config.positions, self.config.closing
        ids_NL = np.full((len(texts), L), closing, np.int32)
        encodings = self.tokenizer.encode_batch([text.encode("utf-8", "replace").decode() for text in texts])
        for row_L, encoding in zip(ids_NL, encodings):
            ids = encoding.ids[: L - 1] if len(encoding.ids) > L else encoding.ids
            row_L[: len(ids)] = ids
        return ids_NL


def prepared(frames_NHWC: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames -> what the image tower sees: bicubic, middle cut out, normalised; float32 (N, size, size, 3)."""
    _, H, W, _ = frames_NHWC.shape
    height, width = (size, int(size * W / H)) if H <= W else (int(size * H / W), size)
    top, left = (height - size) // 2, (width - size) // 2
    frames = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames_NHWC
    ]
    middle = np.stack(frames)[:, top : top + size, left : left + size].astype(np.float32)
    return (middle / np.float32(255) - _MEAN) / _DEVIATION


def _exactly(kind):
    def apply(config, params, inputs):
        with jax.default_matmul_precision("highest"):
            return functional.split(lambda rngs: kind(config)).apply(params, inputs)

    return jax.jit(apply, static_argnums=0)


_embed_images, _embed_texts = _exactly(ImageTower), _exactly(TextTower)


def load(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> CLIP:
    """CLIP from a folder, or a safetensors file beside which config.json and tokenizer.json lie.

    Args:
      tokenizer: tokenizer.json, where it lies elsewhere.

    Raises:
      UserError: a file is missing (says where people get it), cut, or of another network (names the array).
    """
    path = weight_files.named_file(path, "CLIP", WHERE)
    arrays = weight_files.read_safetensors(path)
    config = config_of(arrays, _published(path.with_name("config.json")), path)
    abstract = functional.split(lambda rngs: CLIPNetwork(config)).abstract
    params = weight_files.params_of(arrays, abstract, _source, path=path, what="CLIP")
    vocabulary = pathlib.Path(tokenizer) if tokenizer else path.with_name("tokenizer.json")
    read = _tokenizer(vocabulary, config) if tokenizer or vocabulary.is_file() else None
    return CLIP(jax.tree.map(jnp.asarray, params), config, read)


def _published(path: pathlib.Path) -> Mapping:
    try:
        published = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    return published if isinstance(published, dict) else {}


def _tokenizer(path: pathlib.Path, config: CLIPConfig) -> tokenizers.Tokenizer:
    try:
        read = tokenizers.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"cannot read tokenizer {path}: {error}") from None
    if read.get_vocab_size() > config.vocabulary:
        raise UserError(
            f"tokenizer {path} has {read.get_vocab_size()} tokens, the weights {config.vocabulary}: "
            "they do not belong together"
        )
    read.no_padding()
    read.no_truncation()
    return read
