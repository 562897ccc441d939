"""Writes the pictures of docs/methods.md: `python docs/pictures.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "pictures"
KEPT, REMOVED, NEW, INK = "#4c78a8", "#d9d9d9", "#f58518", "#444444"
REMOVED_CHANNELS = {1, 4}
CHANNELS = 6


def group() -> str:
    """A producer's rows, the riders of its channels, and a consumer's columns: the same channels are grey in each."""
    parts = [*_text(95, 20, "producer W"), *_text(245, 20, "bias, BatchNormalization"), *_text(455, 20, "consumer V")]
    for channel in range(CHANNELS):
        y = 40 + 24 * channel
        parts += _cells(40, y, 5, 1, lambda *_, gone=channel in REMOVED_CHANNELS: REMOVED if gone else KEPT)
        parts += _cells(235, y, 1, 1, lambda *_, gone=channel in REMOVED_CHANNELS: REMOVED if gone else KEPT)
        parts += [_line(155, y + 10, 230, y + 10), _line(260, y + 10, 370, y + 10)]
    parts += _cells(385, 52, CHANNELS, 5, lambda column, _: REMOVED if column in REMOVED_CHANNELS else KEPT)
    parts += [*_text(95, 205, "a row for each channel"), *_text(455, 205, "a column for each channel")]
    return _picture(560, 220, parts)


def methods() -> str:
    """A consumer's columns after prune (the same weights), merge (one column scaled) and reconstruct (all solved anew)."""
    changed = {"prune": set[int](), "merge": {0, 3}, "reconstruct": set(range(CHANNELS))}
    notes = {
        "prune": "columns are dropped",
        "merge": "into the most similar ones",
        "reconstruct": "all that stay are solved anew",
    }
    parts: list[str] = []
    for index, (name, new) in enumerate(changed.items()):
        x = 40 + 210 * index
        colours = [REMOVED if c in REMOVED_CHANNELS else NEW if c in new else KEPT for c in range(CHANNELS)]
        parts += _cells(x, 40, CHANNELS, 4, lambda column, _, colours=colours: colours[column])
        parts += [*_text(x + 70, 25, name), *_text(x + 70, 160, notes[name])]
        if name == "merge":
            parts += [_arrow(x + 24 * a + 10, x + 24 * b + 10, 138) for a, b in ((1, 0), (4, 3))]
    return _picture(640, 175, parts)


def allocation() -> str:
    """Three loss curves and the counts at which each loses the same for the next channel."""
    parts = [_line(50, 20, 50, 200), _line(50, 200, 380, 200), *_text(215, 225, "channels kept"), *_text(90, 15, "loss")]
    for name, scale, colour, kept in (("A", 2.0, KEPT, 0.75), ("B", 0.7, NEW, 0.5), ("C", 0.2, INK, 0.25)):
        points = [(50 + 330 * k / 50, 200 - 160 * min(scale * (1 - k / 50) ** 3, 1.05)) for k in range(51)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = points[round(50 * kept)]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        row = 60 + 45 * "ABC".index(name)
        parts += [f'<rect x="430" y="{row}" width="150" height="16" fill="{REMOVED}"/>']
        parts += [f'<rect x="430" y="{row}" width="{150 * kept:.1f}" height="16" fill="{colour}"/>', *_text(415, row + 13, name)]
    return _picture(600, 235, parts)


def branch() -> str:
    """x + f(x) before, x + c after."""
    parts: list[str] = []
    for x, box, colour in ((20, "Conv, ReLU, Conv", KEPT), (320, "constant c", NEW)):
        parts += [_line(x + 20, 90, x + 240, 90), *_text(x + 10, 95, "x")]
        parts.append(f'<circle cx="{x + 215}" cy="90" r="12" fill="white" stroke="{INK}"/>')
        parts += [*_text(x + 215, 95, "+"), _line(x + 215, 40, x + 215, 78), _line(x + 180, 40, x + 215, 40)]
        parts.append(f'<rect x="{x + 60}" y="24" width="120" height="32" rx="4" fill="{colour}"/>')
        parts += _text(x + 120, 45, box, "white")
        if colour == KEPT:
            parts += [_line(x + 40, 40, x + 60, 40), _line(x + 40, 40, x + 40, 90)]
    return _picture(600, 115, parts)


PICTURES = {"group": group, "methods": methods, "allocation": allocation, "branch": branch}


def _cells(x: int, y: int, columns: int, rows: int, colour: Callable[[int, int], str]) -> Iterable[str]:
    for row in range(rows):
        for column in range(columns):
            at = f'x="{x + 24 * column}" y="{y + 24 * row}"'
            yield f'<rect {at} width="20" height="20" rx="2" fill="{colour(column, row)}"/>'


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}"/>'


def _arrow(x1: int, x2: int, y: int) -> str:
    """A curved arrow below a row of cells."""
    bend = f"M{x1},{y} q{(x2 - x1) / 2:.0f},14 {x2 - x1},0"
    return f'<path d="{bend} m-3,6 l3,-6 l6,3" fill="none" stroke="{INK}"/>'


def _text(x: int, y: int, words: str, colour: str = INK) -> Iterable[str]:
    yield f'<text x="{x}" y="{y}" text-anchor="middle" fill="{colour}">{words}</text>'


def _picture(width: int, height: int, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="13"'
    background = f'<rect width="{width}" height="{height}" rx="6" fill="white"/>'
    return "\n".join((f"{head} {style}>", background, *parts, "</svg>", ""))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
        print(f"wrote docs/pictures/{name}.svg")
