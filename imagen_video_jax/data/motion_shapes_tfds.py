"""motion_shapes as a TFDS data set: the same files, kept as bytes, so that the same clips come out.

    import imagen_video_jax.data.motion_shapes_tfds as module   # needs the extra: pip install 'imagen_video_jax[tfds]'
    module.MotionShapes(config="tiny", file_format="array_record").download_and_prepare()
    imagen-video train --config.data=tfds:motion_shapes/tiny ...

A data set of your own is made likewise: `media` holds the bytes of an mp4, webm, png, ... file, `captions` its texts;
nothing is decoded and TensorFlow is not needed. Other features are for you; `caption=a video of {label}` in the name
makes captions of them (`tfds_source.py`).
"""

import numpy as np
import tensorflow_datasets as tfds

from imagen_video_jax.data import motion_shapes
from imagen_video_jax.data.default_set import SETS, rendered
from imagen_video_jax.data.sources import open_source, sorted_by_id


class MotionShapes(tfds.core.GeneratorBasedBuilder):
    """Captioned clips of moving shapes and images of them; splits train and validation, in the order of the files."""

    VERSION = tfds.core.Version(f"{motion_shapes.VERSION}.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=f"the set {name}") for name in SETS]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "media": tfds.features.Tensor(shape=(), dtype=np.bytes_),
            "path": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "shape": tfds.features.ClassLabel(names=[*motion_shapes.SHAPES, "word"]),
            "colour": tfds.features.ClassLabel(names=list(motion_shapes.COLOURS)),
            "motion": tfds.features.ClassLabel(names=[*motion_shapes.MOTIONS, "appear"]),
        }
        # Unshuffled, so that the order (and with it every batch) is that of the folder.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str):
        folder = rendered(self.builder_config.name, split)
        for example in sorted_by_id(open_source(folder)):
            labels = {name: example.facts[name] for name in ("shape", "colour", "motion")}
            path = example.path.relative_to(folder).as_posix()
            yield (
                example.id,
                {"media": example.path.read_bytes(), "path": path, "captions": list(example.captions)} | labels,
            )
