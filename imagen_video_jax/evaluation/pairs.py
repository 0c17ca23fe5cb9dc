"""Videos compared one by one with the video of the same name in another set: LPIPS, colour shift."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import lpips, steadiness
from imagen_video_jax.evaluation.features import FeatureStore, fingerprint_of
from imagen_video_jax.evaluation.video_folders import Item, read_ahead
from imagen_video_jax.video.cover import resize_uint8
from imagen_video_jax.video.reading import MediaError

Comparison = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class PairMeasure:
    """A comparison of a video with another (uint8 THWC each), and what changes when its values would."""

    name: str
    fingerprint: str
    compare: Comparison


def open_pair_measure(name: str) -> PairMeasure:
    """The comparison; UserError saying which weights are missing."""
    if name == "colour_shift":
        return PairMeasure(name, "1", steadiness.colour_shift)
    network = lpips.load()

    def compare(video_THWC, other_THWC) -> float:
        frames = min(len(video_THWC), len(other_THWC))
        other_THWC = resize_uint8(other_THWC[:frames], *video_THWC.shape[1:3])
        pair = (_enlarged(video_THWC[:frames]), _enlarged(other_THWC))
        return float(network.distance(*pair).mean())

    return PairMeasure(name, fingerprint_of(network.params), compare)


def _enlarged(video_THWC: np.ndarray) -> np.ndarray:
    """Frames too small for the network, each pixel repeated until the shorter side is at least 64."""
    zoom = -(-64 // min(video_THWC.shape[1:3]))
    return video_THWC.repeat(zoom, 1).repeat(zoom, 2)


def paired(real: Sequence[Item], generated: Sequence[Item]) -> list[tuple[Item, Item]]:
    """(generated, real) items of the same name, else of the same file name; UserError where there are none."""
    by_name = {item.name: item for item in real}
    by_file = {pathlib.PurePath(item.name).stem: item for item in real}
    found = [
        (item, partner)
        for item in generated
        if (partner := by_name.get(item.name) or by_file.get(pathlib.PurePath(item.name).stem))
    ]
    if not found:
        raise UserError(
            f"pairs are files of the same name, and none of the generated ones ({generated[0].name}, ...) is like one "
            f"of the real ones ({real[0].name}, ...)"
        )
    return found


def compare_pairs(
    measure: PairMeasure,
    pairs: Sequence[tuple[Item, Item]],
    store: FeatureStore,
    progress: Callable[[str, int, int], None],
) -> list[np.ndarray]:
    """The comparison of each pair that can be read, as arrays [1, 1]; kept by content like features."""
    values = []
    for done, pair in enumerate(pairs):
        try:
            keys = [item.content_key() for item in pair]
            key = hashlib.sha256(" ".join(keys).encode()).hexdigest()
            folder = f"{measure.name}-{hashlib.sha256(measure.fingerprint.encode()).hexdigest()[:16]}"
            value = store.get(folder, key)
            if value is None:
                videos = [video for _, video in read_ahead(pair)]
                if any(isinstance(video, MediaError) for video in videos):
                    continue  # named already when features were read
                value = np.array([[measure.compare(*(video.frames_THWC for video in videos))]])
                store.put(folder, key, value)
        except MediaError:
            continue
        values.append(value)
        progress(measure.name, done + 1, len(pairs))
    if not values:
        raise UserError(f"{measure.name}: none of the {len(pairs)} pairs can be read")
    return values
