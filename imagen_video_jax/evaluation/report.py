"""Self-contained HTML reports: playing videos, curves as inline SVG, tables. Opens offline, holds no script."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Collection

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; }
.videos { display: flex; flex-wrap: wrap; gap: 14px; } figure { margin: 0; width: 240px; }
video { width: 240px; image-rendering: pixelated; background: #eee; } figcaption { font-size: .85em; color: #555; }
.wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; font-size: .9em; vertical-align: top; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: #fff; }
td small { color: #777; }
td.best { font-weight: 600; background: #eef6ee; } .wide td:last-child { padding-right: 1.2em; }
.grid { margin: .4em 0 1.6em; } .grid th { font-weight: normal; color: #555; }
.grid td, .grid th { padding: .3em .5em; border: 0; } .grid video { display: block; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; } .legend span { margin-right: 1.6em; white-space: nowrap; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; }
h3 { font-size: 1em; margin: 1.4em 0 0; } svg { max-width: 100%; height: auto; }
code { background: #f4f4f4; padding: .1em .3em; } svg { background: #fafafa; }
"""


@dataclasses.dataclass
class Report:
    """A page that is built from top to bottom."""

    title: str
    parts: list[str] = dataclasses.field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def command(self, text: str) -> None:
        self.parts.append(f"<p><code>{html.escape(text)}</code></p>")

    def table(self, header: list[str], rows: list[list[str]], best: Collection[tuple[int, int]] = ()) -> None:
        """A table whose first column stays when it is scrolled; the second line of a cell is in small print.

        Args: best: (row, column) of cells that stand out.
        """

        def shown(cell) -> str:
            first, *rest = html.escape(str(cell)).split("\n")
            return first + "".join(f"<br><small>{line}</small>" for line in rest)

        head = "".join(f"<th>{shown(cell)}</th>" for cell in header)
        body = ""
        for i, row in enumerate(rows):
            marks = [' class="best"' if (i, j) in best else "" for j in range(len(row))]
            body += "<tr>" + "".join(f"<td{mark}>{shown(cell)}</td>" for mark, cell in zip(marks, row)) + "</tr>"
        self.parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')

    def items(self, lines: list[str]) -> None:
        self.parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")

    def side_by_side(self, charts: list[str]) -> None:
        self.parts.append(f'<div class="charts">{"".join(charts)}</div>')

    def videos(self, files: list[tuple[pathlib.Path, str]]) -> None:
        """Figures of looping videos, embedded in the page, each with its caption."""
        figures = "".join(
            f'<figure><video autoplay loop muted playsinline controls src="{_data_url(path)}"></video>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for path, caption in files
        )
        self.parts.append(f'<div class="videos">{figures}</div>')

    def curves(self, series: dict[str, list[tuple[float, float]]], *, x: str, y: str) -> None:
        self.parts.append(line_chart(series, x=x, y=y))

    def html(self) -> str:
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{STYLE}</style></head><body><h1>{html.escape(self.title)}</h1>{''.join(self.parts)}</body></html>"
        )


def video_source(path: pathlib.Path, relative_to: pathlib.Path | None) -> str:
    """What a page in the folder `relative_to` calls an mp4: its content as a data URL where that is None."""
    return _data_url(path) if relative_to is None else html.escape(path.relative_to(relative_to).as_posix())


def _data_url(path: pathlib.Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22", "#7f7f7f")


def line_chart(series: dict[str, list[tuple[float, float]]], *, x: str, y: str, width=520, height=260) -> str:
    """An SVG of curves over a common x axis; x is scaled to each curve's own range when ranges differ much."""
    points = [point for curve in series.values() for point in curve]
    if not points:
        return "<p>(no data)</p>"
    x_max = max(max(px for px, _ in points), 1e-9)
    y_max = max(max(py for _, py in points), 1e-9)
    left, bottom, top, right = 46, 30, 12, 150

    def place(px, py):
        return (
            f"{left + px / x_max * (width - left - right):.1f},"
            f"{height - bottom - py / y_max * (height - bottom - top):.1f}"
        )

    parts = [
        f'<svg width="{width}" height="{height}" role="img">',
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - right}" y2="{height - bottom}" stroke="#999"/>',
        f'<line x1="{left}" y1="{top}" x2="{left}" y2="{height - bottom}" stroke="#999"/>',
        f'<text x="{left}" y="{height - 8}" font-size="11">0</text>',
        f'<text x="{width - right - 30}" y="{height - 8}" font-size="11">{x_max:g} {html.escape(x)}</text>',
        f'<text x="2" y="{top + 10}" font-size="11">{y_max:.3g} {html.escape(y)}</text>',
    ]
    for number, (name, curve) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(px, py) for px, py in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{width - right + 8}" y="{top + 16 + 16 * number}" font-size="11" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    return "".join(parts) + "</svg>"
