"""The main job on the embedded default, end to end: videos of the shipped miniature, data, seven stages trained on from
it (or from nothing), videos again, scores before and after, a report.

Every part leaves its result on disk and is skipped when it is there, so an interrupted demo goes on where it was.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np

from imagen_video_jax import configs, shipped, storage
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import join
from imagen_video_jax.data import motion_shapes
from imagen_video_jax.evaluation.judge import Judge
from imagen_video_jax.evaluation.report import Report
from imagen_video_jax.sampling import SampleRequest, sample_with
from imagen_video_jax.training.loop import train
from imagen_video_jax.training.metrics import progress_bar, read_rows

DEFAULT_MINUTES = 7.0
# Of the learning rate, for stages that are trained already.
FURTHER = 0.3
# Share of the training time of each stage: the base decides what is in the picture.
SHARES = (0.58, 0.07, 0.08, 0.08, 0.07, 0.04, 0.08)
# Stages that, from nothing, start from the weights of an earlier one (both counted from 1): the same network and task,
# at another frame rate or size.
WARM_STARTS = {6: 5, 7: 4}
JUDGED = 64
# What the prompts test: combinations seen in training, combinations held out of it, words that no caption used.
PROMPTS = ("seen",) * 4 + ("held_out",) * 2 + ("paraphrase",) * 2
# Videos sampled at once, for prompts and judge alike: one compiled program a stage.
BATCH = 8


def run(out: pathlib.Path, *, minutes: float, seed: int, scratch: bool = False) -> dict:
    """Runs the demo in folder `out`; returns the scores and times that the report shows.

    Args: scratch trains from nothing, without the miniature that comes with the package.
    """
    out = storage.writable_folder(out)
    with storage.directory_lock(out):
        began = time.monotonic()
        summary: dict = {"minutes": minutes}
        if not scratch:
            summary["before"] = show_miniature(out / "miniature", seed)
        workdirs = train_stages(out, minutes=minutes, seed=seed, scratch=scratch)
        join([str(folder) for folder in workdirs], out / "cascade.json")
        cascade = Cascade.load(out / "cascade.json")
        sampled = sample_prompts(cascade, out, seed)
        summary |= {"scores": judge_base(cascade, out, seed), "seconds": round(time.monotonic() - began, 1)}
        write_report(out, workdirs, sampled, summary)
    print(f"videos: {out / 'videos'}   report: {out / 'report.html'}")
    return summary


def show_miniature(folder: pathlib.Path, seed: int) -> dict:
    """Videos of the shipped miniature, within two minutes of a first run, and its scores."""
    cascade = Cascade.load(shipped.miniature())
    request = SampleRequest(prompts=tuple(text for text, _ in prompts()), seed=seed, batch=BATCH)
    print("videos of the miniature that comes with the package", flush=True)
    sample_with(cascade, request, folder / "videos", name="miniature")
    print(f"the first videos: {folder / 'videos'}", flush=True)
    return judge_base(cascade, folder, seed)


def stage_names() -> tuple[str, ...]:
    return configs.packaged("scales").STAGES


def train_stages(out: pathlib.Path, *, minutes: float, seed: int, scratch: bool) -> list[pathlib.Path]:
    """Trains each mini stage for its share of the time; returns their workdirs."""
    workdirs: list[pathlib.Path] = []
    for number, (name, share) in enumerate(zip(stage_names(), SHARES), 1):
        workdir = out / "stages" / f"{number}_{name}"
        config = dataclasses.replace(
            configs.training(f"experiments/{name}.py:mini"),
            max_seconds=share * minutes * 60,
            steps=1_000_000,
            checkpoint_every=200,
            seed=seed,
            keep=1,
            init_from=_start(number, workdirs) if scratch else str(shipped.FOLDER),
        )
        if not scratch:
            rate = FURTHER * config.optimizer.learning_rate
            optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
            config = dataclasses.replace(config, optimizer=optimizer, stage=shipped.stages()[number - 1])
        config = configs.with_data(config, workdir)
        print(f"[{number}/7] {name}: {config.max_seconds:.0f} s of training", flush=True)
        train(config, workdir)
        workdirs.append(workdir)
    return workdirs


def _start(number: int, workdirs: list[pathlib.Path]) -> str:
    return str(workdirs[WARM_STARTS[number] - 1]) if number in WARM_STARTS else ""


def prompts() -> list[tuple[str, str]]:
    """(prompt, what it tests): seen combinations, held-out combinations, paraphrases in words of no caption."""
    listed = []
    for index, kind in enumerate(PROMPTS):
        scene = motion_shapes.make_scene(123, index, split="held_out" if kind == "held_out" else "validation")
        text = motion_shapes.paraphrase_of(scene) if kind == "paraphrase" else motion_shapes.captions_of(scene, 1)[0]
        listed.append((text, kind))
    return listed


def sample_prompts(cascade: Cascade, out: pathlib.Path, seed: int) -> list[dict]:
    """Final videos into DIR/videos, every stage's into DIR/stage_videos."""
    done = out / "videos" / "samples.jsonl"
    if _newer_than_training(done, out):
        return [json.loads(line) for line in done.read_text().splitlines()]
    request = SampleRequest(prompts=tuple(text for text, _ in prompts()), seed=seed, batch=BATCH)
    return sample_with(
        cascade, request, out / "videos", name=str(out / "cascade.json"), stage_videos=out / "stage_videos"
    )


