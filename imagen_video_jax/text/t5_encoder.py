"""The T5 encoder: T5 v1.1 and Flan (gated gelu), and T5 1.0 (relu).

Per layer, on the residual stream x:

    x += attention(norm(x)) Wo            logits = q.k + bias[bucket(key - query)], without 1/sqrt(K)
    x += (gelu(norm(x) Wg) * norm(x) Wu) Wd

with norm(x) = x / sqrt(mean(x^2) + 1e-6) * scale (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv
2002.05202). No biases and no position embedding: one table of relative-position biases serves every layer.

Weights may be bfloat16; the residual stream, norms, attention logits and softmax are float32 whatever they are
(float16 overflows in this network).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagen_video_jax.partitioning import constrain

MAX_DISTANCE = 128  # distances from here on share a bucket; the same in every published T5
_EPSILON = 1e-6
_MASKED = -1e10


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder; `gated` is T5 v1.1's feed-forward, without it 1.0's."""

    vocabulary: int = 32128
    width: int = 512
    heads: int = 6
    head_width: int = 64
    feed_forward: int = 1024
    layers: int = 8
    gated: bool = True
    buckets: int = 32


# T5 v1.1 and Flan-T5 as published; tiny is for tests and dry runs.
#                         vocabulary  width  heads  head  feed-forward  layers
SIZES = {
    "tiny":     T5Config(      32128,    64,     2,   16,          128,      2),
    "small":    T5Config(      32128,   512,     6,   64,         1024,      8),
    "base":     T5Config(      32128,   768,    12,   64,         2048,     12),
    "large":    T5Config(      32128,  1024,    16,   64,         2816,     24),
    "xl":       T5Config(      32128,  2048,    32,   64,         5120,     24),
    "xxl":      T5Config(      32128,  4096,    64,   64,        10240,     24),
}  # fmt: skip


def relative_buckets(length: int, buckets: int = 32) -> np.ndarray:
    """Bucket of key minus query, (query, key) int32: half per sign, exact below a quarter, then logarithmic.

    Computed by numpy, so that an accelerator's logarithm cannot move an edge.
    """
    distance_LL = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    size_LL = np.abs(distance_LL)
    ratio_LL = np.log(size_LL.astype(np.float32) / exact + np.finfo(np.float32).eps) / np.log(MAX_DISTANCE / exact)
    # Distances below `exact` are not read from here; their logarithm is negative.
    far_LL = np.minimum(exact + (ratio_LL * (half - exact)).astype(np.int32), half - 1)
    return (np.where(size_LL < exact, size_LL, far_LL) + half * (distance_LL > 0)).astype(np.int32)


def _parameter(shape, names, dtype):
    return nnx.Param(jnp.zeros(shape, dtype), sharding_names=names)


def _product(x, kernel, out_dtype):
    """x @ kernel in the kernel's type, summed in float32."""
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32).astype(out_dtype)


class _Norm(nnx.Module):
    def __init__(self, width: int):
        self.scale = _parameter((width,), (None,), jnp.float32)

    def __call__(self, x):
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _EPSILON) * self.scale[...]


class _Attention(nnx.Module):
    def __init__(self, config: T5Config, dtype):
        D, N, K = config.width, config.heads, config.head_width
        self.heads, self.dtype = N, dtype
        self.query, self.key, self.value = (_parameter((D, N * K), ("embed", "heads"), dtype) for _ in range(3))
        self.out = _parameter((N * K, D), ("heads", "embed"), dtype)

    def __call__(self, x_BLD, bias_NLL, mask_BL):
        B, L, _ = x_BLD.shape
        kernels = (self.query, self.key, self.value)
        q, k, v = (_product(x_BLD, w[...], self.dtype).reshape(B, L, self.heads, -1) for w in kernels)
        logits = jnp.einsum("BQNK,BSNK->BNQS", q, k, preferred_element_type=jnp.float32) + bias_NLL
        weights = jax.nn.softmax(jnp.where(mask_BL[:, None, None, :], logits, _MASKED))
        y = jnp.einsum("BNQS,BSNK->BQNK", weights.astype(self.dtype), v, preferred_element_type=jnp.float32)
        return _product(y.reshape(B, L, -1), self.out[...], jnp.float32)


class _FeedForward(nnx.Module):
    def __init__(self, config: T5Config, dtype):
        D, F = config.width, config.feed_forward
        self.dtype = dtype
        if config.gated:
            self.gate = _parameter((D, F), ("embed", "mlp"), dtype)
        self.up = _parameter((D, F), ("embed", "mlp"), dtype)
        self.down = _parameter((F, D), ("mlp", "embed"), dtype)

    def __call__(self, x):
        up = _product(x, self.up[...], jnp.float32)
        if hasattr(self, "gate"):
            hidden = jax.nn.gelu(_product(x, self.gate[...], jnp.float32), approximate=True) * up
        else:
            hidden = jax.nn.relu(up)
        return _product(hidden, self.down[...], jnp.float32)


class _Layer(nnx.Module):
    def __init__(self, config: T5Config, dtype):
        self.attention_norm = _Norm(config.width)
        self.attention = _Attention(config, dtype)
        self.feed_forward_norm = _Norm(config.width)
        self.feed_forward = _FeedForward(config, dtype)

    def __call__(self, x_BLD, bias_NLL, mask_BL):
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), bias_NLL, mask_BL)
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))


class T5Encoder(nnx.Module):
    """ids_BL, mask_BL -> states BLD, float32; states at padding mean nothing."""

    def __init__(self, config: T5Config, dtype=jnp.float32):
        self.config = config
        self.embedding = _parameter((config.vocabulary, config.width), ("vocabulary", "embed"), dtype)
        self.position_bias = _parameter((config.heads, config.buckets), ("heads", None), jnp.float32)
        for index in range(config.layers):
            setattr(self, f"layer{index}", _Layer(config, dtype))
        self.norm = _Norm(config.width)

    def __call__(self, ids_BL, mask_BL):
        x = constrain(self.embedding[...][ids_BL].astype(jnp.float32), "batch")
        bias_NLL = self.position_bias[...][:, relative_buckets(ids_BL.shape[1], self.config.buckets)]
        for index in range(self.config.layers):
            x = constrain(getattr(self, f"layer{index}")(x, bias_NLL, mask_BL), "batch")
        return self.norm(x)
