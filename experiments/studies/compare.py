"""One study: its variants trained with several seeds, sampled, judged, and compared prompt by prompt.

    python -m experiments.studies.compare STUDY --out out/studies [--seeds 0 1] [--steps N] [--videos N] [--resident]

The studies are in `variants.py`. Every run trains in --out/runs (studies share the runs that are the same), leaves its
videos and its values in --out/STUDY, and is not made again: stop the command at any time and run it again. Stages
before the one that is compared are those of the cascade that comes with the package, with the same inputs for all.
--resident trains with the data in the device's memory (../miniature/resident.py): for a GPU.

The table. A variant's value is the mean over prompts and seeds; beside it stands how much more that is than with the
first variant, with a 95% interval from drawing the prompts again (the same prompt and sampling seed in both, so that
what is common to them falls out), and "=" where the interval holds 0. Seeds differ by more than prompts tell: the range
of the seeds' own differences stands behind.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np

from experiments.miniature import resident
from experiments.scales import STAGES
from experiments.studies.samples import kept_videos, values_of
from experiments.studies.variants import STUDIES, Study, Variant
from imagen_video_jax import configs, storage
from imagen_video_jax.bundle import CHECKSUMS
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import Member
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory, use_compilation_cache
from imagen_video_jax.data import motion_shapes
from imagen_video_jax.data.motion_shapes_scene import SOLID_SHAPES, WORD_MOTION
from imagen_video_jax.evaluation import bootstrap, scenes
from imagen_video_jax.evaluation.sweep import digest_of
from imagen_video_jax.shipped import miniature
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.loop import train
from imagen_video_jax.training.teachers import find_teacher, weights_of
from imagen_video_jax.video.files import write_video

BATCH = 16
CHOSEN = {
    "styled": lambda scene: not scene.word,
    "words": lambda scene: scene.word and scene.motion == WORD_MOTION,
    "solids": lambda scene: scene.shape in SOLID_SHAPES and scene.motion == "spin",
}
SHOWN = 8  # videos of each run that are kept as files to be looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=0, help="updates of each run; 0: those of the study")
    parser.add_argument("--videos", type=int, default=0, help="of each run; 0: those of the study")
    parser.add_argument("--scale", default="mini", help="of the experiment files")
    parser.add_argument("--data", default="", metavar="SOURCE", help="training data; by default the embedded set")
    parser.add_argument("--validation", default="", metavar="SOURCE")
    parser.add_argument("--resident", action="store_true", help="train with the data in the device's memory")
    arguments = parser.parse_args()
    keep_freed_memory()
    use_compilation_cache()
    study = STUDIES[arguments.study]
    changed = {name: getattr(arguments, name) for name in ("steps", "videos") if getattr(arguments, name)}
    study = dataclasses.replace(study, **changed)
    fields = {name: getattr(arguments, name) for name in ("data", "validation") if getattr(arguments, name)}
    out = storage.writable_folder(arguments.out)
    runs = Runs(study, out, out / arguments.study, arguments.scale, fields, arguments.resident)
    results = {v.name: [runs.result(v, seed) for seed in arguments.seeds] for v in study.variants}
    storage.write_json(out / arguments.study / "table.json", table_of(study, results))
    print(markdown(study, results))


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a study.

    Attributes:
      out: folder of all studies; `own` is this one's.
      scale, fields: of every training config.
      resident: whether a run trains with the data in the device's memory.
    """

    study: Study
    out: pathlib.Path
    own: pathlib.Path
    scale: str
    fields: dict[str, str]
    resident: bool = False

    def result(self, variant: Variant, seed: int) -> dict:
        """Values per prompt of one run, made where they are missing."""
        training = self.training(variant, seed)
        of = [self.scale, self.study.stage, training, dict(variant.sampler), self.shipped_sums]
        key = digest_of(*of, *([variant.drawn] if variant.drawn else []), *self.kind)
        name = f"{variant.name.replace(' ', '_')}-seed{seed}-{key}"
        file = self.own / "results" / f"{name}-{self.study.videos}.json"
        if file.exists():
            return storage.read_json(file)
        cascade, index = self.shipped, self.shipped.position(self.study.stage)
        if self.study.steps:
            members = [*cascade.members[:index], self.trained(variant, seed)]
            cascade = Cascade(members, encoder=cascade.encoder)
        found: dict = {"variant": variant.name, "seed": seed, "steps": self.study.steps, "values": {}}
        for split in self.study.prompts:
            prompts = prompts_of(split, self.study.videos)
            videos = self.videos(variant, seed, split, prompts, cascade, self.own / "videos" / name / split)
            found["values"][split] = values_of(videos, prompts.labels)
            show(videos[:SHOWN], cascade.members[index].stage.config.fps, self.own / "shown" / name / split)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(file, found)
        return found

    def videos(self, variant: Variant, seed: int, split: str, prompts: scenes.Prompts, cascade: Cascade, folder):
        """What the compared stage of `cascade` makes of the prompts, kept in `folder`; or the scenes as drawn."""
        index = self.shipped.position(self.study.stage)
        if variant.drawn > index:
            return self.drawn(prompts, index)
        inputs = self.inputs(variant, prompts, index, seed, split)
        sample = sampler_of(cascade, index, prompts, seed, inputs, dict(variant.sampler))
        return kept_videos(sample, self.study.videos, BATCH, folder, f"{variant.name}, seed {seed}: {split}")

    @functools.cached_property
    def shipped(self) -> Cascade:
        return Cascade.load(miniature())

    @functools.cached_property
    def shipped_sums(self) -> str:
        """Which bundle the package comes with: what was made with another one is made again. Nothing where a base is
        trained, which takes nothing from it."""
        if self.study.steps and self.study.stage == STAGES[0]:
            return ""
        return digest_of((miniature() / CHECKSUMS).read_text())

    def training(self, variant: Variant, seed: int) -> dict[str, str]:
        """The fields of its training config that are not those of the experiment file."""
        return {**self.fields, **variant.fields, "steps": str(self.study.steps), "seed": str(seed)}

    @property
    def kind(self) -> list[str]:
        """What tells runs in the device's memory, which see the examples in another order, from the others."""
        return ["resident"] if self.resident and self.study.steps else []

    def workdir(self, fields: dict[str, str]) -> pathlib.Path:
        return self.out / "runs" / f"{self.study.stage}-{digest_of(self.scale, sorted(fields.items()), *self.kind)}"

    def trained(self, variant: Variant, seed: int) -> Member:
        stage, fields = self.study.stage, self.training(variant, seed)
        workdir = self.workdir(fields)
        overrides = [f"{configs.PREFIX}{name}={value}" for name, value in fields.items()]
        config = configs.training(f"experiments/{stage}.py:{self.scale}", overrides)
        print(f"{variant.name}, seed {seed}: {config.steps} updates in {workdir}", flush=True)
        (resident.train if self.resident else train)(configs.with_data(config, workdir), workdir)
        jax.clear_caches()  # of a program that no other run has
        found = find_teacher(str(workdir), stage)
        made = Stage(found.stage)
        return Member(made, weights_of(found.path, stage, made.network.abstract), str(found.path))

    def drawn(self, prompts: scenes.Prompts, index: int) -> list[np.ndarray]:
        """The scenes at the size of a stage's videos."""
        stage = self.shipped.members[index].stage.config
        return [
            scenes.rendered(scene, (stage.frames, stage.height, stage.width, stage.fps)) for scene in prompts.scenes
        ]

    def inputs(self, variant: Variant, prompts: scenes.Prompts, index: int, seed: int, split: str):
        """What the shipped stages before give, one video per prompt; None for the base."""
        start = variant.drawn
        scenes_drawn = self.drawn(prompts, start - 1) if start else None
        if start == index:
            return scenes_drawn

        def sample(begin: int, end: int) -> np.ndarray:
            given = np.stack(scenes_drawn[begin:end]) if start else None
            captions = prompts.captions[begin:end]
            return self.shipped.sample(captions, seed=seed, first=begin, start=start, stop=index, video_BTHWC=given)

        after = f"-drawn{start}" if start else ""
        folder = self.out / "inputs" / f"{self.study.stage}{after}-seed{seed}-{self.shipped_sums}" / split
        return kept_videos(sample, len(prompts.captions), BATCH, folder, f"inputs, seed {seed}: {split}")