def _newer_than_training(file: pathlib.Path, out: pathlib.Path) -> bool:
    """Whether a result was made of the checkpoints that are there now."""
    trained = [path.stat().st_mtime for path in out.glob("stages/*/checkpoints/*/manifest.json")]
    return file.exists() and file.stat().st_mtime > max(trained, default=0.0)


def judge_base(cascade: Cascade, out: pathlib.Path, seed: int) -> dict:
    """What the judge reads off base samples of validation captions, against what the captions say."""
    if _newer_than_training(out / "scores.json", out):
        return storage.read_json(out / "scores.json")
    scenes = [motion_shapes.make_scene(321, index, split="validation") for index in range(JUDGED)]
    captions = [motion_shapes.captions_of(scene, 1)[0] for scene in scenes]
    videos: list[np.ndarray] = []
    bar, task = progress_bar(f"{JUDGED} base samples for the judge", JUDGED)
    with bar:
        for begin in range(0, JUDGED, BATCH):
            videos += list(cascade.sample(captions[begin : begin + BATCH], seed=seed, first=begin, stop=1))
            bar.update(task, completed=len(videos))
    scores = Judge.load().score(videos, scenes)
    storage.write_json(out / "scores.json", scores)
    return scores


def write_report(out: pathlib.Path, workdirs: list[pathlib.Path], sampled: list[dict], summary: dict) -> None:
    report = Report("Imagen Video in JAX: a miniature of the whole cascade")
    start = "trained on from the miniature that comes with the package," if "before" in summary else "trained"
    report.paragraph(
        f"Seven diffusion models, {start} for {summary['minutes']:g} minutes altogether on the embedded data set "
        "motion_shapes, on this machine."
    )
    kinds = dict(prompts())
    if "before" in summary:
        report.heading("Before: the miniature that comes with the package")
        folder = out / "miniature" / "videos"
        report.videos([(folder / row["path"], row["prompt"]) for row in sampled])
    report.heading("Final videos: 64 frames of 96x160 at 24 fps")
    report.videos(
        [(out / "videos" / row["path"], f"{row['prompt']} ({kinds.get(row['prompt'], '')})") for row in sampled]
    )
    report.heading("Scores of 64 base samples, read by the judge")
    report.table(*_scores(summary))
    report.heading("Every stage, for the first prompts")
    for number, name in enumerate(stage_names(), 1):
        report.paragraph(f"{number}. {name}")
        folder = out / "stage_videos" / f"{number}_{name}"
        report.videos([(folder / row["path"], row["prompt"]) for row in sampled[:4]])
    report.heading("Training loss")
    curves = {}
    for workdir in workdirs:
        train_rows = [row for row in read_rows(workdir / "metrics.jsonl") if row.get("kind") == "train"]
        curves[workdir.name[:22]] = [(row["step"], row["loss"]) for row in train_rows[1:]]
    report.curves(curves, x="steps", y="loss")
    report.heading("What next")
    report.paragraph("Sample your own prompts:")
    report.command(
        f'imagen-video sample --cascade {out}/cascade.json --prompt "a red circle moves left" --out {out}/mine'
    )
    report.paragraph("Train longer (an hour makes a visible difference), or on your own folder of captioned videos:")
    report.command("imagen-video demo --out out/longer --minutes 60")
    report.command(
        "imagen-video train --config experiments/base_16f_24x40.py:mini --config.data=DIR --workdir out/base"
    )
    storage.write_text(out / "report.html", report.html())


def _scores(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of scores: after the training, and before it where that was not from nothing."""
    columns = {"before": summary["before"], "after": summary["scores"]} if "before" in summary else {}
    columns = columns or {"right": summary["scores"]}
    header = ["attribute", *(text for name in columns for text in (name, "95% interval"))]
    rows = []
    for name in summary["scores"]:
        cells = [(f"{scores[name]['accuracy']:.0%}", _interval(scores[name])) for scores in columns.values()]
        rows.append([name, *(text for pair in cells for text in pair)])
    return header, rows


def _interval(value: dict) -> str:
    low, high = value["interval"]
    return f"{low:.0%} to {high:.0%}"
