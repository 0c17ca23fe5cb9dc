"""Two folders of videos -> metrics: every file is read once, its features are kept, a killed run goes on.

Features are found again by the file's content and the network's fingerprint, wherever the file lies: a large reference
set is read once.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, UserError
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.evaluation.metrics import Options, VideoSet, frechet_extractors, measure, unable
from imagen_video_jax.evaluation.pairs import PairMeasure, compare_pairs, paired
from imagen_video_jax.evaluation.video_folders import Item, list_videos, read_ahead
from imagen_video_jax.video.reading import MediaError

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class ReadSet:
    """A set of videos as far as it could be read, and the sizes that it holds."""

    videos: VideoSet
    names: list[str]
    sizes: Counter  # (frames, height, width, fps)
    skipped: list[str]


def evaluate_folders(
    real: str | None,
    generated: str,
    names: Sequence[str],
    extractors: dict[str, Extractor],
    pair_measures: Sequence[PairMeasure] = (),
    *,
    store: FeatureStore,
    pool: int = 100,
    progress: Progress = lambda *_: None,
) -> dict:
    """The metrics `names` of `generated` against `real`: one dict of numbers, intervals (NAME_interval) and counts.

    Args:
      real, generated: folders, manifests or prepared data sets.
      extractors: by name, those that the metrics need.
      pair_measures: likewise.
      store: where features are kept.
      progress: called with (what, done, total).

    Raises:
      UserError: nothing to read, or a metric that these sets do not give.
    """
    listed = {what: list_videos(path, what) for what, path in (("real", real), ("generated", generated)) if path}
    for name in names:  # before hours of reading
        known = {what: _described(items) for what, items in listed.items()}
        if reason := unable(name, known.get("real"), known["generated"]):
            raise UserError(f"{name} {reason}")
    pairs = paired(listed["real"], listed["generated"]) if pair_measures else []
    sets = {what: read_set(what, items, extractors, store, progress) for what, items in listed.items()}
    if "real" in sets:
        needed = {name: extractors[name].key for name in frechet_extractors(names)}
        sets["real"].videos = sets["real"].videos.with_moments(store.folder, needed)
    for one in pair_measures:
        sets["generated"].videos.features[one.name] = compare_pairs(one, pairs, store, progress)
    options = Options({key: one.text for key, one in extractors.items() if one.text}, pool)
    options.notes += _size_notes(sets, extractors)
    found: dict = {}
    for name in names:
        real_videos = sets["real"].videos if "real" in sets else None
        found |= measure(name, real_videos, sets["generated"].videos, options)
    for what, one in sets.items():
        found[f"{what}_videos"] = len(one.names)
        found[f"{what}_skipped"] = len(one.skipped)
    return found | {"notes": options.notes}


def _described(items: Sequence[Item]) -> VideoSet:
    return VideoSet({}, [item.caption for item in items], [item.labels for item in items])


def read_set(
    what: str, items: Sequence[Item], extractors: dict[str, Extractor], store: FeatureStore, progress: Progress
) -> ReadSet:
    """Features of all videos that can be read; the others are named on stderr.

    Raises:
      UserError: none can be read (exit code 4).
    """
    keys, skipped = _content_keys(items), []
    # What a file's size is, is kept like a feature of it.
    wanted = {"size": "size-1", **{name: one.key for name, one in extractors.items()}}
    found: dict[str, dict[str, np.ndarray]] = {}
    for item in items:
        if (key := keys[item.name]) is not None and key not in found:
            arrays = {name: store.get(folder, key) for name, folder in wanted.items()}
            found[key] = {name: array for name, array in arrays.items() if array is not None}
    # Of files with equal content one is read.
    todo = {keys[i.name]: i for i in items if keys[i.name] and len(found[keys[i.name]]) < len(wanted)}
    done = len(items) - len(todo)
    progress(what, done, len(items))
    for item, video in read_ahead(list(todo.values())):
        key = keys[item.name]
        if isinstance(video, MediaError):
            keys[item.name] = None
            skipped.append(str(video))
        else:
            size = np.array([*video.frames_THWC.shape[:3], video.fps])
            for name, folder in wanted.items():
                if name not in found[key]:
                    array = size if name == "size" else extractors[name](video.frames_THWC, item.name)
                    store.put(folder, key, array)
                    found[key][name] = array
        progress(what, done := done + 1, len(items))
    return _collected(what, items, keys, found, set(wanted), skipped)


def _content_keys(items: Sequence[Item]) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for item in items:
        try:
            keys[item.name] = item.content_key()
        except MediaError:
            keys[item.name] = None
    return keys


def _collected(what: str, items, keys, found, wanted: set[str], skipped: list[str]) -> ReadSet:
    kept = [item for item in items if keys[item.name] and found[keys[item.name]].keys() == wanted]
    missing = len(items) - len(kept)
    first = skipped[0] if skipped else next((f"{i.name}: cannot be opened" for i in items if not keys[i.name]), "")
    if not kept:
        raise UserError(f"none of the {len(items)} {what} videos can be read, the first: {first}", TOO_MUCH_BAD_DATA)
    if missing:
        print(f"warning: {missing} of {len(items)} {what} videos are left out, the first: {first}", file=sys.stderr)
    arrays = [found[keys[item.name]] for item in kept]
    features = {name: [one[name] for one in arrays] for name in wanted - {"size"}}
    sizes = Counter((int(t), int(h), int(w), round(float(fps), 3)) for t, h, w, fps in (one["size"] for one in arrays))
    described = _described(kept)
    videos = VideoSet(features, described.captions, described.labels, [keys[item.name] for item in kept])
    return ReadSet(videos, [item.name for item in kept], sizes, skipped + [""] * (missing - len(skipped)))


def _size_notes(sets: dict[str, ReadSet], extractors: dict[str, Extractor]) -> list[str]:
    """How videos of different or short lengths, sizes and rates were made comparable."""
    notes = []
    shapes = {what: sorted({size[1:3] for size in one.sizes}) for what, one in sets.items()}
    if len({shape for found in shapes.values() for shape in found}) > 1:
        said = "; ".join(f"{what}: {_some(f'{h}x{w}' for h, w in found)}" for what, found in shapes.items())
        notes.append(f"resolutions differ ({said}): every network resizes each frame to its own input size")
    rates = {size[3] for one in sets.values() for size in one.sizes}
    if len(rates) > 1:
        notes.append(f"frame rates differ ({_some(f'{r:g}' for r in sorted(rates))}): frames are compared by number")
    lengths = {what: sorted({size[0] for size in one.sizes}) for what, one in sets.items()}
    for extractor in extractors.values():
        frames = extractor.frames
        if not frames:
            continue
        for what, found in lengths.items():
            if found[-1] > frames:
                notes.append(f"{extractor.name}: the first {frames} frames of {what} videos of up to {found[-1]}")
            if found[0] < frames:
                notes.append(f"{extractor.name}: {what} videos of {found[0]} frames are slowed down to {frames}")
    return notes


def _some(texts) -> str:
    listed = list(texts)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
