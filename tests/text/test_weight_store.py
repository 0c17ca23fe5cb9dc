"""Weights in a bucket are those of a local folder, read piece by piece; what a bucket refuses is said in one line."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.cli import main
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import weight_store
from imagen_video_jax.text.t5_weights import open_weights
from tests.text.fake_bucket import serving
from tests.text.t5_checkpoints import hugging_face, random_arrays, write_safetensors, write_t5x

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x_tiny"
ARRAYS = random_arrays()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for the process: TensorStore reads its address once."""
    folder = tmp_path_factory.mktemp("bucket")
    shutil.copytree(FIXTURE / "checkpoint_0", folder / "t5/tiny/checkpoint_0")
    (folder / "t5/tiny/checkpoint_7.tmp-1700000000").mkdir()
    (folder / "t5/tiny/checkpoint_7.tmp-1700000000/checkpoint").write_bytes(b"never finished")
    write_t5x(folder / "pieces", ARRAYS, parts=3, compressor="zstd")
    write_safetensors(folder / "hf", hugging_face(ARRAYS), shards=3)
    write_t5x(folder / "lost", ARRAYS, parts=2)
    (folder / "lost/target.encoder.layers_0.mlp.wo.kernel/1.0").unlink()
    with serving(folder) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield server


def flat(weights):
    return {name: array.whole() for name, array in weights._arrays.items()}


@pytest.mark.parametrize("path", ["t5/tiny/checkpoint_0", "t5/tiny", "t5/tiny/checkpoint_0/checkpoint", "t5/tiny/"])
def test_the_fixture_embeds_from_a_bucket_as_from_its_folder(server, tmp_path, path):
    with np.load(FIXTURE / "encoder_ref.npz") as file:
        ids_BL, expected_BLD = file["ids"], file["out"]
    np.save(tmp_path / "ids.npy", ids_BL)
    server.requests.clear()
    command = ["embed", "--encoder", "t5", "--weights", f"gs://weights/{path}", "--ids", str(tmp_path / "ids.npy")]
    assert main([*command, "--npz", str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as file:
        assert np.abs(file["embeddings"] - expected_BLD)[ids_BL > 0].max() < 1e-5
    assert server.requests, "read from the server"


@pytest.mark.parametrize("path", ["pieces", "hf", "hf/model.safetensors.index.json"])
def test_every_format_is_the_same_in_a_bucket(server, path):
    there, here = open_weights(f"gs://weights/{path}"), open_weights(server.folder / path)
    assert there.config == here.config
    assert there.content_hash() == here.content_hash()
    found = flat(there)
    for name, array in flat(here).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_only_the_wanted_part_of_a_file_is_asked_for(server):
    array = open_weights("gs://weights/hf")._arrays["embedding"]
    whole = array.whole()
    server.requests.clear()
    np.testing.assert_array_equal(array.read((slice(10, 20), slice(2, 5))), whole[10:20, 2:5])
    ((_, asked),) = server.requests
    begin, end = map(int, asked.removeprefix("bytes=").split("-"))
    assert end + 1 - begin == 10 * array.shape[1] * array.dtype.itemsize


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        open_weights(path).load(jnp.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_named(server):
    for path in ("gs://another-bucket/t5", "gs://weights/nothing", "gs://weights/lost/nothing/checkpoint"):
        text = refused(path)
        assert path.removesuffix("/checkpoint") in text
        assert "no such bucket or folder" in text
    assert "A_B" in refused("gs://A_B!/t5")
    text = refused("gs://weights/lost")
    assert "array target.encoder.layers_0.mlp.wo.kernel" in text
    assert "no such file: gs://weights/x.safetensors" in refused("gs://weights/x.safetensors")


def test_refusal_and_silence_are_told_apart(server, monkeypatch, capsys):
    monkeypatch.setattr(weight_store, "_RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"})
    monkeypatch.setattr(server, "failure", 403)
    assert "may not be read (Anonymous caller does not have access.); log in: gcloud" in refused("gs://weights/t5/tiny")
    monkeypatch.setattr(server, "failure", 503)
    ids = server.folder / "ids.npy"
    np.save(ids, np.ones((1, 4), np.int32))
    command = ["embed", "--encoder", "t5", "--weights", "gs://weights/t5/tiny", "--ids", str(ids)]
    assert main([*command, "--npz", str(server.folder / "out.npz")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: gs://weights/t5/tiny/checkpoint cannot be reached")
    assert not (server.folder / "out.npz").exists()
