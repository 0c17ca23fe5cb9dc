"""Position -> one slot of a batch: decoded, cut, with the embedding of its caption; a stand-in where a file is bad."""

import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from imagen_video_jax.data.clips import ClipSpec, ShortClipError, cut_clip, frames_needed, is_short
from imagen_video_jax.data.examples import Example
from imagen_video_jax.data.interleave import Interleave
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.cover import cover
from imagen_video_jax.video.reading import MediaError, Video, read_media

# Tags that keep the two streams of random numbers apart.
_ORDER, _CLIP = 1, 2
# With fewer bad files than this, a large share of them says nothing yet.
_BAD_AT_LEAST = 10


class Embeddings(Protocol):
    """Caption -> token states, as `text/embedding_cache.py` reads them."""

    width: int

    def lookup(self, caption: str) -> np.ndarray:
        """float32 [tokens, width]; UserError when the caption is not there."""


class Item(NamedTuple):
    """One slot of a batch."""

    video_THWC: np.ndarray
    text_LD: np.ndarray
    text_mask_L: np.ndarray
    id: int
    valid: bool


class Tally:
    """Which files could not be used, over all loaders of a run.

    Attributes:
      skipped: {path: reason} of the files that could not be used so far.
      repeated: {path: reason} of the videos whose last frame was repeated to fill a clip.
    """

    def __init__(self, bad_share: float):
        self.skipped: dict[str, str] = {}
        self.repeated: dict[str, str] = {}
        self._bad_share = bad_share
        self._read: set[str] = set()
        self._bad: set[str] = set()
        self._lock = threading.Lock()

    def read(self, name: str) -> None:
        """A file that could be used."""
        if name not in self._read:
            with self._lock:
                self._read.add(name)

    def skip(self, name: str, error: MediaError | ShortClipError) -> None:
        """A file that could not; what is only short is not counted as bad, skipping it was asked for."""
        with self._lock:
            self.skipped[name] = getattr(error, "reason", str(error))
            if isinstance(error, MediaError):
                self._bad.add(name)

    def is_bad(self, name: str) -> bool:
        return name in self._bad

    def check(self) -> None:
        """Raises UserError (exit code 4) when too many of the files read so far are bad."""
        with self._lock:
            bad, seen = len(self._bad), len(self._bad) + len(self._read)
            if bad < _BAD_AT_LEAST or bad <= self._bad_share * seen:
                return
            name = min(self._bad)
            raise UserError(
                f"{bad} of the {seen} clips read so far are bad, more than {self._bad_share:.2%} (bad_share); run "
                f"imagen-video prepare to sort them out; one is {name}: {self.skipped[name]}",
                TOO_MUCH_BAD_DATA,
            )


class Decoded:
    """Decoded videos in memory, as many as there is room for. Called from several threads.

    One may serve several streams of batches, and those of a run that is opened again.
    """

    def __init__(self, room: int = 1 << 30):
        """`room` is in bytes."""
        self._room = room
        self._videos: dict[tuple, Video] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple) -> Video | None:
        return self._videos.get(key)

    def put(self, key: tuple, video: Video) -> None:
        with self._lock:
            # Nothing is ever put out: in a random order over more than fits, what came first is as good as any.
            if key not in self._videos and video.frames_THWC.nbytes <= self._room:
                self._room -= video.frames_THWC.nbytes
                self._videos[key] = video


def decode(example: Example, *, height: int, width: int, apart: bool) -> Video:
    """All frames of an example, covering a size; `apart` in a process that may be killed. MediaError where they cannot
    be had."""
    media = example.media()
    if isinstance(media, Video):
        return Video(cover(media.frames_THWC, height=height, width=width), media.fps)
    if apart:
        return isolated.read(media, height=height, width=width)
    return read_media(media, covering=(height, width))


