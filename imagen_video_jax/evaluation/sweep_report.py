"""The page of a sweep: a table, the distance-against-alignment curve, scores over training, playing videos."""

import html
import pathlib
from collections.abc import Sequence

from imagen_video_jax.evaluation.charts import Point, chart
from imagen_video_jax.evaluation.metrics import METRICS
from imagen_video_jax.evaluation.report import Report, video_source
from imagen_video_jax.evaluation.scenes import Prompts

DISTANCES = ("fvd", "fid", "kvd", "kid", "cmmd")
ALIGNMENTS = ("clip_score", "clip_r_precision", "scorer_score", "scorer_r_precision", "judge")
_EMBEDDED = 24 << 20  # bytes of videos within the page; more stay files beside it
_COLUMNS = 12  # cells in the grid of videos


def page(workdir: pathlib.Path, rows: list[dict], prompts: Prompts, left_out: dict, failed: dict, shown: int) -> str:
    """The report as HTML; rows as in results.jsonl, in any order."""
    rows = sorted(rows, key=lambda row: (row["step"], not row["ema"], row["sampler"], row["steps"], row["guidance"]))
    report = Report("Imagen Video in JAX: evaluation")
    frames, height, width, fps = rows[-1]["size"]
    report.paragraph(
        f"{len(rows)} cells of {rows[-1]['videos']} videos each, {frames} frames of {height}x{width} at {fps:g} fps, "
        f"against {rows[-1]['real_videos']} real videos. Small print: 95% intervals over videos."
    )
    _table(report, rows)
    _notes(report, rows, left_out, failed)
    _trade_off(report, rows)
    _over(report, rows, "step", "Over training", "training steps")
    _over(report, rows, "guidance", "Over the guidance weight", "guidance weight w")
    _over(report, rows, "steps", "Over the network calls of the sampler", "network calls")
    _loss_levels(report, rows)
    _videos(report, workdir, rows, prompts, shown)
    return report.html()


