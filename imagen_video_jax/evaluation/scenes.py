"""What a sweep samples and against what: prompts, and real videos of the same motion_shapes scenes."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from imagen_video_jax.data import motion_shapes
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.evaluation.metrics import VideoSet
from imagen_video_jax.evaluation.sweep import PARAPHRASE, digest_of
from imagen_video_jax.video.files import write_video

SEED = 321  # of the scenes; the demo's judge looks at the same


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Captions, and the scenes they describe where these are known (else empty)."""

    captions: tuple[str, ...]
    scenes: tuple[motion_shapes.Scene, ...] = ()

    @property
    def labels(self) -> list[dict]:
        return [scene.labels() for scene in self.scenes] or [{}] * len(self.captions)

    @property
    def digest(self) -> str:
        return digest_of(self.captions)


def prompts_of_scenes(split: str, count: int) -> Prompts:
    """Captions of scenes of a split; "paraphrase" is the scenes of "validation" in words that no caption uses."""
    other = split == PARAPHRASE
    scenes = tuple(
        motion_shapes.make_scene(SEED, index, split="validation" if other else split) for index in range(count)
    )
    return Prompts(
        tuple(
            motion_shapes.paraphrase_of(scene) if other else motion_shapes.captions_of(scene, 1)[0] for scene in scenes
        ),
        scenes,
    )


def prompts_of_lines(lines: Sequence[str], count: int, where: str) -> Prompts:
    """The first `count` prompts of a file."""
    if len(lines) < count:
        raise UserError(f"{where} holds {len(lines)} prompts, videos is {count}; set --config.videos={len(lines)}")
    return Prompts(tuple(lines[:count]))


def rendered(scene: motion_shapes.Scene, size: tuple[int, int, int, float]) -> np.ndarray:
    """The scene as uint8 THWC of size (frames, height, width, fps), its motion stretched over the whole clip."""
    frames, height, width, fps = size
    scene = dataclasses.replace(scene, seconds=frames / fps)
    return motion_shapes.render(scene, frames=frames, height=height, width=width, fps=fps)


def shown_folder(prompts: Prompts, size: Sequence) -> str:
    """Where in a sweep's folder the scenes lie as videos of a size."""
    return f"samples/real-{digest_of(prompts.digest, list(size))}"


def write_shown(prompts: Prompts, size: tuple[int, int, int, float], workdir: pathlib.Path, count: int) -> None:
    """The first scenes as mp4 files, to be looked at beside the samples; those that are there stay."""
    folder = workdir / shown_folder(prompts, size)
    for i, scene in enumerate(prompts.scenes[:count]):
        if not (folder / f"{i:06d}.mp4").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_video(folder / f"{i:06d}.mp4", rendered(scene, size), fps=size[3])


def reference(
    prompts: Prompts,
    size: tuple[int, int, int, float],
    extractors: dict[str, Extractor],
    store: FeatureStore,
    progress: Callable[[str, int, int], None],
) -> VideoSet:
    """Features of the scenes as they really look; drawn and read once, then found in the store."""
    features: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    contents = []
    for done, scene in enumerate(prompts.scenes, 1):
        key = digest_of("scene", motion_shapes.VERSION, repr(scene), size)
        found = {name: store.get(extractor.key, key) for name, extractor in extractors.items()}
        if any(array is None for array in found.values()):
            video_THWC = rendered(scene, size)
            for name, extractor in extractors.items():
                if found[name] is None:
                    found[name] = extractor(video_THWC, f"scene {done - 1}")
                    store.put(extractor.key, key, found[name])
        contents.append(key)
        for name, array in found.items():
            features[name].append(array)
        progress("real videos", done, len(prompts.scenes))
    return VideoSet(features, prompts.captions, prompts.labels, contents)
