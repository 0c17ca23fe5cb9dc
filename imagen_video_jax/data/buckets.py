"""Buckets of sizes: videos of other shapes in one run. A batch has one size, each size is one compiled program."""

import math
from collections.abc import Sequence

from imagen_video_jax.data.examples import Example
from imagen_video_jax.errors import UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.reading import MediaError, Video

Size = tuple[int, int]


def parse_sizes(texts: Sequence[str]) -> tuple[Size, ...]:
    """("24x40", "40x24") -> ((24, 40), (40, 24)), height first; UserError for anything else."""
    sizes = []
    for text in texts:
        height, _, width = text.lower().partition("x")
        if not (height.isdecimal() and width.isdecimal()) or not int(height) * int(width):
            raise UserError(f"a size is written HEIGHTxWIDTH like 24x40, got {text!r}")
        sizes.append((int(height), int(width)))
    if len(set(sizes)) < len(sizes):
        raise UserError(f"a bucket is named twice in {', '.join(texts)}")
    return tuple(sizes)


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """The bucket of the nearest aspect (by ratio); of equal aspects the nearest in area."""

    def distance(bucket: Size) -> tuple[float, float]:
        aspect = math.log(bucket[0] / bucket[1]) - math.log(size[0] / size[1])
        area = math.log(bucket[0] * bucket[1]) - math.log(size[0] * size[1])
        return round(abs(aspect), 6), abs(area)

    return min(range(len(sizes)), key=lambda number: distance(sizes[number]))


def assign(examples: Sequence[Example], sizes: Sequence[Size]) -> list[tuple[Example, ...]]:
    """The examples of each bucket. Sizes are known of what was prepared; of other files one frame is decoded.

    What cannot be read is with the most others, so that no bucket holds nothing else; who reads it says what is wrong.
    """
    buckets = [nearest(size, sizes) if (size := _size(example)) else None for example in examples]
    largest = max(range(len(sizes)), key=buckets.count)
    buckets = [largest if bucket is None else bucket for bucket in buckets]
    return [tuple(e for e, bucket in zip(examples, buckets, strict=True) if bucket == b) for b in range(len(sizes))]


def _size(example: Example) -> Size | None:
    known = example.facts.get("height"), example.facts.get("width")
    if example.stamp and all(isinstance(side, int) and side > 0 for side in known):
        return known
    try:
        media = example.media()
        if isinstance(media, Video):
            return media.frames_THWC.shape[1:3]
        return isolated.displayed_size(media)
    except MediaError:
        return None