def sampler_of(cascade: Cascade, index: int, prompts: scenes.Prompts, seed: int, inputs, changes: dict):
    """(begin, end) -> videos of one stage, of its inputs where it has any."""

    def sample(begin: int, end: int) -> np.ndarray:
        return cascade.sample(
            prompts.captions[begin:end],
            seed=seed,
            first=begin,
            start=index,
            stop=index + 1,
            video_BTHWC=None if inputs is None else np.stack(inputs[begin:end]),
            samplers={index: changes},
        )

    return sample


def prompts_of(split: str, count: int) -> scenes.Prompts:
    """Captions of scenes of a split of motion_shapes, or of some of its validation scenes.

    "styled" are moving figures in styles that only images have, "words" are written, "solids" turn.
    """
    if split not in CHOSEN:
        return scenes.prompts_of_scenes(split, count)
    everything = (motion_shapes.make_scene(scenes.SEED, index, split="validation") for index in itertools.count())
    chosen = list(itertools.islice(filter(CHOSEN[split], everything), count))
    if split == "styled":
        styles = itertools.cycle(style for style in motion_shapes.STYLES if style != "plain")
        chosen = [dataclasses.replace(scene, style=style) for scene, style in zip(chosen, styles)]
    return scenes.Prompts(tuple(motion_shapes.captions_of(scene, 1)[0] for scene in chosen), tuple(chosen))


