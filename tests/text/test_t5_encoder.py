"""The T5 encoder is T5X's and Hugging Face's: same states for same weights, whatever the size, length and padding."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import chips, functional, partitioning
from imagen_video_jax.compiling import devices_of
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.t5_encoder import SIZES, T5Config, T5Encoder, relative_buckets
from tests.text.t5_checkpoints import TINY, hugging_face, random_arrays, reference, write_safetensors, write_t5x

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x_tiny"


@pytest.mark.parametrize("path", [FIXTURE, FIXTURE / "checkpoint_0", FIXTURE / "checkpoint_0" / "checkpoint"])
def test_a_checkpoint_that_t5x_wrote_gives_the_states_that_t5x_computed(path):
    with np.load(FIXTURE / "encoder_ref.npz") as file:
        ids_BL, expected_BLD = file["ids"], file["out"]
    text_BLD, mask_BL = TextEncoder.t5(str(path)).embed_ids(ids_BL)
    np.testing.assert_array_equal(mask_BL, ids_BL > 0)
    assert np.abs(text_BLD - expected_BLD)[mask_BL].max() < 1e-5
    assert not text_BLD[~mask_BL].any()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(TINY, gated=False),
        T5Config(vocabulary=33, width=10, heads=5, head_width=2, feed_forward=7, layers=3),
        T5Config(vocabulary=40, width=16, heads=1, head_width=24, feed_forward=8, layers=1),
    ],
)
def test_states_are_those_of_the_formula_for_any_size(config, tmp_path):
    arrays = random_arrays(config)
    ids_L = np.random.default_rng(1).integers(1, config.vocabulary, 120).astype(np.int32)
    (text_LD,), _ = TextEncoder.t5(str(write_t5x(tmp_path / "c", arrays))).embed_ids(ids_L[None])
    np.testing.assert_allclose(text_LD, reference(arrays, ids_L, config), atol=2e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_t5x(tmp_path_factory.mktemp("t5") / "c", random_arrays()))


def test_padding_company_and_order_change_nothing(tiny):
    encoder, rng = TextEncoder.t5(tiny), np.random.default_rng(0)
    ids_BL = np.zeros((9, 40), np.int32)
    for row, length in enumerate([1, 2, 40, 17, 16, 33, 5, 24, 39]):
        ids_BL[row, :length] = rng.integers(1, TINY.vocabulary, length)
    text_BLD, mask_BL = encoder.embed_ids(ids_BL)
    for row in range(9):
        length = mask_BL[row].sum()
        alone_BLD, _ = encoder.embed_ids(ids_BL[row : row + 1, :length])
        np.testing.assert_allclose(text_BLD[row, :length], alone_BLD[0], atol=2e-6)


def test_a_token_never_sees_a_masked_one(tiny):
    encoder = TextEncoder.t5(tiny)
    network = functional.split(lambda rngs: T5Encoder(TINY))
    ids_BL = jnp.asarray([[5, 6, 7, 8, 9, 10]])
    mask_BL = jnp.asarray([[True, False, True, True, False, True]])

    def of_embedding(table):
        states = network.apply(encoder._params | {"embedding": table}, ids_BL, mask_BL)
        return (states * mask_BL[:, :, None]).sum(-1).max()

    seen_V = np.abs(jax.grad(of_embedding)(encoder._params["embedding"])).sum(1)
    assert (seen_V[[5, 7, 8, 10]] > 0).all()
    assert (seen_V[[6, 9]] == 0).all()


def test_bucket_edges_are_those_of_the_published_networks():
    row = relative_buckets(301)[150]
    edges = [distance for distance in range(1, 151) if row[150 - distance] != row[150 - distance + 1]]
    assert edges == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert (row[:150].max(), row[150], row[151], row.max()) == (15, 0, 17, 31)


def test_bfloat16_weights_keep_float32_states_close(tiny):
    ids_BL = np.random.default_rng(0).integers(1, TINY.vocabulary, (4, 30)).astype(np.int32)
    exact_BLD, _ = TextEncoder.t5(tiny).embed_ids(ids_BL)
    rounded_BLD, _ = TextEncoder.t5(tiny, dtype=jnp.bfloat16).embed_ids(ids_BL)
    assert rounded_BLD.dtype == np.float32
    assert 0 < np.abs(rounded_BLD - exact_BLD).mean() < 0.02 * np.abs(exact_BLD).mean()


@pytest.mark.parametrize("shape", [MeshShape(fsdp=4), MeshShape(tensor=4), MeshShape(fsdp=2, tensor=2), MeshShape()])
def test_sharded_equals_unsharded(shape, tmp_path):
    config = T5Config(vocabulary=48, width=16, heads=4, head_width=4, feed_forward=32, layers=2)
    path = str(write_t5x(tmp_path / "c", random_arrays(config), parts=3))
    ids_BL = np.random.default_rng(0).integers(1, 48, (11, 20)).astype(np.int32)
    ids_BL[3, 5:] = 0
    expected_BLD, _ = TextEncoder.t5(path).embed_ids(ids_BL)
    encoder = TextEncoder.t5(path, mesh=partitioning.make_mesh(shape, jax.devices()[:4]))
    text_BLD, _ = encoder.embed_ids(ids_BL)
    np.testing.assert_allclose(text_BLD, expected_BLD, atol=1e-5)
    kernel = encoder._params["layer1"]["feed_forward"]["up"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == shape.fsdp * shape.tensor


def test_sizes_have_the_published_parameter_counts():
    def millions(name):
        return functional.parameter_count(functional.split(lambda rngs: T5Encoder(SIZES[name])).abstract) / 1e6

    assert [round(millions(name), 1) for name in ("small", "base")] == [35.3, 109.6]
    assert [round(millions(name)) for name in ("large", "xl", "xxl")] == [341, 1224, 4762]


def test_xxl_is_laid_over_eight_devices_without_being_made():
    network = functional.split(lambda rngs: T5Encoder(SIZES["xxl"], jnp.bfloat16))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network.abstract))
    for shape in (MeshShape(data=1, fsdp=8), MeshShape(tensor=8), MeshShape(fsdp=4, tensor=2)):
        shardings = partitioning.shardings_of(partitioning.make_mesh(shape), network.abstract, network.axes)
        local = jax.tree.map(
            lambda a, s: np.prod(s.shard_shape(a.shape)) * a.dtype.itemsize, network.abstract, shardings
        )
        assert sum(jax.tree.leaves(local)) < total / 8 * 1.01


LENGTHS = (1, 7, 77, 512)


@pytest.mark.parametrize(
    ("heads", "head_width", "gated"), [(3, 4, True), (4, 8, True), (5, 6, False)], ids=["odd", "even", "relu"]
)
def test_states_are_those_of_transformers(heads, head_width, gated, tmp_path):
    reason = "needs torch and transformers: pip install 'imagen_video_jax[parity]'"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    config = T5Config(
        vocabulary=60, width=24, heads=heads, head_width=head_width, feed_forward=40, layers=3, gated=gated
    )
    stored = hugging_face(random_arrays(config), alias=False)
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=60, d_model=24, d_kv=head_width, d_ff=40, num_layers=3, num_heads=heads,
            feed_forward_proj="gated-gelu" if gated else "relu",
        )
    ).eval()  # fmt: skip
    wanted = theirs.state_dict()
    theirs.load_state_dict({n: torch.from_numpy(stored.get(n, stored["shared.weight"]).copy()) for n in wanted})
    encoder = TextEncoder.t5(str(write_safetensors(tmp_path, stored)))
    rng = np.random.default_rng(0)
    ids_BL = np.zeros((len(LENGTHS) + 1, 512), np.int32)
    for row, length in enumerate(LENGTHS):
        ids_BL[row, :length] = rng.integers(1, 60, length)
    ids_BL[-1] = rng.integers(1, 60, 512) * (rng.random(512) < 0.5)  # holes
    text_BLD, mask_BL = encoder.embed_ids(ids_BL)
    with torch.no_grad():
        out = theirs(input_ids=torch.from_numpy(ids_BL).long(), attention_mask=torch.from_numpy(mask_BL).long())
    assert np.abs(text_BLD - out.last_hidden_state.numpy())[mask_BL].max() < 1e-5


@pytest.mark.slow
def test_xxl_compiles_for_sixteen_chips_of_16_gb(monkeypatch):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'imagen_video_jax[plan]'")
    monkeypatch.delenv("XLA_FLAGS")  # libtpu does not know those of the CPU's compiler
    mesh = partitioning.make_mesh(MeshShape(data=1, fsdp=16), devices_of(chips.parse_topology("v5e:4x4")))
    network = functional.split(lambda rngs: T5Encoder(SIZES["xxl"], jnp.bfloat16))

    def laid_out(abstract, sharding):
        return jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=sharding)

    params = jax.tree.map(laid_out, network.abstract, partitioning.shardings_of(mesh, network.abstract, network.axes))
    batch = partitioning.batch_sharding(mesh)
    ids, mask = (jax.ShapeDtypeStruct((64, 128), dtype, sharding=batch) for dtype in (jnp.int32, jnp.bool_))

    def encode(*arguments):
        with partitioning.activate(mesh):
            return network.apply(*arguments)

    memory = jax.jit(encode).lower(params, ids, mask).compile().memory_analysis()
    assert memory.argument_size_in_bytes < 4.77e9 * 2 / 16 * 1.01
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes < 16e9
