"""Arrays come out of a pickle as they went in, and nothing in it is ever called."""

import contextlib
import os
import pickle

import numpy as np
import pytest

from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import pickled_arrays


def written(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_out_as_they_went_in(tmp_path, protocol):
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"params": {"a/b": {"kernel": kernel, "again": kernel}, "t": np.asfortranarray(kernel[0])}}
    tree["big"] = np.arange(5, dtype=">i8")
    tree["long"] = np.arange(1000, dtype=np.float64)
    found = pickled_arrays.read(written(tmp_path / "w.ckpt", tree, protocol))
    assert set(found) == {"params/a/b/kernel", "params/a/b/again", "params/t", "big", "long"}
    np.testing.assert_array_equal(found["params/a/b/again"], kernel)
    np.testing.assert_array_equal(found["params/t"], kernel[0])
    np.testing.assert_array_equal(found["big"], np.arange(5))
    np.testing.assert_array_equal(found["long"], tree["long"])
    assert found["params/t"].dtype == np.float32


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, protocol):
    canary = tmp_path / "canary"
    path = written(tmp_path / "w.ckpt", {"a": np.zeros(2, np.float32), "b": Canary(canary)}, protocol)
    with pytest.raises(UserError, match=r"cannot read weights .*w\.ckpt"):
        pickled_arrays.read(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists(), "the pickle was not one that runs code"


def test_what_holds_other_things_than_arrays_is_refused(tmp_path):
    for value in (3, {"a": 1}, {"a": [np.zeros(1)]}, {"a": np.array(["x"])}, {"a": np.array([{}], object)}):
        with pytest.raises(UserError, match="cannot read weights"):
            pickled_arrays.read(written(tmp_path / "w.ckpt", value))
    endless = {}
    endless["a"] = endless
    with pytest.raises(UserError, match="something else than dictionaries of arrays"):
        pickled_arrays.read(written(tmp_path / "w.ckpt", endless))


def test_every_cut_and_any_flipped_byte_gives_one_line_or_arrays(tmp_path):
    tree = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": np.ones(3, np.float64)}
    data, path = pickle.dumps(tree, 4), tmp_path / "w.ckpt"
    rng = np.random.default_rng(0)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"w\.ckpt: it is cut, or no pickle of arrays"):
            pickled_arrays.read(path)
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            pickled_arrays.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read weights .*absent\.ckpt: No such file"):
        pickled_arrays.read(tmp_path / "absent.ckpt")
