"""What a run reads: its data, its held-out data and the embeddings of their captions, opened and checked."""

import functools
import os
import pathlib

from jax.sharding import Mesh

from imagen_video_jax import partitioning
from imagen_video_jax.data.batches import open_batches
from imagen_video_jax.data.buckets import parse_sizes
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.loading import Decoded
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embedding_cache import EmbeddingCache, check_same
from imagen_video_jax.training.agreement import contents_of, facts
from imagen_video_jax.training.train_config import TrainConfig

MOST_DECODED = 2 << 30  # bytes of decoded videos in memory


def clip_spec(config: TrainConfig, frames: int) -> ClipSpec:
    """The clips of `frames` frames that a config trains on."""
    stage = config.stage
    return ClipSpec(
        frames,
        stage.height,
        stage.width,
        stage.fps,
        crop=config.crop,
        short=config.short,
        part=stage.crop,
        grid=stage.crop_grid,
    )


class Inputs:
    """The sources and the embedding cache that a config names.

    Attributes: source; validation (None without one); embeddings; contents: what tells the source from any other.
    """

    def __init__(self, config: TrainConfig, decoded: Decoded | None = None):
        """`decoded` holds videos for longer than this object."""
        self._config, self._decoded = config, decoded or Decoded(MOST_DECODED)
        self.source = open_source(config.data)
        self.validation = open_source(config.validation) if config.validation else None
        self.embeddings = EmbeddingCache.open(pathlib.Path(config.embeddings))

    @functools.cached_property
    def contents(self) -> str:
        return contents_of(self.source)

    def facts(self, workdir: pathlib.Path) -> dict[str, str]:
        """What all processes of a job must have alike."""
        return facts(self._config, workdir, [self.source, self.validation], self.embeddings.info)

    def check_text(self, encoder: dict | None, workdir: pathlib.Path) -> None:
        """Finds a wrong or incomplete embedding cache before anything is compiled.

        Args: encoder is the one that the newest checkpoint in `workdir` was trained with.
        """
        config, width = self._config, self.embeddings.width
        wanted = config.stage.network.text_width
        if width != wanted:
            raise UserError(f"{config.embeddings} is {width} wide, stage.network.text_width is {wanted}")
        check_same(encoder, str(workdir), self.embeddings.info, config.embeddings)
        captions = [*self.source.captions, *(self.validation.captions if self.validation else ())]
        missing = self.embeddings.missing(captions)
        if missing:
            raise UserError(
                f"{config.embeddings} lacks {len(missing)} of the captions of {config.data}, the first: "
                f"{missing[0][:60]!r}; leave --config.embeddings out to have them embedded"
            )

    def batches(self, mesh: Mesh, step: int) -> dict:
        """Streams of batches from number `step` on: "video" and "image", whichever the data and the config have."""
        config, stage = self._config, self._config.stage
        wanted = {
            "video": (self.source.videos, config.batch_size, stage.train_frames),
            "image": (self.source.images, config.image_batch_size, 1),
        }
        streams: dict = {}
        for kind, (examples, size, frames) in wanted.items():
            if not size or not examples:
                continue
            streams[kind] = open_batches(
                examples,
                clip_spec(config, frames),
                batch_size=size,
                seed=config.seed,
                embeddings=self.embeddings,
                text_length=stage.text_length,
                start_step=step,
                weights=self.source.weights,
                sizes=parse_sizes(config.buckets),
                follow=streams["video"].bucket_counts if config.buckets and "video" in streams else (),
                bad_share=config.bad_share,
                decoded=self._decoded,
                slots=partitioning.batch_slots(mesh, size),
                threads=config.readers or min(max(os.cpu_count() or 1, 2), 16),
            )
        if not streams:
            raise UserError(
                f"{config.data} holds {len(self.source.videos)} videos and {len(self.source.images)} images: nothing "
                f"to train on with batch_size {config.batch_size} and image_batch_size {config.image_batch_size}"
            )
        return streams