def grouped(left_out: dict[str, str]) -> list[str]:
    """What is not measured, a line per reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    return [f"not measured: {', '.join(found)}: {reason}" for reason, found in names.items()]


def _names(rows: Sequence[dict]) -> list[str]:
    """Metrics that are plain numbers of the samples, in the order in which they first come."""
    found = dict.fromkeys(name for row in rows for name, v in row["metrics"].items() if isinstance(v, (int, float)))
    return [name for name in found if not name.endswith(("_real", "_pool"))]


def _text(metrics: dict, name: str) -> str:
    if name not in metrics:
        return ""
    value, interval = metrics[name], metrics.get(f"{name}_interval")
    return f"{value:.4g}" + (f"\n{interval[0]:.3g} to {interval[1]:.3g}" if interval else "")


def _table(report: Report, rows: list[dict]) -> None:
    report.heading("Every cell")
    names = _names(rows)
    lines = [[row["cell"], *(_text(row["metrics"], name) for name in names), f"{row['seconds']:.0f}"] for row in rows]
    real = [_text(rows[-1]["metrics"], f"{name}_real") for name in names]
    if any(real):
        lines.append(["the real videos", *real, ""])
    report.table(["cell", *names, "seconds"], lines)
    told = [f"{name}: {METRICS[name].text}" for name in names if name in METRICS]
    report.paragraph("; ".join(told) + ".")


def _notes(report: Report, rows: list[dict], left_out: dict, failed: dict) -> None:
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    lines = [*notes, *grouped(left_out)]
    lines += [f"failed: {title}: {reason}" for title, reason in failed.items()]
    if lines:
        report.heading("What to know when reading them")
        report.items(lines)


def _groups(rows: Sequence[dict], along: str) -> dict[str, list[dict]]:
    """Rows that differ in `along` alone, by what they have in common; a name tells only what differs between groups."""
    fields = [field for field in ("step", "ema", "sampler", "steps", "guidance", "seed") if field != along]
    differing = [field for field in fields if len({row[field] for row in rows}) > 1]
    found: dict[str, list[dict]] = {}
    for row in rows:
        name = ", ".join(f"{field} {row[field]}" for field in differing) or "all"
        found.setdefault(name, []).append(row)
    return {name: sorted(group, key=lambda row: row[along]) for name, group in found.items()}


def _trade_off(report: Report, rows: list[dict]) -> None:
    pairs = [
        (d, a) for d in DISTANCES for a in ALIGNMENTS if all(d in r["metrics"] and a in r["metrics"] for r in rows)
    ]
    if not pairs or len({row["guidance"] for row in rows}) < 2:
        return
    report.heading("Fidelity against alignment, over the guidance weight")
    report.paragraph("Down is closer to real videos, right is closer to the prompt; each point says its weight w.")
    charts = []
    for distance, alignment in pairs[:4]:
        series = {
            name: [Point(r["metrics"][alignment], r["metrics"][distance], f"w {r['guidance']:g}") for r in group]
            for name, group in _groups(rows, "guidance").items()
        }
        charts.append(chart(series, x=alignment, y=distance))
    report.side_by_side(charts)


def _over(report: Report, rows: list[dict], field: str, title: str, label: str) -> None:
    if len({row[field] for row in rows}) < 2:
        return
    report.heading(title)
    charts = []
    for name in _names(rows):
        if name == "validation_loss" and field != "step":
            continue  # nothing is sampled for it
        series = {}
        for group, members in _groups(rows, field).items():
            known = [row for row in members if name in row["metrics"]]
            if known:
                series[group] = [_point(row, field, name) for row in known]
        real = rows[-1]["metrics"].get(f"{name}_real")
        level = None if real is None else (real, "real videos")
        charts.append(chart(series, x=label, y=name, width=420, height=280, level=level))
    report.side_by_side(charts)


def _point(row: dict, field: str, name: str) -> Point:
    low, high = row["metrics"].get(f"{name}_interval", (None, None))
    return Point(row[field], row["metrics"][name], low=low, high=high)


def _loss_levels(report: Report, rows: list[dict]) -> None:
    series = {}
    for row in rows:
        levels = row["metrics"].get("validation_loss_by_logsnr")
        if levels:
            name = f"step {row['step']}" + ("" if row["ema"] else " without EMA")
            series[name] = [
                Point(sum(l["logsnr"]) / 2, l["loss"], low=l["interval"][0], high=l["interval"][1]) for l in levels
            ]
    if series:
        report.heading("Validation loss by noise level")
        report.parts.append(chart(series, x="log-SNR (left is noise)", y="loss"))


def _videos(report: Report, workdir: pathlib.Path, rows: list[dict], prompts: Prompts, shown: int) -> None:
    chosen, count = rows[:_COLUMNS], min(shown, len(prompts.captions))
    if not count:
        return
    report.heading("The same prompts and seeds in every cell")
    if len(rows) > len(chosen):
        report.paragraph(f"The first {len(chosen)} of {len(rows)} cells; all samples are in the folder samples.")
    files = [[workdir / row["samples"] / f"{i:06d}.mp4" for row in chosen] for i in range(count)]
    size = sum(path.stat().st_size for line in files for path in line if path.is_file())
    relative_to = None if size <= _EMBEDDED else workdir
    head = "".join(f"<th>{html.escape(row['cell'])}</th>" for row in chosen)
    body = ""
    for caption, line in zip(prompts.captions, files):
        cells = "".join(f"<td>{_video(path, relative_to)}</td>" for path in line)
        body += f"<tr><td>{html.escape(caption)}</td>{cells}</tr>"
    report.parts.append(f'<div class="wide"><table class="grid"><tr><th>prompt</th>{head}</tr>{body}</table></div>')


def _video(path: pathlib.Path, relative_to: pathlib.Path | None) -> str:
    if not path.is_file():
        return "(removed)"
    return f'<video autoplay loop muted playsinline src="{video_source(path, relative_to)}"></video>'
