"""What studies sample and read: batches kept on disk as they are made, and what the judge sees in them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import steadiness
from imagen_video_jax.evaluation.judge import SCORED, Judge, hits
from imagen_video_jax.evaluation.networks import Weights, open_extractor
from imagen_video_jax.training.metrics import progress_bar


def kept_videos(
    sample: Callable[[int, int], np.ndarray], count: int, batch: int, folder: pathlib.Path, title: str
) -> list[np.ndarray]:
    """`count` uint8 THWC videos; sample(begin, end) makes a batch, which is kept in `folder` and not made again."""
    videos: list[np.ndarray] = []
    bar, task = progress_bar(title, count)
    with bar:
        for begin in range(0, count, batch):
            end = min(begin + batch, count)
            file = folder / f"{begin:05}-{end:05}.npy"
            if not file.exists():
                made = sample(begin, end)
                folder.mkdir(parents=True, exist_ok=True)
                with storage.atomic_path(file) as part, part.open("wb") as handle:
                    np.save(handle, made)
            videos += list(np.load(file, allow_pickle=False))
            bar.update(task, completed=len(videos))
    return videos


def values_of(videos: Sequence[np.ndarray], labels: Sequence[dict]) -> dict[str, list[float | None]]:
    """Per measure a value per video: whether the judge reads what was asked (see `judge.hits`; None where nothing was),
    and grey levels of colour drift, flicker and motion."""
    values: dict[str, list] = {name: [] for name in SCORED}
    for reading, label in zip(Judge.load().read(videos), labels):
        read = hits(dataclasses.asdict(reading), label)
        for name in SCORED:
            values[name].append(float(read[name]) if name in read else None)
    pixels = np.array([steadiness.measures(video) for video in videos], np.float64).T
    named = {f"pixels_{name}": column.tolist() for name, column in zip(steadiness.MEASURES, pixels)}
    return values | named


def open_extractors(i3d: str) -> dict:
    """The judge and the scorer, and I3D where its weights are."""
    opened = {name: open_extractor(name, Weights()) for name in ("judge", "scorer")}
    try:
        opened["i3d"] = open_extractor("i3d", Weights(i3d=i3d))
    except UserError as error:
        print(f"without FVD: {error}", flush=True)
    return opened
