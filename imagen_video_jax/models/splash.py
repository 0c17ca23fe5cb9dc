"""Fused attention on TPUs: JAX's Pallas kernel "splash", for any lengths and masks.

The kernel keeps no logits: it reads keys and values block by block. It takes lengths in multiples of 128, so queries
and keys are padded, and padding, like a key that the mask leaves out, is of another segment than the queries.
"""

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU's vector registers
BLOCK = 512  # largest number of queries or keys at a time


def splash(q_BQNK, k_BSNK, v_BSNK, mask_BS, *, interpret: bool = False):
    """softmax(q k / sqrt(K)) v over the keys S that the mask admits (at least one for each example); returns BQNK.

    Args: interpret runs the kernel's program without a TPU, slowly.
    """
    B, Q, N, K = q_BQNK.shape
    kernel = _kernel(N, _padded(Q), _padded(k_BSNK.shape[1]), interpret)
    segments = _segments(B, Q, mask_BS)
    q, k, v = (_rows_by_head(a) for a in (q_BQNK * K**-0.5, k_BSNK, v_BSNK))
    return jax.vmap(kernel)(q, k, v, segments)[:, :, :Q].transpose(0, 2, 1, 3)


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _rows_by_head(a_BSNK):
    """BNSK with S padded."""
    S = a_BSNK.shape[1]
    return jnp.pad(a_BSNK.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, _padded(S) - S), (0, 0)))


def _segments(B: int, Q: int, mask_BS):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    keys_BS = jnp.pad(mask_BS.astype(jnp.int32), ((0, 0), (0, _padded(mask_BS.shape[1]) - mask_BS.shape[1])))
    return SegmentIds(q=jnp.ones((B, _padded(Q)), jnp.int32), kv=keys_BS)


def _kernel(heads: int, queries: int, keys: int, interpret: bool):
    """The kernel for padded lengths; imported here, since nothing but a TPU needs it."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    q, kv = _block(queries), _block(keys)
    sizes = splash_attention.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.FullMask((queries, keys))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """The largest multiple of LANES up to BLOCK that divides a padded length."""
    return max(block for block in range(LANES, BLOCK + 1, LANES) if length % block == 0)
