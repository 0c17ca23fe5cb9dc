"""Examples -> `Batch`es, in an order that is a pure function of the seed.

The order. Slot s of step t of a global batch of B has position p = t B + s. Of n examples, position p shows number
p mod n of the permutation of epoch p // n, which is drawn from (seed, epoch); window, phase, crop and caption are drawn
from (seed, p). So one integer, the step, is the whole cursor: any number of hosts, threads or restarts gives the same
batches; each makes the slots of a batch that its devices hold.

Mixtures and buckets. In a mixture of data sets, each position belongs to one of them in exact proportion to the weights
(`interleave.py`), and p counts within it. With buckets of sizes, each step belongs to one bucket in proportion to its
examples, and t counts within it.

Files that cannot be used. Training shows the next usable example of the same permutation in their place (again a pure
function of the position, given the same files) and `Batches.skipped` names them; evaluation leaves their slot invalid.

Grain reads ahead with threads, because decoding releases the interpreter lock. Its index shuffle is not used (2.6 ms
a call for a set of 10 examples, as measured with grain 0.2.18), nor are its worker processes (order and records depend
on their number). Small data sets stay decoded in memory, covering the clip size at their own frame rate, so that every
epoch still draws new windows, phases and crops.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from imagen_video_jax.batch import Batch
from imagen_video_jax.data import buckets
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.examples import Example
from imagen_video_jax.data.interleave import Interleave
from imagen_video_jax.data.loading import Decoded, Embeddings, Item, Loader, Tally
from imagen_video_jax.errors import UserError

# Read ahead, where batches are small: while a step is compiled, its first epoch is decoded.
_AHEAD_BYTES, _AHEAD_BATCHES = 128 << 20, 64


class Batches:
    """Iterator of host `Batch`es (numpy), this process's slots only.

    Attributes:
      step: the step of the batch that comes next; giving it back as `start_step` goes on from there.
      skipped: {path: reason} of the files that could not be used so far; read ahead counts.
      repeated: {path: reason} of the videos whose last frame was repeated to fill a clip.
      bucket_counts: examples in each bucket.
    """

    def __init__(
        self,
        slots: "_Slots",
        *,
        steps: int | None,
        start_step: int,
        threads: int,
        prefetch: int,
        bucket_counts: tuple[int, ...] = (),
    ):
        self.bucket_counts = bucket_counts
        self.step = start_step
        self.skipped = slots.tally.skipped
        self.repeated = slots.tally.repeated
        self._steps = steps
        ahead = max(prefetch * slots.local_size, threads) if threads else 0
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(slots).to_iter_dataset(options)
        collate = functools.partial(_collate, fps=slots.fps)
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
    weights: Sequence[float] = (1.0,),
    sizes: Sequence[buckets.Size] = (),
    follow: Sequence[int] = (),
    bad_share: float = 0.01,
    slots: Sequence[int] | None = None,
    threads: int = 2,
    prefetch: int = 2,
    decoded: Decoded | None = None,
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
      weights: of the data sets of a mixture, by `Example.part`.
      sizes: (height, width) of each bucket; none for the spec's own size alone.
      follow: `Batches.bucket_counts` of another stream: be of its size at every step, cutting all examples to each,
        so that a step of both needs one program for each size and not for each pair.
      bad_share: end with exit code 4 when more of the clips read so far are bad, and at least ten.
      slots: of the global batch, those that this process makes; all by default.
      threads: that read, each with a decoding process of its own that may be killed (`video/isolated.py`); 0 decodes
        in the calling thread and process.
      prefetch: batches read ahead at least; small ones more, as many as 64 while they fit into 128 MiB.
      decoded: where decoded videos are kept in memory; by default 1 GiB of them, as long as these batches last.

    Raises:
      UserError: at once for impossible arguments, later with exit code 4 when too many examples are bad.
    """
    tally, decoded = Tally(bad_share), decoded or Decoded()
    specs = [dataclasses.replace(spec, height=height, width=width) for height, width in sizes] or [spec]
    groups = buckets.assign(examples, sizes) if sizes and not follow else [tuple(examples)] * len(specs)
    counts = list(follow) or [len(group) for group in groups]
    used = [(group, spec) for group, spec, count in zip(groups, specs, counts, strict=True) if count] or [((), spec)]
    loaders = [
        Loader(
            group,
            spec,
            tally,
            seed=seed,
            embeddings=embeddings,
            text_length=text_length,
            weights=weights,
            shuffle=shuffle,
            decoded=decoded,
            apart=threads > 0,
        )
        for group, spec in used
    ]
    makers = [loader.training_item for loader in loaders]
    schedule = Interleave([count for count in counts if count] or [1])
    source = _Slots(makers, schedule, tally, spec.fps, batch_size, start_step, slots, bool(follow))
    clip = spec.frames * max(math.prod(spec.size) for _, spec in used) * 3
    size = source.local_size * (clip + text_length * embeddings.width * 4)
    prefetch = max(prefetch, min(_AHEAD_BYTES // size, _AHEAD_BATCHES))
    return Batches(
        source, steps=None, start_step=start_step, threads=threads, prefetch=prefetch, bucket_counts=tuple(counts)
    )


def evaluation_batches(
    examples: Sequence[Example],
    spec: ClipSpec,
    *,
    batch_size: int,
    embeddings: Embeddings,
    text_length: int,
    seed: int = 0,
    slots: Sequence[int] | None = None,
    threads: int = 2,
    prefetch: int = 2,
) -> Batches:
    """Every example once, in order; slots past the end and unreadable files have `valid_B` False and are zero.

    Arguments as for `open_batches`. Window and caption of an example depend on the seed and its place alone.
    """
    tally = Tally(bad_share=1.0)
    options = {"seed": seed, "embeddings": embeddings, "text_length": text_length, "shuffle": False}
    loader = Loader(examples, spec, tally, **options, apart=threads > 0)
    source = _Slots([loader.evaluation_item], Interleave([1]), tally, spec.fps, batch_size, 0, slots)
    steps = -(-len(examples) // batch_size)
    return Batches(source, steps=steps, start_step=0, threads=threads, prefetch=prefetch)


class _Slots:
    """Random access to this process's slots, step after step: the source that Grain reads ahead in."""

    def __init__(
        self,
        makers: Sequence[Callable[[int], Item]],
        schedule: Interleave,
        tally: Tally,
        fps: float,
        batch_size: int,
        start_step: int,
        slots: Sequence[int] | None,
        one_order: bool = False,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        if start_step < 0:
            raise UserError(f"start_step must be at least 0, got {start_step}")
        self.tally, self.fps = tally, fps
        self._slots = range(batch_size) if slots is None else [int(slot) for slot in slots]
        self.local_size = len(self._slots)
        self._makers = makers
        self._bucket_of = schedule
        self._one_order = one_order
        self._start, self._batch_size = start_step, batch_size

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Item:
        step, slot = divmod(int(number), self.local_size)
        bucket, bucket_step = self._bucket_of(self._start + step)
        if self._one_order:  # the examples are the same in every bucket, so they are counted over all of them
            bucket_step = self._start + step
        return self._makers[bucket](bucket_step * self._batch_size + self._slots[slot])


def _collate(items: Sequence[Item], *, fps: float) -> Batch:
    return Batch(
        video_BTHWC=np.stack([item.video_THWC for item in items]),
        text_BLD=np.stack([item.text_LD for item in items]),
        text_mask_BL=np.stack([item.text_mask_L for item in items]),
        fps_B=np.full(len(items), fps, np.float32),
        id_B=np.array([item.id for item in items], np.int32),
        valid_B=np.array([item.valid for item in items], np.bool_),
    ).check()
