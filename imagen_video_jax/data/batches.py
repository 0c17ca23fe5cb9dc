"""Examples -> `Batch`es, in an order that is a pure function of the seed.

The order. Slot s of step t of a global batch of B has position p = t B + s. Of n examples, position p shows number
p mod n of the permutation of epoch p // n, which is drawn from (seed, epoch); window, phase, crop and caption are drawn
from (seed, p). So one integer, the step, is the whole cursor: any number of hosts, threads or restarts gives the same
batches. Host h of H makes slots [h B/H, (h+1) B/H).

Files that cannot be used. Training shows the next usable example of the same permutation in their place (again a pure
function of the position, given the same files) and `Batches.skipped` names them; evaluation leaves their slot invalid.

Grain reads ahead with threads, because decoding releases the interpreter lock. Its index shuffle is not used (2.6 ms
a call for a set of 10 examples, as measured with grain 0.2.18), nor are its worker processes (order and records depend
on their number). Small data sets stay decoded in memory, covering the clip size at their own frame rate, so that every
epoch still draws new windows, phases and crops.
"""

import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import grain
import numpy as np

from imagen_video_jax.batch import Batch
from imagen_video_jax.data.clips import ClipSpec, ShortClipError, cut_clip, frames_needed, is_short
from imagen_video_jax.data.sources import Example
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.cover import cover
from imagen_video_jax.video.reading import MediaError, Video, read_media

# Tags that keep the two streams of random numbers apart.
_ORDER, _CLIP = 1, 2


class Embeddings(Protocol):
    """Caption -> token states, as `text/embedding_cache.py` reads them."""

    width: int

    def lookup(self, caption: str) -> np.ndarray:
        """float32 [tokens, width]; UserError when the caption is not there."""


class _Item(NamedTuple):
    """One slot of a batch."""

    video_THWC: np.ndarray
    text_LD: np.ndarray
    text_mask_L: np.ndarray
    id: int
    valid: bool


class Batches:
    """Iterator of host `Batch`es (numpy), this process's slots only.

    Attributes:
      step: the step of the batch that comes next; giving it back as `start_step` goes on from there.
      skipped: {path: reason} of the files that could not be used so far; read ahead counts.
      repeated: {path: reason} of the videos whose last frame was repeated to fill a clip.
    """

    def __init__(self, slots: "_Slots", *, steps: int | None, start_step: int, threads: int, prefetch: int):
        self.step = start_step
        self.skipped = slots.loader.skipped
        self.repeated = slots.loader.repeated
        self._steps = steps
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=prefetch * slots.local_size if threads else 0
        )
        dataset = grain.MapDataset.source(slots).to_iter_dataset(options)
        collate = functools.partial(_collate, fps=slots.loader.spec.fps)
        self._iterator = iter(dataset.batch(slots.local_size, batch_fn=collate))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._steps is not None and self.step >= self._steps:
            self.close()
            raise StopIteration
        batch = next(self._iterator)
        self.step += 1
        return batch

    def close(self) -> None:
        """Ends the reading threads."""
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_batches(
    examples: Sequence[Example],
    spec: ClipSpec,
    *,
    batch_size: int,
    seed: int,
    embeddings: Embeddings,
    text_length: int,
    start_step: int = 0,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 2,
    cache_bytes: int = 1 << 30,
) -> Batches:
    """Endless training batches (see the head of this file for their order).

    Args:
      examples: videos, or for `spec.frames == 1` images and videos.
      spec: shape of every clip.
      batch_size: global, over all processes.
      seed: of order, windows, crops and captions; not negative.
      embeddings: of the captions. An example without captions gets the null text: zeros, first token valid.
      text_length: tokens; shorter texts are padded with zeros, longer ones cut.
      start_step: first step, 0 or `Batches.step` of an earlier run.
      shuffle: False shows the examples in their own order, epoch after epoch.
      process_index, process_count: which part of the global batch this process makes.
      threads: that read, each with a decoding process of its own that may be killed (`video/isolated.py`); 0 decodes
        in the calling thread and process.
      prefetch: batches read ahead.
      cache_bytes: decoded videos kept in memory, first come first kept.

    Raises:
      UserError: at once for impossible arguments, later with exit code 4 when not one example can be read.
    """
    loader = _Loader(
        examples,
        spec,
        seed=seed,
        embeddings=embeddings,
        text_length=text_length,
        shuffle=shuffle,
        cache_bytes=cache_bytes,
        apart=threads > 0,
    )
    slots = _Slots(loader.training_item, loader, batch_size, start_step, process_index, process_count)
    return Batches(slots, steps=None, start_step=start_step, threads=threads, prefetch=prefetch)


