"""TFDS names: media come out as they went in, captions are features or made of labels, nothing is downloaded."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.cli import main
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import WRONG_REQUEST, UserError
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.files import read_media, write_video

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra: pip install 'imagen_video_jax[tfds]'")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_video(path, np.full((4, 16, 24, 3), 90, np.uint8), fps=8)
    return path.read_bytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, clip):
    picture = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 20, 30)).save(picture, "PNG")

    class Clips(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "media": tfds.features.Tensor(shape=(), dtype=np.bytes_),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.ClassLabel(names=["riding_a_horse", "still"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, media in enumerate([clip, picture.getvalue(), b"<html>", clip]):
                yield number, {"media": media, "captions": [f"caption {number}", "again"], "label": number % 2}

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(4, 6, 3)), "text": tfds.features.Text()}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": picture.getvalue(), "text": "a dark picture"}

    class Frames(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"video": tfds.features.Sequence(tfds.features.Image(shape=(4, 6, 3))), "fps": np.float32}
            features["caption"] = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            frames = [io.BytesIO(picture.getvalue()) for _ in range(5)]
            yield 0, {"video": frames, "fps": 8.0, "caption": "it stays dark"}

    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Clips, Pictures, Frames):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def _own_data_dir(data_dir, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(data_dir))


def test_media_and_captions_come_out_as_they_went_in(clip):
    with pytest.raises(UserError, match=r"00000002: .*not a video or image we read"):
        open_source("tfds:clips")
    source = open_source("tfds:clips?split=train[:2]")
    (video,), (image,) = source.videos, source.images
    assert video.captions == ("caption 0", "again")
    assert video.media() == EncodedMedia(str(video.path), clip)
    np.testing.assert_array_equal(read_media(image.media()).frames_THWC[0, 0, 0], (10, 20, 30))


def test_captions_are_made_of_labels():
    source = open_source("tfds:clips?split=train[:1]&caption=a video of {label}")
    assert source.captions == ("a video of riding a horse",)


def test_images_are_read_without_their_decoder():
    (image,) = open_source("tfds:pictures").images
    assert image.captions == ("a dark picture",)
    np.testing.assert_array_equal(read_media(image.media()).frames_THWC[0, 0, 0], (10, 20, 30))


def test_a_sequence_of_images_is_a_video_whose_frames_are_decoded_only_when_it_is_shown(monkeypatch):
    monkeypatch.setattr(tfds.features.Image, "decode_batch_example_np", lambda *_: pytest.fail("decoded to be listed"))
    (video,) = open_source("tfds:frames").videos
    assert video.captions == ("it stays dark",)
    shown = video.media()
    assert (shown.frames_THWC.shape, shown.fps) == ((5, 4, 6, 3), 8.0)
    np.testing.assert_array_equal(shown.frames_THWC[4, 0, 0], (10, 20, 30))


def test_a_video_feature_is_refused_with_what_to_do_instead(data_dir, capfd):
    """Its class cannot even be made without TensorFlow."""
    folder = shutil.copytree(data_dir / "frames", data_dir / "videos") / "1.0.0"
    described = json.loads((folder / "features.json").read_text())
    described["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "4", "6", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    (folder / "features.json").write_text(json.dumps(described))
    for file in folder.glob("frames-*"):
        file.rename(folder / file.name.replace("frames", "videos"))
    about = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(about.replace('"name": "frames"', '"name": "videos"'))
    assert main(["inspect", "tfds:videos"]) == WRONG_REQUEST
    (line,) = capfd.readouterr().err.splitlines()
    assert "needs TensorFlow, as Video does; build the set with the bytes of the video files" in line


def test_rows_of_a_damaged_shard_are_named(data_dir):
    (shard,) = (data_dir / "pictures").rglob("*array_record-*")
    whole = shard.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 100):
        shard.write_bytes(whole[:size])
        with pytest.raises(UserError, match="00000000: cannot be read") as caught:
            open_source("tfds:pictures")
        assert "\n" not in str(caught.value)
    shard.write_bytes(whole)


def test_a_template_may_have_commas_and_braces_of_its_own():
    source = open_source("tfds:clips?split=train[:1]&caption=a {label}, seen {")
    assert source.captions == ("a riding a horse, seen {",)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("tfds:no_such_set", r"cannot be opened .* make it first: tfds build no_such_set"),
        ("tfds:clips?split=test", "cannot be opened"),
        ("tfds:clips?caption={nope}", "names 'nope'; known are media, captions, label"),
        ("tfds:clips?caption={label.__class__}", "names 'label.__class__'"),
        ("tfds:clips?size=3", "unknown option 'size'"),
    ],
)
def test_wrong_names_are_one_line(name, match):
    with pytest.raises(UserError, match=match) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)
