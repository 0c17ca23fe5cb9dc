"""Tensors come out of a torch file as torch would load them, and nothing in it is ever called."""

import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from random_weights import torch_or_skip

from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import torch_file


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(path, pickled: bytes, **members: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize("zip_layout", [True, False])
def test_tensors_come_out_as_torch_saved_them(tmp_path, zip_layout):
    torch = torch_or_skip()
    layer = torch.nn.BatchNorm1d(4)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = layer.state_dict()
    state |= {"view": base[1:3, ::2], "turned": base.T, "half": base.half(), "parameter": torch.nn.Parameter(base)}
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zip_layout)
    found = torch_file.read(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
        assert found[name].dtype == tensor.detach().numpy().dtype
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 200).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cannot read weights .*w\.pth: it is cut, or no torch file"):
            torch_file.read(path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            torch_file.read(path)


@pytest.mark.parametrize("layout", ["zip", "row"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, layout):
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    pickled = pickle.dumps({"a": Canary(canary)}, 2)
    if layout == "zip":
        zipped(path, pickled)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + pickled)
    with pytest.raises(UserError, match=r"it would call posix\.mkdir"):
        torch_file.read(path)
    assert not canary.exists()
    pickle.loads(pickled)
    assert canary.exists(), "the pickle was not one that runs code"


def tensor_pickle(offset, shape, strides, count):
    """{'a': a float tensor}, from opcodes: torch need not be installed to write one."""
    out = io.BytesIO(b"")
    out.write(b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((")
    out.write(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu")
    out.write(pickle.dumps(count, 2)[2:-1] + b"tQ")
    for value in (offset, shape, strides):
        out.write(pickle.dumps(value, 2)[2:-1])
    out.write(b"\x89ccollections\nOrderedDict\n)RtRs.")
    return out.getvalue()


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    path, data = tmp_path / "w.pth", np.arange(6, dtype=np.float32).tobytes()
    found = torch_file.read(zipped(path, tensor_pickle(0, (2, 3), (3, 1), 6), **{"0": data}))
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
    for offset, shape, strides in (
        (1, (2, 3), (3, 1)),
        (0, (7,), (1,)),
        (5, (2,), (-1,)),
        (0, (2, 3), (1 << 60, 1)),
        (0, (1 << 40,), (0,)),
    ):
        with pytest.raises(UserError, match="numbers for a tensor of shape"):
            torch_file.read(zipped(path, tensor_pickle(offset, shape, strides, 6), **{"0": data}))