def show(videos: Sequence[np.ndarray], fps: float, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, video in enumerate(videos):
        write_video(folder / f"{number:06d}.mp4", video, fps=fps)


# The table.


def table_of(study: Study, results: dict[str, list[dict]]) -> list[dict]:
    """A row per kind of prompts and variant: per measure its mean, and how much more that is than the first variant's.

    Args: results: variant -> a result per seed, in the same order of seeds.
    """
    first = results[study.variants[0].name]
    return [
        {"prompts": split, "variant": name}
        | {measure: compared(measure, split, first, own) for measure in study.measures}
        for split in study.prompts
        for name, own in results.items()
    ]


def compared(measure: str, split: str, first: Sequence[dict], own: Sequence[dict]) -> dict:
    """Mean, difference to the first variant with its interval, and the range of the seeds' differences; no mean where
    none of the prompts asks for it."""

    def values(result: dict) -> np.ndarray:
        return np.array([np.nan if v is None else v for v in result["values"][split][measure]], np.float64)

    one, other = (np.stack([values(result) for result in results]) for results in (first, own))
    asked = ~np.isnan(other[0])
    difference_SN = (other - one)[:, asked]
    found = {"mean": float(other[:, asked].mean()) if asked.any() else None}
    if own is first or not asked.any():
        return found
    seeds = difference_SN.mean(1)
    return found | {
        "difference": float(difference_SN.mean()),
        "interval": bootstrap.mean_interval(difference_SN.mean(0)),
        "seeds": [float(seeds.min()), float(seeds.max())],
    }


def markdown(study: Study, results: dict[str, list[dict]]) -> str:
    head = ["prompts", "variant", *(name.replace("_", " ") for name in study.measures)]
    lines = [study.question, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table_of(study, results):
        cells = [cell_of(row[measure], share=not measure.startswith("pixels")) for measure in study.measures]
        lines.append("| " + " | ".join([row["prompts"], row["variant"], *cells]) + " |")
    return "\n".join(lines)


def cell_of(found: dict, *, share: bool) -> str:
    """E.g. "47%, -9 (-14 to -4; seeds -11 to -7)": points for shares, grey levels otherwise; empty for no mean."""
    if found["mean"] is None:
        return ""
    scale, form = (100, ".0f") if share else (1, ".2f")
    text = format(scale * found["mean"], form) + ("%" if share else "")
    if "difference" not in found:
        return text
    (low, high), seeds = found["interval"], found["seeds"]
    sign = "" if low > 0 or high < 0 else "= "
    values = [found["difference"], low, high, *seeds]
    more, low, high, least, most = (format(scale * value, "+" + form) for value in values)
    of_seeds = f"; seeds {least} to {most}" if seeds[0] < seeds[1] else ""
    return f"{text}, {sign}{more} ({low} to {high}{of_seeds})"


if __name__ == "__main__":
    sys.exit(in_one_line(main))
