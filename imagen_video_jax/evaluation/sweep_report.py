"""The page of a sweep: a table, the distance-against-alignment curve, playing videos, scores over what was swept."""

import html
import pathlib
from collections.abc import Sequence

from imagen_video_jax.evaluation.charts import Point, chart, legend
from imagen_video_jax.evaluation.metrics import METRICS
from imagen_video_jax.evaluation.report import Report, video_source
from imagen_video_jax.evaluation.scenes import Prompts, shown_folder

DISTANCES = ("fvd", "fid", "kvd", "kid", "cmmd")
ALIGNMENTS = ("clip_score", "clip_r_precision", "scorer_score", "scorer_r_precision", "judge")
_EMBEDDED = 24 << 20  # bytes of videos within the page; more stay files beside it
_SHOWN_CELLS = 48  # whose videos are shown
_SHARES = ("judge", "ocr", "clip_r_precision", "scorer_r_precision")  # between 0 and 1, with all that begins so
_FIELDS = {  # what tells cells apart, and how it is said
    "stage": str,
    "size": lambda value: f"{value[0]}x{value[1]}x{value[2]}",
    "step": lambda value: f"step {value}",
    "ema": lambda value: "EMA" if value else "without EMA",
    "sampler": str,
    "steps": lambda value: f"{value} calls",
    "guidance": lambda value: f"w {value:g}",
    "guidance_low": lambda value: "constant" if value is None else f"and {value:g} in turn",
    "seed": lambda value: f"seed {value}",
}


def page(workdir: pathlib.Path, rows: list[dict], prompts: Prompts, left_out: dict, failed: dict, shown: int) -> str:
    """The report as HTML; rows as in results.jsonl, in any order."""
    rows = [row | {"size": tuple(row["size"])} for row in rows]
    order = ("sampler", "steps", "guidance", "guidance_low")
    rows.sort(key=lambda row: (row["step"], not row["ema"], *(_sortable(row[field]) for field in order)))
    report = Report("Imagen Video in JAX: evaluation")
    _opening(report, rows)
    _table(report, rows)
    _notes(report, rows, left_out, failed)
    _trade_off(report, rows)
    _videos(report, workdir, rows, prompts, shown)
    _over(report, rows, "step", "Over training", "training steps")
    _over(report, rows, "guidance", "Over the guidance weight", "guidance weight w")
    _over(report, rows, "steps", "Over the network calls of the sampler", "network calls")
    _loss_levels(report, rows)
    return report.html()


def grouped(left_out: dict[str, str]) -> list[str]:
    """What is not measured, a line per reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    return [f"not measured: {', '.join(found)}: {reason}" for reason, found in names.items()]


def _sortable(value):
    """What is None before everything else."""
    return (value is not None, value)


def _differing(rows: Sequence[dict], but: str = "") -> list[str]:
    return [field for field in _FIELDS if field != but and len({row[field] for row in rows}) > 1]


def _told(row: dict, fields: Sequence[str]) -> str:
    return ", ".join(_FIELDS[field](row[field]) for field in fields)


def _opening(report: Report, rows: list[dict]) -> None:
    row, differing = rows[-1], _differing(rows)
    frames, height, width, fps = row["size"]
    same = _told(row, [field for field in _FIELDS if field not in (*differing, "stage", "size")])
    report.paragraph(
        f"{row['config']['cascade']}, swept at {row['stage']}{f' ({same} in every cell)' if same else ''}: "
        f"{len(rows)} cells of {row['videos']} videos, {frames} frames of {height}x{width} at {fps:g} fps, beside "
        f"{row['real_videos'] or 'no'} real ones."
    )


def _names(rows: Sequence[dict]) -> list[str]:
    """Metrics that are plain numbers of the samples, in the order in which they first come."""
    found = dict.fromkeys(name for row in rows for name, v in row["metrics"].items() if isinstance(v, (int, float)))
    return [name for name in found if not name.endswith(("_real", "_pool"))]


def _text(metrics: dict, name: str) -> str:
    if name not in metrics:
        return ""
    value, interval = metrics[name], metrics.get(f"{name}_interval")
    return f"{value:.4g}" + (f"\n{interval[0]:.3g} to {interval[1]:.3g}" if interval else "")


def _better(name: str) -> str:
    """Whether a number should be "lower" or "higher", "" where the real videos' is the aim."""
    if name.startswith(("validation_loss", "colour_shift")):
        return "lower"
    return next((metric.better for own, metric in METRICS.items() if name == own or name.startswith(f"{own}_")), "")


def _best(rows: list[dict], name: str) -> set[int]:
    """The rows with the best value; none where most have it."""
    values = {i: row["metrics"][name] for i, row in enumerate(rows) if name in row["metrics"]}
    if not _better(name) or not values:
        return set()
    best = (min if _better(name) == "lower" else max)(values.values())
    found = {i for i, value in values.items() if value == best}
    return found if 2 * len(found) <= len(values) else set()


def _table(report: Report, rows: list[dict]) -> None:
    report.heading("Every cell")
    names, differing = _names(rows), _differing(rows) or ["step"]
    lines = [
        [_told(row, differing), *(_text(row["metrics"], name) for name in names), f"{row['seconds']:.0f}"]
        for row in rows
    ]
    real = [_text(rows[-1]["metrics"], f"{name}_real") for name in names]
    if any(real):
        lines.append(["the real videos", *real, ""])
    arrows = {"lower": " ↓", "higher": " ↑", "": ""}
    best = {(i, j) for j, name in enumerate(names, 1) for i in _best(rows, name)}
    report.table(["cell", *(name + arrows[_better(name)] for name in names), "seconds"], lines, best)
    report.paragraph(
        "Small print: 95% intervals over videos; where two overlap, the difference may be chance. ↑ ↓ say which way is "
        "better and green is the best value; without an arrow, the real videos are the aim."
    )
    report.items([f"{name}: {METRICS[name].text}" for name in names if name in METRICS])


