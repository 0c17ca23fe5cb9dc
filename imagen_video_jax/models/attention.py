"""Attention over pixels, over frames, over text tokens, and attention pooling of the text.

Softmax in float32. Text enters spatial attention as in Imagen: its tokens are concatenated to the keys and values.
Temporal attention knows the order of frames through a learned bias per head and signed distance.

The kernel is chosen here and nowhere else: XLA's products (on a CPU with heads in front), cuDNN's fused attention on
NVIDIA GPUs, or the Pallas kernel "splash" on TPUs, which the partitioner cannot divide: every device calls it on its
own shard.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from imagen_video_jax.models.layers import GroupNorm, LayerNorm, Linear, foldable
from imagen_video_jax.models.splash import splash
from imagen_video_jax.partitioning import constrain, device_kind, on_each_shard

KERNELS = ("auto", "xla", "cudnn", "splash")
AUTO = "xla"  # what "auto" means


def wanted(kernel: str) -> str:
    """One of KERNELS but "auto"."""
    return AUTO if kernel == "auto" else kernel


def fused(kernel: str, q_BQNK, k_BSNK) -> bool:
    """Whether `attend` calls cuDNN: where that is wanted and it has a kernel (odd lengths have no gradient)."""
    width, lengths = q_BQNK.shape[-1], (q_BQNK.shape[1], k_BSNK.shape[1])
    return (
        wanted(kernel) == "cudnn"
        and q_BQNK.dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
        and not any(length % 2 for length in lengths)
        and foldable()
        and device_kind().startswith("NVIDIA")
    )


def on_tpu(kernel: str) -> bool:
    """Whether attention over pixels and text is the kernel `splash`: where that is wanted and there is a TPU."""
    return wanted(kernel) == "splash" and device_kind().startswith("TPU")


def valid_first(text_BLD, mask_BL):
    """Text with its valid tokens in front, in their order: what attends to it does not see the difference."""
    order_BL = jnp.argsort(~mask_BL, axis=1, stable=True)
    return jnp.take_along_axis(text_BLD, order_BL[:, :, None], axis=1), jnp.take_along_axis(mask_BL, order_BL, axis=1)


def attend(q_BQNK, k_BSNK, v_BSNK, *, mask_BS=None, kernel: str = "xla"):
    """softmax(q k / sqrt(K)) v over the keys S that the mask admits; returns BQNK.

    Args: kernel is one of KERNELS. With cuDNN the keys that the mask admits come first (`valid_first`): it takes their
      number, where a mask would be a bias of Q x S numbers for every frame.
    """
    if fused(kernel, q_BQNK, k_BSNK):
        B, S = k_BSNK.shape[:2]
        # Given where there is no mask, too: without, gradients for lengths beside its tiles were reported as NaN.
        valid_B = jnp.full((B,), S, jnp.int32) if mask_BS is None else mask_BS.sum(axis=1, dtype=jnp.int32)
        heads = ("batch", None, "heads", None)
        # By hand: the partitioner's own rule for this kernel does not hold inside of `summed_over_data`.
        return on_each_shard(_cudnn, (q_BQNK, k_BSNK, v_BSNK, valid_B), (heads, heads, heads, heads[:1]))
    if device_kind() != "cpu":  # accelerators move axes for themselves
        mask = None if mask_BS is None else mask_BS[:, None, None, :]
        return jax.nn.dot_product_attention(q_BQNK, k_BSNK, v_BSNK, mask=mask)
    bias = None if mask_BS is None else jnp.where(mask_BS, 0, jnp.finfo(jnp.float32).min)[:, None, None, :]
    return by_products(*(a.swapaxes(1, 2) for a in (q_BQNK, k_BSNK, v_BSNK)), bias).swapaxes(1, 2)


def by_products(q_MQK, k_MSK, v_MSK, bias_MQS=None):
    """softmax(q k / sqrt(K) + bias) v, MQK, as two products over the last two axes; M: heads and any axes before.

    With heads behind the pixels or frames, as in jax.nn.dot_product_attention, XLA's CPU compiler leaves many of these
    products and of their gradients to one core. Gradients of 16 frames of 240 pixels and 32 tokens took 18 ms instead
    of 33 (2 heads of 64, two cores), those of 480 pixels over 8 frames 3.7 ms instead of 4.7.
    """
    wide = jnp.promote_types(q_MQK.dtype, jnp.float32)
    logits_MQS = jnp.einsum("...qk,...sk->...qs", q_MQK, k_MSK, preferred_element_type=wide) * q_MQK.shape[-1] ** -0.5
    logits_MQS = logits_MQS if bias_MQS is None else logits_MQS + bias_MQS
    weights_MQS = jax.nn.softmax(logits_MQS, axis=-1).astype(v_MSK.dtype)
    return jnp.einsum("...qs,...sk->...qk", weights_MQS, v_MSK)


def _cudnn(q_BQNK, k_BSNK, v_BSNK, valid_B):
    return jax.nn.dot_product_attention(q_BQNK, k_BSNK, v_BSNK, key_value_seq_lengths=valid_B, implementation="cudnn")


def attend_pixels(q_BTQNK, k_BTSNK, v_BTSNK, *, mask_BTS=None, kernel: str = "xla"):
    """Attention inside each frame, BTQNK.

    Where height is sharded every pixel needs those of the other shards: then each shard takes some of the heads
    instead, for all pixels, and gives them back.
    """
    if on_tpu(kernel):
        mask_BTS = jnp.ones(k_BTSNK.shape[:3], bool) if mask_BTS is None else mask_BTS
        heads = ("batch", "frames", None, "heads" if foldable() else "moved_heads", None)
        y = on_each_shard(_splash_pixels, (q_BTQNK, k_BTSNK, v_BTSNK, mask_BTS), (heads, heads, heads, heads[:3]))
        return y if foldable() else constrain(y, *heads)
    if foldable():
        B, T = q_BTQNK.shape[:2]
        q, k, v = (a.reshape(B * T, *a.shape[2:]) for a in (q_BTQNK, k_BTSNK, v_BTSNK))
        mask = None if mask_BTS is None else mask_BTS.reshape(B * T, -1)
        return attend(q, k, v, mask_BS=mask, kernel=kernel).reshape(q_BTQNK.shape)
    q, k, v = (constrain(a, "batch", "frames", None, "moved_heads") for a in (q_BTQNK, k_BTSNK, v_BTSNK))
    y = jax.vmap(lambda q, k, v, mask: attend(q, k, v, mask_BS=mask))(q, k, v, mask_BTS)
    return constrain(y, "batch", "frames", None, "moved_heads")


def _splash_pixels(q_BTQNK, k_BTSNK, v_BTSNK, mask_BTS):
    q, k, v, mask = (a.reshape(-1, *a.shape[2:]) for a in (q_BTQNK, k_BTSNK, v_BTSNK, mask_BTS))
    return splash(q, k, v, mask).reshape(q_BTQNK.shape)


def attend_text(q_BTHWNK, k_BLNK, v_BLNK, mask_BL, *, kernel: str = "xla"):
    """Attention of every pixel to the valid tokens, BTHWNK."""
    B, T, H, W, N, K = q_BTHWNK.shape
    if on_tpu(kernel):
        pixels, tokens = ("batch", "frames", "height", None, "heads", None), ("batch", None, "heads", None)
        return on_each_shard(_splash_text, (q_BTHWNK, k_BLNK, v_BLNK, mask_BL), (pixels, tokens, tokens, tokens[:2]))
    if foldable():
        q = q_BTHWNK.reshape(B, T * H * W, N, K)
        return attend(q, k_BLNK, v_BLNK, mask_BS=mask_BL, kernel=kernel).reshape(q_BTHWNK.shape)
    logits = jnp.einsum("bthwnk,blnk->bthwnl", q_BTHWNK, k_BLNK).astype(jnp.float32) * K**-0.5
    logits = jnp.where(mask_BL[:, None, None, None, None], logits, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bthwnl,blnk->bthwnk", jax.nn.softmax(logits, axis=-1).astype(v_BLNK.dtype), v_BLNK)


def _splash_text(q_BTHWNK, k_BLNK, v_BLNK, mask_BL):
    B, *_, N, K = q_BTHWNK.shape
    return splash(q_BTHWNK.reshape(B, -1, N, K), k_BLNK, v_BLNK, mask_BL).reshape(q_BTHWNK.shape)


def attend_frames(q_MTNK, k_MTNK, v_MTNK, bias_NTT):
    """Attention over T frames at each pixel (M: any axes before), MTNK."""
    if device_kind() == "cpu":
        return by_products(*(a.swapaxes(-3, -2) for a in (q_MTNK, k_MTNK, v_MTNK)), bias_NTT).swapaxes(-3, -2)
    logits_MNTT = jnp.einsum("...tnk,...snk->...nts", q_MTNK, k_MTNK).astype(jnp.float32) * q_MTNK.shape[-1] ** -0.5
    weights_MNTT = jax.nn.softmax(logits_MNTT + bias_NTT, axis=-1).astype(v_MTNK.dtype)
    return jnp.einsum("...nts,...snk->...tnk", weights_MNTT, v_MTNK)


class SpatialAttention(nnx.Module):
    """Self-attention over the pixels of each frame and/or cross-attention to text tokens, as a residual.

    With both, text tokens join the keys and values of the self-attention (Imagen, appendix B); with text alone it is
    plain cross-attention, which works at any resolution.
    """

    def __init__(self, rngs, channels: int, *, head_width: int, pixels: bool, text_width: int | None, kernel: str):
        self.heads = max(channels // head_width, 1)
        self.pixels, self.kernel = pixels, kernel
        self.norm = GroupNorm(channels)
        self.query = Linear(rngs, channels, channels, axes=("embed", "heads"), bias=False)
        if pixels:
            self.key_value = Linear(rngs, channels, 2 * channels, axes=("embed", "heads"), bias=False)
        self.text = text_width is not None
        if self.text:
            self.text_norm = LayerNorm(text_width)
            self.text_key_value = Linear(rngs, text_width, 2 * channels, axes=("embed", "heads"), bias=False)
        self.out = Linear(rngs, channels, channels, axes=("heads", "embed"), scale=0.0)

    def __call__(self, x_BTHWC, text_BLD, text_mask_BL):
        B, T, H, W, C = x_BTHWC.shape
        N = self.heads
        h = self.norm(x_BTHWC)
        q = constrain(self.query(h), "batch", "frames", "height")
        if not self.pixels:
            k, v = self._text_keys(text_BLD.astype(h.dtype))
            y = attend_text(q.reshape(B, T, H, W, N, C // N), k, v, text_mask_BL, kernel=self.kernel)
        else:
            key_value = constrain(self.key_value(h), "batch", "frames", "height")
            k, v = jnp.split(key_value.reshape(B, T, H * W, N, 2 * C // N), 2, axis=-1)
            mask = None
            if self.text:
                text_k, text_v = (jnp.repeat(a[:, None], T, axis=1) for a in self._text_keys(text_BLD.astype(h.dtype)))
                k, v = jnp.concatenate([k, text_k], axis=2), jnp.concatenate([v, text_v], axis=2)
                text_mask_BTL = jnp.repeat(text_mask_BL[:, None], T, axis=1)
                mask = jnp.concatenate([jnp.ones((B, T, H * W), bool), text_mask_BTL], axis=2)
            y = attend_pixels(q.reshape(B, T, H * W, N, C // N), k, v, mask_BTS=mask, kernel=self.kernel)
        y = constrain(y.reshape(B, T, H, W, C), "batch", "frames", "height")
        return x_BTHWC + self.out(y)

    def _text_keys(self, text_BLD):
        B, L, _ = text_BLD.shape
        key_value = self.text_key_value(self.text_norm(text_BLD)).reshape(B, L, self.heads, -1)
        return jnp.split(key_value, 2, axis=-1)


class TemporalAttention(nnx.Module):
    """Self-attention over the frames at each pixel, as a residual; one frame attends to itself."""

    def __init__(self, rngs, channels: int, *, head_width: int, max_distance: int):
        self.heads = max(channels // head_width, 1)
        self.max_distance = max_distance
        self.norm = GroupNorm(channels)
        self.query_key_value = Linear(rngs, channels, 3 * channels, axes=("embed", "heads"), bias=False)
        self.bias = nnx.Param(_looking_around(self.heads, max_distance), sharding_names=("heads", None))
        self.out = Linear(rngs, channels, channels, axes=("heads", "embed"), scale=0.0)

    def __call__(self, x_BTHWC):
        B, T, H, W, C = x_BTHWC.shape
        N = self.heads
        qkv = self.query_key_value(self.norm(x_BTHWC)).transpose(0, 2, 3, 1, 4)
        q, k, v = jnp.split(qkv.reshape(B, H, W, T, N, 3 * C // N), 3, axis=-1)
        distance_TT = jnp.arange(T)[None, :] - jnp.arange(T)[:, None]
        distance_TT = jnp.clip(distance_TT, -self.max_distance, self.max_distance) + self.max_distance
        bias_NTT = self.bias[...][:, distance_TT]
        y = attend_frames(q, k, v, bias_NTT)
        return x_BTHWC + self.out(y.reshape(B, H, W, T, C).transpose(0, 3, 1, 2, 4))


def _looking_around(heads: int, max_distance: int):
    """Bias at the start, by head and signed distance: -|distance - offset|, offsets -1, 1, -2, 2, ... (3 at most).

    So a new layer already mixes neighbouring frames, as a convolution does; from zeros it takes hundreds of steps to
    tell the frames before from those after.
    """
    offset_N1 = jnp.array([(head // 2 % 3 + 1) * (-1) ** (head + 1) for head in range(heads)])[:, None]
    return -jnp.abs(jnp.arange(-max_distance, max_distance + 1)[None] - offset_N1).astype(jnp.float32)


class AttentionPooling(nnx.Module):
    """Text tokens -> one vector: a learned query attends to the valid tokens."""

    def __init__(self, rngs, text_width: int, width: int, *, heads: int):
        self.heads = heads
        self.norm = LayerNorm(text_width)
        self.query = nnx.Param(
            jax.random.normal(rngs.params(), (heads, width // heads)) * 0.02, sharding_names=("heads", None)
        )
        self.key_value = Linear(rngs, text_width, 2 * width, axes=("embed", "heads"), bias=False)
        self.out = Linear(rngs, width, width, axes=("heads", "embed"))

    def __call__(self, text_BLD, text_mask_BL):
        B, L, _ = text_BLD.shape
        k, v = jnp.split(self.key_value(self.norm(text_BLD)).reshape(B, L, self.heads, -1), 2, axis=-1)
        q = jnp.broadcast_to(self.query[...].astype(k.dtype), (B, 1, *self.query[...].shape))
        return self.out(attend(q, k, v, mask_BS=text_mask_BL).reshape(B, -1))
