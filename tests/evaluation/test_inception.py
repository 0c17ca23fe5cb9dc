"""Inception-v3 equals an independent implementation in torch."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from random_weights import flat, random_params, torch_or_skip

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import inception
from imagen_video_jax.evaluation.inception import InceptionConfig, InceptionV3

TINY = InceptionConfig(shrink=16)
_THEIR_LEAF = {v: k for k, v in inception._ARRAYS.items()}


def network():
    return functional.split(lambda rngs: InceptionV3(TINY))


def stored(params):
    """Params under the names and axes of the published file."""
    out = {}
    for name, array in flat(params).items():
        unit, leaf = name.rsplit(".", 1)
        out[f"{unit}.{inception._ARRAYS[leaf]}"] = np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if leaf == "kernel" else array
        )
    return out


def torch_features(arrays, frames_NHWC):
    """FID's Inception-v3 written in torch, block by block, on the published names."""
    torch = torch_or_skip()
    F = torch.nn.functional
    w = {name: torch.tensor(array) for name, array in arrays.items()}

    def unit(name, x, stride=1, padding=0):
        y = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        statistics = w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(y, *statistics, w[f"{name}.bn.weight"], w[f"{name}.bn.bias"], eps=1e-3))

    def average(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(n, x):
        five = unit(f"{n}.branch5x5_2", unit(f"{n}.branch5x5_1", x), padding=2)
        three = unit(f"{n}.branch3x3dbl_2", unit(f"{n}.branch3x3dbl_1", x), padding=1)
        three = unit(f"{n}.branch3x3dbl_3", three, padding=1)
        return torch.cat([unit(f"{n}.branch1x1", x), five, three, unit(f"{n}.branch_pool", average(x))], 1)

    def b(n, x):
        double = unit(f"{n}.branch3x3dbl_2", unit(f"{n}.branch3x3dbl_1", x), padding=1)
        double = unit(f"{n}.branch3x3dbl_3", double, stride=2)
        return torch.cat([unit(f"{n}.branch3x3", x, stride=2), double, F.max_pool2d(x, 3, 2)], 1)

    def c(n, x):
        seven = unit(f"{n}.branch7x7_2", unit(f"{n}.branch7x7_1", x), padding=(0, 3))
        seven = unit(f"{n}.branch7x7_3", seven, padding=(3, 0))
        double = unit(f"{n}.branch7x7dbl_2", unit(f"{n}.branch7x7dbl_1", x), padding=(3, 0))
        double = unit(f"{n}.branch7x7dbl_3", double, padding=(0, 3))
        double = unit(f"{n}.branch7x7dbl_4", double, padding=(3, 0))
        double = unit(f"{n}.branch7x7dbl_5", double, padding=(0, 3))
        return torch.cat([unit(f"{n}.branch1x1", x), seven, double, unit(f"{n}.branch_pool", average(x))], 1)

    def d(n, x):
        three = unit(f"{n}.branch3x3_2", unit(f"{n}.branch3x3_1", x), stride=2)
        seven = unit(f"{n}.branch7x7x3_2", unit(f"{n}.branch7x7x3_1", x), padding=(0, 3))
        seven = unit(f"{n}.branch7x7x3_4", unit(f"{n}.branch7x7x3_3", seven, padding=(3, 0)), stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(n, x, pooled):
        three = unit(f"{n}.branch3x3_1", x)
        double = unit(f"{n}.branch3x3dbl_2", unit(f"{n}.branch3x3dbl_1", x), padding=1)
        parts = [unit(f"{n}.branch1x1", x)]
        for stem, name in ((three, "branch3x3_2"), (double, "branch3x3dbl_3")):
            parts += [unit(f"{n}.{name}a", stem, padding=(0, 1)), unit(f"{n}.{name}b", stem, padding=(1, 0))]
        return torch.cat([*parts, unit(f"{n}.branch_pool", pooled)], 1)

    x = torch.tensor(frames_NHWC).permute(0, 3, 1, 2)
    x = unit("Conv2d_2a_3x3", unit("Conv2d_1a_3x3", x, stride=2))
    x = F.max_pool2d(unit("Conv2d_2b_3x3", x, padding=1), 3, 2)
    x = F.max_pool2d(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", x)), 3, 2)
    x = a("Mixed_5d", a("Mixed_5c", a("Mixed_5b", x)))
    x = b("Mixed_6a", x)
    for letter in "bcde":
        x = c(f"Mixed_6{letter}", x)
    x = d("Mixed_7a", x)
    x = e("Mixed_7b", x, average(x))
    x = e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
    return x.mean((2, 3)).numpy()


def test_parity_with_torch_on_random_weights():
    torch_or_skip()
    frames = np.random.default_rng(1).uniform(-1, 1, (2, 107, 91, 3)).astype(np.float32)
    params = random_params(network().abstract)
    ours, theirs = np.asarray(jax.jit(network().apply)(params, frames)), torch_features(stored(params), frames)
    assert theirs.std() > 0.01
    difference = np.abs(ours - theirs).max()
    print(f"largest difference to torch: {difference:.1e}")
    assert difference < 1e-4


def test_frames_are_resized_as_torch_does_without_antialiasing():
    torch = torch_or_skip()
    frames = np.random.default_rng(1).uniform(-1, 1, (2, 40, 31, 3)).astype(np.float32)
    for size in ((67, 19), (40, 62)):
        ours = np.asarray(inception.pixels.resized(frames, *size, half_pixel=True))
        x = torch.tensor(frames).permute(0, 3, 1, 2)
        theirs = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_a_stored_file_is_read_by_its_published_names_and_other_files_name_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "SIZE", 80)
    monkeypatch.setattr(inception, "_BATCH", 2)
    params, path = random_params(network().abstract), tmp_path / "inception.safetensors"
    arrays = stored(params) | {"fc.weight": np.zeros((4, 128), np.float32)}
    safetensors.numpy.save_file(arrays, path)
    for place in (path, tmp_path):
        loaded = inception.load(place, TINY)
    frames = np.random.default_rng(1).integers(0, 256, (3, 50, 60, 3), dtype=np.uint8)
    features = loaded.features(frames)
    assert (features.shape, features.dtype) == ((3, 128), np.float32)
    np.testing.assert_allclose(loaded.features(frames[1:]), features[1:], atol=1e-5)

    with pytest.raises(UserError, match=r"array Conv2d_1a_3x3\.bn\.bias is \(2,\), which does not fit"):
        inception.load(path)
    del arrays["Mixed_7c.branch_pool.bn.running_var"]
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=r"array Mixed_7c\.branch_pool\.bn\.running_var is missing"):
        inception.load(path, TINY)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read weights .*inception\.safetensors"):
        inception.load(path, TINY)


def test_pytorch_fids_own_kind_of_file_is_read(tmp_path):
    torch = torch_or_skip()
    params, path = random_params(network().abstract), tmp_path / "pt_inception.pth"
    torch.save({name: torch.tensor(array) for name, array in stored(params).items()}, path)
    jax.tree.map(np.testing.assert_array_equal, inception.load(path, TINY).params, params)


def test_a_missing_file_says_where_people_get_it(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"weights of Inception-v3 \(FID\): pt_inception-2015-12-05"):
            inception.load(path)
