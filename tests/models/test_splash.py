"""Attention by the TPUs' fused kernel, its program interpreted on the CPU: the same as by products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, partitioning
from imagen_video_jax.models import attention
from imagen_video_jax.models.splash import splash
from imagen_video_jax.partitioning import MeshShape

INTERPRETED = functools.partial(splash, interpret=True)


def random_arrays(B: int, Q: int, S: int, N: int = 2, K: int = 16, dtype=jnp.float32):
    """q, k, v, and a mask with holes that leaves every example at least one key."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, length, N, K)), dtype) for length in (Q, S, S))
    mask = rng.uniform(size=(B, S)) < 0.6
    mask[:, S // 2] = True
    return q, k, v, jnp.asarray(mask)


def products(q, k, v, mask):
    return attention.attend(q, k, v, mask_BS=mask)


@pytest.mark.parametrize(("queries", "keys"), [(150, 182), (128, 5)])
def test_any_lengths_and_masks_give_what_the_products_give_and_the_same_gradients(queries, keys):
    *qkv, mask = random_arrays(2, queries, keys)

    def values_and_gradients(attend):
        def total(q, k, v):
            y = attend(q, k, v, mask)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        gradients, y = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
        return [y, *gradients]

    for found, expected in zip(values_and_gradients(INTERPRETED), values_and_gradients(products), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision_is_as_exact_as_its_type():
    arrays = random_arrays(1, 40, 72, dtype=jnp.bfloat16)
    exact = products(*(a.astype(jnp.float32) for a in arrays[:3]), arrays[3])
    found = INTERPRETED(*arrays)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    monkeypatch.setattr(attention, "splash", INTERPRETED)
    with partitioning.for_device("TPU v5p"):
        yield


MESHES = [MeshShape(data=2, tensor=2), MeshShape(data=2, height=2), MeshShape(frames=2, height=2)]


@pytest.mark.parametrize("shape", MESHES, ids=["tensor", "height", "frames_and_height"])
def test_every_device_attends_on_its_own_shard(shape, as_on_a_tpu):
    rng = np.random.default_rng(1)
    B, T, H, W, L, N, K = 2, 4, 4, 5, 3, 2, 8
    q, pixel_k, pixel_v = (rng.normal(size=(B, T, H, W, N, K)).astype(np.float32) for _ in range(3))
    k, v = (rng.normal(size=(B, L, N, K)).astype(np.float32) for _ in range(2))
    valid = np.array([[True, False, True], [False, True, False]])
    flat = [a.reshape(B, T, H * W, N, K) for a in (q, pixel_k, pixel_v)]

    def attended(kernel, mesh):
        def run(q, k, v, flat, valid):
            with partitioning.activate(mesh):
                pixels = attention.attend_pixels(*flat, kernel=kernel)
                return pixels, attention.attend_text(q, k, v, valid, kernel=kernel)

        lowered = jax.jit(run).lower(q, k, v, flat, valid)
        return lowered.compile()(q, k, v, flat, valid), lowered.as_text()

    expected, _ = attended("xla", None)
    whole, program = attended("splash", None)
    divided, divided_program = attended("splash", partitioning.make_mesh(shape))
    for one, two, right in zip(whole, divided, expected, strict=True):
        np.testing.assert_allclose(one, right, atol=1e-5)
        np.testing.assert_allclose(two, right, atol=1e-5)
    every_query = f"tensor<{B * T}x{N}x128x{K}xf32>"
    assert every_query in program
    assert every_query not in divided_program


def test_without_a_tpu_the_products_do_it():
    q, k, v, _ = random_arrays(2, 6, 6)

    def program():
        return str(
            jax.make_jaxpr(lambda *qkv: attention.attend_pixels(*qkv, kernel="splash"))(q[None], k[None], v[None])
        )

    assert "pallas_call" not in program()
    with partitioning.for_device("TPU v6 lite"):
        assert "pallas_call" in program()


def test_it_costs_what_the_products_cost_and_three_again():
    q, k, v, mask = random_arrays(2, 128, 256)

    def gradients(attend):
        return chips.count(jax.grad(lambda *qkv: attend(*qkv, mask).sum(), (0, 1, 2)), q, k, v)

    fused, plain = gradients(splash), gradients(products)
    assert fused.useful == pytest.approx(plain.flops, rel=1e-3)
    assert fused.recomputed == plain.flops / 2
