"""The choice of the attention kernel; cuDNN's is stood in for by XLA with the same arguments: numbers of valid keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, functional, partitioning
from imagen_video_jax.models import attention
from imagen_video_jax.models.video_unet import VideoUNet, VideoUNetConfig
from imagen_video_jax.partitioning import MeshShape

ONE_LEVEL = {"channels": (16,), "blocks": (1,), "spatial_attention": (True,), "text_attention": (True,)}


def outputs(kernel: str) -> np.ndarray:
    """Of a network with attention over pixels and text, for captions whose valid tokens are not the first ones."""
    config = VideoUNetConfig(
        **ONE_LEVEL, temporal=("none",), text_width=8, embedding_width=16, head_width=8, attention=kernel
    )
    network = functional.split(lambda rngs: VideoUNet(rngs, config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), network.abstract)
    return jax.jit(network.apply)(
        params,
        rng.normal(size=(2, 2, 2, 4, 3)).astype(np.float32),
        logsnr_B=np.zeros(2, np.float32),
        text_BLD=rng.normal(size=(2, 4, 8)).astype(np.float32),
        text_mask_BL=np.array([[False, True, False, True], [True, False, False, False]]),
        fps_B=np.full(2, 3.0, np.float32),
    )


def test_a_fused_kernel_sees_the_same_tokens_and_without_a_gpu_the_products_do_it(monkeypatch):
    expected, products = outputs("xla"), jax.nn.dot_product_attention
    np.testing.assert_allclose(outputs("cudnn"), expected, atol=1e-5)
    calls = []

    def fused_kernel(q, k, v, *, mask=None, implementation=None, **lengths):
        calls.append(implementation)
        return products(q, k, v, mask=mask, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused_kernel)
    monkeypatch.setattr(attention, "fused", lambda kernel, q, k: kernel == "cudnn")
    np.testing.assert_allclose(outputs("cudnn"), expected, atol=1e-5)
    assert calls.count("cudnn") == 3


def test_the_fused_kernel_is_given_each_devices_own_examples_where_gradients_are_summed_over_data(monkeypatch):
    """Its own rule for the partitioner fails in there, on GPUs only: the partitioner is to see none."""
    seen = []

    def kernel(q, k, v, valid_B):
        seen.append((q.shape, valid_B.shape))
        mask = jnp.arange(k.shape[1]) < valid_B[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])

    monkeypatch.setattr(attention, "fused", lambda kernel, q, k: kernel == "cudnn")
    monkeypatch.setattr(attention, "_cudnn", kernel)
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 8, 6, 4, 16)).astype(np.float32)
    mask = np.arange(6) < rng.integers(1, 7, 8)[:, None]

    def gradient(kernel, scale, examples):
        q, k, v, mask = examples
        return jax.grad(lambda s: jnp.sum(attention.attend(s * q, k, v, mask_BS=mask, kernel=kernel) ** 2))(scale)

    expected = gradient("xla", jnp.float32(1.3), (q, k, v, mask))
    mesh = partitioning.make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    with partitioning.activate(mesh):
        found = jax.jit(lambda *given: partitioning.summed_over_data(functools.partial(gradient, "cudnn"), *given))(
            jnp.float32(1.3), partitioning.put_batch(mesh, (q, k, v, mask))
        )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert set(seen) == {((2, 6, 2, 16), (2,))}


def test_only_half_precision_and_even_lengths_on_an_nvidia_gpu_are_fused(monkeypatch):
    class Device:
        device_kind = "NVIDIA H200"

    def fused(kernel="cudnn", dtype=jnp.bfloat16, length=60, width=64):
        q = jax.ShapeDtypeStruct((2, length, 4, width), dtype)
        return attention.fused(kernel, q, jax.ShapeDtypeStruct((2, 124, 4, width), dtype))

    assert not fused()
    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert fused()
    assert not any((fused("xla"), fused(dtype=jnp.float32), fused(length=61), fused(width=20), fused(width=136)))


def test_the_fused_kernel_costs_what_the_products_cost_and_one_again(monkeypatch):
    pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 92_000)
    q, k = (jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16) for length in (60, 124))

    def gradients(kernel):
        def total(q, k, v):
            return attention.attend(q, k, v, kernel=kernel).astype(jnp.float32).sum()

        return chips.count(jax.grad(total, (0, 1, 2)), q, k, k)

    products = gradients("xla")
    monkeypatch.setattr(attention, "fused", lambda kernel, q, k: kernel == "cudnn")
    fused = gradients("cudnn")
    assert fused.useful == products.flops
    assert fused.recomputed == products.flops / 6