class Loader:
    """Position -> item, for clips of one size. Called from several threads."""

    def __init__(
        self,
        examples: Sequence[Example],
        spec: ClipSpec,
        tally: Tally,
        *,
        seed: int,
        embeddings: Embeddings,
        text_length: int,
        weights: Sequence[float] = (1.0,),
        shuffle: bool = True,
        decoded: Decoded | None = None,
        apart: bool = False,
    ):
        if not examples:
            raise UserError("there are no examples to make batches of")
        if seed < 0 or text_length < 1:
            raise UserError(f"seed must be at least 0 and text_length at least 1, got {seed} and {text_length}")
        if spec.frames > 1 and (images := [example for example in examples if example.is_image]):
            raise UserError(f"{images[0].path} is an image, it cannot fill clips of {spec.frames} frames")
        self.examples = tuple(examples)
        self.spec = spec
        self.tally = tally
        self._seed = seed
        self._embeddings = embeddings
        self._text_length = text_length
        self._shuffle = shuffle
        self._apart = apart
        present = sorted({example.part for example in examples})
        self._parts = [np.array([i for i, e in enumerate(examples) if e.part == part]) for part in present]
        self._part_of = Interleave([weights[part] if part < len(weights) else 1.0 for part in present])
        self._kept = decoded or Decoded(0)
        self._order_of = functools.lru_cache(maxsize=2 * len(self._parts))(self._draw_order)

    def training_item(self, position: int) -> Item:
        """The item at a position. Where the one due cannot be used, the next of its data set that can, else of another.

        With buckets, a data set may have a single file of a size, and that a bad one.
        """
        due, number = self._part_of(position)
        for part in (*range(due, len(self._parts)), *range(due)):
            count = len(self._parts[part])
            epoch, place = divmod(number, count)
            order = self._order_of(part, epoch)
            for step in range(count):
                item = self._item(int(order[(place + step) % count]), position)
                if item is not None:
                    return item
        raise self._nothing_readable(range(len(self.examples)))

    def evaluation_item(self, position: int) -> Item:
        """The example at a position, or an invalid item."""
        item = self._item(position, position) if position < len(self.examples) else None
        if item is not None:
            return item
        if len(self.tally.skipped) == len(self.examples):
            raise self._nothing_readable(range(len(self.examples)))
        spec = self.spec
        text_LD, text_mask_L = self._text(None)
        return Item(np.zeros((spec.frames, *spec.size, 3), np.uint8), text_LD, text_mask_L, -1, False)

    def _item(self, index: int, position: int) -> Item | None:
        """Example `index` as drawn for `position`; None when it cannot be used."""
        example = self.examples[index]
        name = str(example.path)
        if name in self.tally.skipped:
            return None
        rng = np.random.default_rng([self._seed, position, _CLIP])
        caption = example.captions[int(rng.integers(len(example.captions)))] if example.captions else None
        try:
            video = self._video(index)
            clip_THWC = cut_clip(video, self.spec, rng)
        except (MediaError, ShortClipError) as error:
            self.tally.skip(name, error)
            self.tally.check()
            return None
        self.tally.read(name)
        if is_short(video, self.spec) and name not in self.tally.repeated:
            needed = frames_needed(self.spec, video.fps)
            self.tally.repeated[name] = f"{len(video.frames_THWC)} frames of the {needed} that a clip spans"
        return Item(clip_THWC, *self._text(caption), example.id, True)

    def _video(self, index: int) -> Video:
        """The decoded video, covering the clip size, from memory where it fits."""
        example = self.examples[index]
        # Not its path alone: two shards may hold a file of the same name.
        key = (example, self.spec.height, self.spec.width)
        video = self._kept.get(key)
        if video is None:
            video = decode(example, height=self.spec.height, width=self.spec.width, apart=self._apart)
            self._kept.put(key, video)
        return video

    def _text(self, caption: str | None) -> tuple[np.ndarray, np.ndarray]:
        text_LD = np.zeros((self._text_length, self._embeddings.width), np.float32)
        text_mask_L = np.zeros(self._text_length, np.bool_)
        states_LD = self._embeddings.lookup(caption)[: self._text_length] if caption is not None else text_LD[:0]
        text_LD[: len(states_LD)] = states_LD
        text_mask_L[: max(1, len(states_LD))] = True
        return text_LD, text_mask_L

    def _draw_order(self, part: int, epoch: int) -> np.ndarray:
        indices = self._parts[part]
        if not self._shuffle:
            return indices
        # Sorting raw bits rather than Generator.permutation: only the raw stream is promised by numpy to stay.
        entropy = [self._seed, epoch, _ORDER] + ([part] if part else [])
        raw = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(len(indices))
        return indices[np.argsort(raw, kind="stable")]

    def _nothing_readable(self, indices: Sequence[int]) -> UserError:
        name = str(self.examples[indices[0]].path)
        text = f"none of the {len(indices)} examples can be used; {name}: {self.tally.skipped.get(name, 'unreadable')}"
        if any(self.tally.is_bad(str(self.examples[index].path)) for index in indices):
            return UserError(text, TOO_MUCH_BAD_DATA)
        return UserError(f"{text}; short=repeat shows their last frame again, or take fewer frames")