def _notes(report: Report, rows: list[dict], left_out: dict, failed: dict) -> None:
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    lines = [*notes, *grouped(left_out)]
    lines += [f"failed: {title}: {reason}" for title, reason in failed.items()]
    if lines:
        report.heading("What to know when reading them")
        report.items(lines)


def _groups(rows: Sequence[dict], along: str) -> dict[str, list[dict]]:
    """Rows that differ in `along` alone, by what they have in common; a name tells only what differs between groups."""
    differing, found = _differing(rows, but=along), {}
    for row in rows:
        found.setdefault(_told(row, differing), []).append(row)
    return {name: sorted(group, key=lambda row: _sortable(row[along])) for name, group in found.items()}


def _legend(report: Report, groups: dict[str, list[dict]]) -> None:
    if len(groups) > 1:
        report.parts.append(legend(list(groups)))


def _trade_off(report: Report, rows: list[dict]) -> None:
    pairs = [
        (d, a) for d in DISTANCES for a in ALIGNMENTS if all(d in r["metrics"] and a in r["metrics"] for r in rows)
    ]
    if not pairs or len({row["guidance"] for row in rows}) < 2:
        return
    report.heading("Fidelity against alignment, over the guidance weight")
    report.paragraph("Down is closer to real videos, right is closer to the prompt; each point says its weight w.")
    groups, charts = _groups(rows, "guidance"), []
    _legend(report, groups)
    for distance, alignment in pairs[:4]:
        series = {
            name: [Point(r["metrics"][alignment], r["metrics"][distance], f"w {r['guidance']:g}") for r in group]
            for name, group in groups.items()
        }
        charts.append(chart(series, x=alignment, y=distance, width=520, with_legend=False))
    report.side_by_side(charts)


def _over(report: Report, rows: list[dict], field: str, title: str, label: str) -> None:
    """A chart per metric; those in which nothing differs are named in a line."""
    if len({row[field] for row in rows}) < 2:
        return
    report.heading(title)
    groups = _groups(rows, field)
    _legend(report, groups)
    charts, alike = [], []
    for name in _names(rows):
        if name == "validation_loss" and field != "step":
            continue  # nothing is sampled for it
        values = {row["metrics"][name] for row in rows if name in row["metrics"]}
        if len(values) < 2:
            alike.append(f"{name} ({values.pop():.4g})")
            continue
        series = {
            group: [_point(row, field, name) for row in members if name in row["metrics"]]
            for group, members in groups.items()
        }
        charts.append(_metric_chart(series, name, label, rows[-1]["metrics"].get(f"{name}_real")))
    report.side_by_side(charts)
    if alike:
        report.paragraph(f"The same in every cell: {', '.join(alike)}.")


def _metric_chart(series: dict[str, list[Point]], name: str, label: str, real: float | None) -> str:
    return chart(
        series,
        x=label,
        y=name,
        width=350,
        height=250,
        level=None if real is None else (real, "real videos"),
        y_range=(0.0, 1.0) if name.startswith(_SHARES) else None,
        apart=4.0,
        with_legend=False,
    )


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


# Videos.


def _videos(report: Report, workdir: pathlib.Path, rows: list[dict], prompts: Prompts, shown: int) -> None:
    """A grid per prompt: what has most values goes from left to right, the rest from top to bottom."""
    rows = [row for row in rows if row["prompts"] == prompts.digest]  # not those of an earlier sweep in this folder
    chosen, count = rows[:_SHOWN_CELLS], min(shown, len(prompts.captions))
    if not count or not chosen:
        return
    real = shown_folder(prompts, chosen[-1]["size"])
    report.heading("The same prompts and seeds in every cell")
    if len(rows) > len(chosen):
        report.paragraph(f"The first {len(chosen)} of {len(rows)} cells; all samples are in the folder samples.")
    names = [f"{i:06d}.mp4" for i in range(count)]
    files = [workdir / folder / name for folder in (real, *(row["samples"] for row in chosen)) for name in names]
    size = sum(path.stat().st_size for path in files if path.is_file())
    relative_to = None if size <= _EMBEDDED else workdir
    for caption, name in zip(prompts.captions, names):
        report.parts.append(
            f"<h3>{html.escape(caption)}</h3>{_grid(workdir, chosen, workdir / real / name, relative_to)}"
        )


def _grid(workdir: pathlib.Path, rows: list[dict], real: pathlib.Path, relative_to: pathlib.Path | None) -> str:
    along = max(_FIELDS, key=lambda field: len({row[field] for row in rows}))
    values = sorted({row[along] for row in rows}, key=_sortable)
    width = max(100, min(180, 900 // (len(values) + 1)))
    said = ["", *(["as it really looks"] if real.is_file() else []), *(_FIELDS[along](value) for value in values)]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in said)
    body = ""
    for number, (group, members) in enumerate(_groups(rows, along).items()):
        found = {row[along]: workdir / row["samples"] / real.name for row in members}
        cells = [_video(found[value], relative_to, width) if value in found else "" for value in values]
        if real.is_file():
            cells.insert(0, "" if number else _video(real, relative_to, width))
        body += f"<tr><th>{html.escape(group)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f'<div class="wide"><table class="grid"><tr>{head}</tr>{body}</table></div>'


def _video(path: pathlib.Path, relative_to: pathlib.Path | None, width: int) -> str:
    if not path.is_file():
        return "(removed)"
    source = video_source(path, relative_to)
    return f'<video autoplay loop muted playsinline style="width:{width}px" src="{source}"></video>'
