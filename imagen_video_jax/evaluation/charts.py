"""Curves as inline SVG: both axes fit the data, points may carry a label and an interval."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

from imagen_video_jax.evaluation.report import COLOURS

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 32, 44


@dataclasses.dataclass(frozen=True)
class Point:
    """A place on a curve; `low` and `high` bound its interval in y."""

    x: float
    y: float
    label: str = ""
    low: float | None = None
    high: float | None = None


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    span = high - low
    raw = span / max(count, 1)
    step = 10 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if raw <= m * step * 1.0001)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def chart(
    series: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    width: int = 560,
    height: int = 320,
    level: tuple[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
    apart: float = 0.0,
    with_legend: bool = True,
) -> str:
    """An SVG of curves; x and y name the axes, each point tells its numbers when it is pointed at.

    Args:
      level: a dashed line and its name.
      y_range: ends of the y axis; by default they fit the data.
      apart: pixels by which curves are set apart along x, so that intervals at the same x do not hide each other.
      with_legend: names the curves below, where there are several.
    """
    points = [point for curve in series.values() for point in curve]
    if not points:
        return "<p>(no data)</p>"
    ends = min(point.x for point in points), max(point.x for point in points)
    x_ticks = ticks(*(ends if ends[0] < ends[1] else _range(ends)))
    inset = (16 if any(point.label for point in points) else 8) + apart * len(series) / 2
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + [*(level or ())[:1]]
    y_ticks = ticks(*(y_range or _range(heights)))
    legend = 18 * len(series) if with_legend and len(series) > 1 else 0

    def at_x(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return _LEFT + inset + share * (width - _LEFT - _RIGHT - 2 * inset)

    def at_y(value: float) -> float:
        return height - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - _BOTTOM - _TOP)

    size = f'width="{width}" height="{height + legend}" viewBox="0 0 {width} {height + legend}"'
    parts = [f'<svg {size} role="img" aria-label="{html.escape(f"{y} by {x}")}">']
    parts += _axes(x_ticks, y_ticks, at_x, at_y, width, height, x, y)
    if level is not None:
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at_y(level[0]):.1f}" y2="{at_y(level[0]):.1f}" '
            f'stroke="#666" stroke-dasharray="5 4"/><text x="{width - _RIGHT}" y="{at_y(level[0]) - 4:.1f}" '
            f'font-size="11" fill="#666" text-anchor="end">{html.escape(level[1])}</text>'
        )
    for number, (name, curve) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        offset = apart * (number - (len(series) - 1) / 2)
        parts += _curve(name, curve, colour, lambda value, offset=offset: at_x(value) + offset, at_y)
        if legend:
            top = height + 18 * number + 8
            parts.append(f'<rect x="{_LEFT}" y="{top - 8}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{_LEFT + 16}" y="{top + 1}" font-size="12">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room if low < 0 or low - room > 0 else 0.0, high + room


def _axes(x_ticks, y_ticks, at_x, at_y, width, height, x, y) -> list[str]:
    parts = []
    for value in y_ticks:
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at_y(value):.1f}" y2="{at_y(value):.1f}" stroke="#e2e2e2"/>'
            f'<text x="{_LEFT - 6}" y="{at_y(value) + 4:.1f}" font-size="11" text-anchor="end">{value:.4g}</text>'
        )
    for value in x_ticks:
        parts.append(
            f'<line x1="{at_x(value):.1f}" x2="{at_x(value):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="#eee"/>'
            f'<text x="{at_x(value):.1f}" y="{height - _BOTTOM + 15}" font-size="11" text-anchor="middle">'
            f"{value:.4g}</text>"
        )
    parts.append(
        f'<text x="{(width + _LEFT) / 2}" y="{height - 10}" font-size="12" text-anchor="middle">{html.escape(x)}</text>'
        f'<text x="8" y="17" font-size="13" font-weight="bold">{html.escape(y)}</text>'
    )
    return parts


def legend(names: Sequence[str]) -> str:
    """What the colours of several charts stand for, as one line of HTML."""
    keys = (
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{html.escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(keys)}</p>'


def _told(name: str, p: Point) -> str:
    interval = "" if p.low is None or p.high is None else f" ({p.low:.4g} to {p.high:.4g})"
    return html.escape(f"{name}: {p.y:.4g}{interval} at {p.x:g}")


def _curve(name: str, curve: Sequence[Point], colour: str, at_x, at_y) -> list[str]:
    path = " ".join(f"{at_x(p.x):.1f},{at_y(p.y):.1f}" for p in curve)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    for p in curve:
        px, py = at_x(p.x), at_y(p.y)
        if p.low is not None and p.high is not None:
            parts.append(
                f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{at_y(p.low):.1f}" y2="{at_y(p.high):.1f}" '
                f'stroke="{colour}" opacity="0.45"/>'
            )
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"><title>{_told(name, p)}</title></circle>'
        )
        if p.label:
            parts.append(
                f'<text x="{px + 6:.1f}" y="{py - 6:.1f}" font-size="11" fill="{colour}">{html.escape(p.label)}</text>'
            )
    return parts
