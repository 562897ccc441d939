"""Accuracy against what is left of a model, as one SVG file with a panel each for parameters, MACs and the measured time of a
call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from onnxmerge.report.charts import ticks

WIDTH, HEIGHT, LEFT, TOP, GAP = 360, 300, 50, 30, 60  # of a panel, space before it, above it, and between two
LEGEND, LINE = 190, 18  # width of the legend, height of one of its lines
COLOURS = (
    "#777777",
    "#8c564b",
    "#9467bd",
    "#1f77b4",
    "#d62728",
    "#e377c2",
    "#2ca02c",
    "#ff7f0e",
    "#17becf",
    "#bcbd22",
    "#000000",
)
AXES = {"parameters_left": "parameters left", "macs_left": "MACs left", "time_left": "measured time left"}

Points = Sequence[tuple[float, float]]
"""(share left, per cent right)."""


def chart(title: str, reference: float, lines: Mapping[str, Mapping[str, Points]]) -> str:
    """The file; lines: by name of a method, for each of AXES its points; reference: per cent right of the original model."""
    panels = LEFT + len(AXES) * (WIDTH + GAP)
    width = panels + LEGEND
    height = TOP + max(HEIGHT + 50, len(lines) * LINE + 20)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(lines)}
    for number, (axis, label) in enumerate(AXES.items()):
        own = {name: points[axis] for name, points in lines.items()}
        parts += _panel(LEFT + number * (WIDTH + GAP), label, reference, own, colours)
    left = panels - GAP + 20
    for at, (name, colour) in enumerate(colours.items()):
        y = TOP + 10 + at * LINE
        parts.append(f'<line x1="{left}" x2="{left + 20}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 26}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, label: str, reference: float, lines: Mapping[str, Points], colours: Mapping[str, str]) -> list[str]:
    most = max([1.0, *(share for points in lines.values() for share, _ in points)])

    def across(share: float) -> float:
        return round(left + WIDTH * share / most, 1)

    def down(percent: float) -> float:
        return round(TOP + HEIGHT * (1.0 - percent / 100.0), 1)

    parts = [f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444444"/>']
    for value in ticks(0.0, 100.0):
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{down(value)}" y2="{down(value)}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 5}" y="{down(value) + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(0.0, most):
        parts.append(f'<text x="{across(value)}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{value:.0%}</text>')
    middle = left + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{TOP + HEIGHT + 34}" text-anchor="middle">{label}; upwards: per cent right</text>')
    dashed = f'y1="{down(reference)}" y2="{down(reference)}" stroke="#444444" stroke-dasharray="4 3"'
    parts.append(f'<line x1="{left}" x2="{left + WIDTH}" {dashed}/>')
    for name, points in lines.items():
        places = [(across(share), down(percent)) for share, percent in sorted(points)]
        joined = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colours[name]}"/>' for x, y in places]
    return parts