def evaluation_batches(
    examples: Sequence[Example],
    spec: ClipSpec,
    *,
    batch_size: int,
    embeddings: Embeddings,
    text_length: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 2,
) -> Batches:
    """Every example once, in order; slots past the end and unreadable files have `valid_B` False and are zero.

    Arguments as for `open_batches`. Window and caption of an example depend on the seed and its place alone.
    """
    loader = _Loader(
        examples,
        spec,
        seed=seed,
        embeddings=embeddings,
        text_length=text_length,
        shuffle=False,
        cache_bytes=0,
        apart=threads > 0,
    )
    slots = _Slots(loader.evaluation_item, loader, batch_size, 0, process_index, process_count)
    steps = -(-len(examples) // batch_size)
    return Batches(slots, steps=steps, start_step=0, threads=threads, prefetch=prefetch)


class _Slots:
    """Random access to this process's slots, step after step: the source that Grain reads ahead in."""

    def __init__(self, make, loader: "_Loader", batch_size: int, start_step: int, index: int, count: int):
        if batch_size < 1 or batch_size % count:
            raise UserError(f"batch_size must be a positive multiple of the {count} processes, got {batch_size}")
        if start_step < 0:
            raise UserError(f"start_step must be at least 0, got {start_step}")
        self.loader = loader
        self.local_size = batch_size // count
        self._make = make
        self._first = start_step * batch_size + index * self.local_size
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> _Item:
        step, slot = divmod(int(number), self.local_size)
        return self._make(self._first + step * self._batch_size + slot)


class _Loader:
    """Position -> item. Called from several threads."""

    def __init__(self, examples, spec: ClipSpec, *, seed, embeddings, text_length, shuffle, cache_bytes, apart):
        if not examples:
            raise UserError("there are no examples to make batches of")
        if seed < 0 or text_length < 1:
            raise UserError(f"seed must be at least 0 and text_length at least 1, got {seed} and {text_length}")
        if spec.frames > 1 and (images := [example for example in examples if example.is_image]):
            raise UserError(f"{images[0].path} is an image, it cannot fill clips of {spec.frames} frames")
        self.examples = tuple(examples)
        self.spec = spec
        self.skipped: dict[str, str] = {}
        self.repeated: dict[str, str] = {}
        self._seed = seed
        self._embeddings = embeddings
        self._text_length = text_length
        self._shuffle = shuffle
        self._apart = apart
        self._cache: dict[int, Video] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()
        self._order_of = functools.lru_cache(maxsize=2)(self._draw_order)

    def training_item(self, position: int) -> _Item:
        """The item at a position, with the next usable example where the one due is not."""
        count = len(self.examples)
        epoch, place = divmod(position, count)
        order = self._order_of(epoch)
        for step in range(count):
            item = self._item(int(order[(place + step) % count]), position)
            if item is not None:
                return item
        raise self._nothing_readable()

    def evaluation_item(self, position: int) -> _Item:
        """The example at a position, or an invalid item."""
        item = self._item(position, position) if position < len(self.examples) else None
        if item is not None:
            return item
        if len(self.skipped) == len(self.examples):
            raise self._nothing_readable()
        spec = self.spec
        text_LD, text_mask_L = self._text(None)
        return _Item(np.zeros((spec.frames, spec.height, spec.width, 3), np.uint8), text_LD, text_mask_L, -1, False)

    def _item(self, index: int, position: int) -> _Item | None:
        """Example `index` as drawn for `position`; None when it cannot be used."""
        example = self.examples[index]
        name = str(example.path)
        if name in self.skipped:
            return None
        rng = np.random.default_rng([self._seed, position, _CLIP])
        caption = example.captions[int(rng.integers(len(example.captions)))] if example.captions else None
        try:
            video = self._video(index)
            clip_THWC = cut_clip(video, self.spec, rng)
        except (MediaError, ShortClipError) as error:
            self.skipped[name] = getattr(error, "reason", str(error))
            return None
        if is_short(video, self.spec) and name not in self.repeated:
            needed = frames_needed(self.spec, video.fps)
            self.repeated[name] = f"{len(video.frames_THWC)} frames of the {needed} that a clip spans"
        return _Item(clip_THWC, *self._text(caption), example.id, True)

    def _video(self, index: int) -> Video:
        """The decoded video, covering the clip size, from memory where it fits."""
        if index in self._cache:
            return self._cache[index]
        size = {"height": self.spec.height, "width": self.spec.width}
        media = self.examples[index].media()
        if isinstance(media, Video):
            video = Video(cover(media.frames_THWC, **size), media.fps)
        elif self._apart:
            video = isolated.read(media, **size)
        else:
            video = read_media(media, each_frame=lambda frame_HWC: cover(frame_HWC[None], **size)[0])
        with self._lock:
            # Nothing is ever put out: in a random order over more than fits, what came first is as good as any.
            if index not in self._cache and video.frames_THWC.nbytes <= self._room:
                self._room -= video.frames_THWC.nbytes
                self._cache[index] = video
        return video

    def _text(self, caption: str | None) -> tuple[np.ndarray, np.ndarray]:
        text_LD = np.zeros((self._text_length, self._embeddings.width), np.float32)
        text_mask_L = np.zeros(self._text_length, np.bool_)
        states_LD = self._embeddings.lookup(caption)[: self._text_length] if caption is not None else text_LD[:0]
        text_LD[: len(states_LD)] = states_LD
        text_mask_L[: max(1, len(states_LD))] = True
        return text_LD, text_mask_L

    def _draw_order(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self.examples))
        # Sorting raw bits rather than Generator.permutation: only the raw stream is promised by numpy to stay.
        raw = np.random.PCG64(np.random.SeedSequence([self._seed, epoch, _ORDER])).random_raw(len(self.examples))
        return np.argsort(raw, kind="stable")

    def _nothing_readable(self) -> UserError:
        name, reason = next(iter(self.skipped.items()))
        return UserError(
            f"none of the {len(self.examples)} examples can be used; {name}: {reason}", exit_code=TOO_MUCH_BAD_DATA
        )


def _collate(items: Sequence[_Item], *, fps: float) -> Batch:
    return Batch(
        video_BTHWC=np.stack([item.video_THWC for item in items]),
        text_BLD=np.stack([item.text_LD for item in items]),
        text_mask_BL=np.stack([item.text_mask_L for item in items]),
        fps_B=np.full(len(items), fps, np.float32),
        id_B=np.array([item.id for item in items], np.int32),
        valid_B=np.array([item.valid for item in items], np.bool_),
    ).check()
