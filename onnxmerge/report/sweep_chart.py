"""The picture of a sweep: fidelity by what is left of a cost, with every point labelled where there is room.

Horizontal positions are per cent of the width, vertical ones pixels, offsets of labels pixels too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxmerge.report.charts import Tick, ticks
from onnxmerge.report.group_chart import BAR_CHARACTERS, text_bar
from onnxmerge.report.wording import closeness, percent
from onnxmerge.results import Sweep, SweepPoint

CURVE_TOP, CURVE_HEIGHT = 30, 220  # space above the plot, and its height
CURVE_LEFT, CURVE_RIGHT = 12.0, 97.0  # ends of the plot
AXIS_TITLE = 20  # height of the title below the labels of the axis
COSTS = {"macs": "MACs left", "latency": "time of one call, as a share of the original's"}
_LOWEST_FIDELITY = -0.1  # what is lower stands at the lower edge
_MARGIN = 0.1  # of both axes beyond the points, as a share of their range
_LEAST_RANGE = 1e-3  # of an axis whose points are all alike
_PAGE_WIDTHS = (358, 912)  # pixels of the plot on a phone and on a desk: labels fit on both
_CHARACTER, _ASCENT, _DESCENT = 7.2, 10.0, 3.0  # of a label, in pixels
_OUTSIDE = 1000  # a label that is cut is worse than all overlaps
_POINT = 11.0  # radius around a point that labels of others stay out of
_PLACES = (  # of a label: its anchor, and its offset from the point; the first that is free is taken
    ("start", 9, 16),
    ("end", -9, -8),
    ("start", 9, -8),
    ("end", -9, 16),
    ("start", 13, 4),
    ("end", -13, 4),
    *(
        (anchor, dx, dy + sign * step)
        for step in (14, 28, 42)
        for sign, dy in ((1, 16), (-1, -8))
        for anchor, dx in (("start", 9), ("end", -9))
    ),
)


@dataclass(frozen=True)
class CurvePoint:
    """A compressed model: x in per cent, y in pixels; on the Pareto front where no other one is as cheap and closer."""

    x: float
    y: float
    share: float
    point: SweepPoint
    text: str
    label: str
    is_slower: bool = False
    is_front: bool = False
    is_recommended: bool = False


@dataclass(frozen=True)
class Label:
    """The label of a point: which of its ends stands at the point, and its offset from there."""

    anchor: str
    dx: float
    dy: float


@dataclass(frozen=True)
class SweepChart:
    """Fidelity (upwards) by a cost of COSTS; `original` is where the original model stands."""

    cost: str
    points: Sequence[CurvePoint]
    labels: Sequence[Label]
    original: float
    levels: Sequence[Tick]
    shares: Sequence[Tick]


def sweep_charts(sweep: Sweep) -> list[SweepChart]:
    """A chart for each cost that was measured."""
    return [chart for cost in COSTS if (chart := sweep_chart(sweep, cost)) is not None]


def sweep_chart(sweep: Sweep, cost: str) -> SweepChart | None:
    """The chart of one cost; None where it was not measured."""
    costs = [(point, _share(sweep, point, cost)) for point in sweep.points]
    known = [(share, point.fidelity, point) for point, share in costs if share is not None and point.fidelity is not None]
    measured = sorted(known, key=lambda each: each[:2])
    if not measured:
        return None
    largest = max(1.0, *(share for share, *_ in measured))
    smallest = min(share for share, *_ in measured)
    smallest = max(0.0, smallest - _MARGIN * max(largest - smallest, _LEAST_RANGE))
    lowest = min(fidelity for _, fidelity, _ in measured)
    lowest = max(_LOWEST_FIDELITY, lowest - _MARGIN * max(1.0 - lowest, _LEAST_RANGE))
    recommended = sweep.recommended

    def across(share: float) -> float:
        return CURVE_LEFT + (CURVE_RIGHT - CURVE_LEFT) * (share - smallest) / (largest - smallest)

    def down(fidelity: float) -> float:
        return CURVE_TOP + CURVE_HEIGHT * (1.0 - (max(fidelity, lowest) - lowest) / (1.0 - lowest))

    def drawn(share: float, fidelity: float, point: SweepPoint) -> CurvePoint:
        return CurvePoint(
            across(share),
            down(fidelity),
            share,
            point,
            f"{point.target}: {percent(share)} left, fidelity {closeness(fidelity)}",
            f"{point.target}: {fidelity:.3g}" if fidelity < lowest else point.target,
            is_slower=point.latency is not None and point.latency.verdict == "slower",
            is_front=not any(own <= share and closer > fidelity for own, closer, _ in measured),
            is_recommended=point is recommended,
        )

    points = [drawn(*each) for each in measured]
    return SweepChart(
        cost,
        points,
        _labels(points),
        across(1.0),
        levels=[Tick(down(value), f"{round(value, 9):g}") for value in ticks(lowest, 1.0)],
        shares=[Tick(across(value), f"{100 * value:g}%") for value in ticks(smallest, largest)],
    )


def text_curve(sweep: Sweep) -> list[str]:
    """The last chart as lines of text: a bar for what is left of the cost at every point, and its fidelity behind it."""
    charts = sweep_charts(sweep)
    if not charts:
        return []
    chart, largest = charts[-1], max(1.0, *(point.share for point in charts[-1].points))
    width = max(len(point.point.target) for point in chart.points)
    lines = [f"{COSTS[chart.cost]}, and fidelity"]
    for point in reversed(chart.points):
        bar = text_bar(point.share / largest)
        notes = [" slower than the original" * point.is_slower, " <- recommended" * point.is_recommended]
        fidelity = closeness(point.point.fidelity or 0.0)
        lines.append(
            f"{point.point.target:{width}}  {percent(point.share):>6}  {bar:{BAR_CHARACTERS}}  {fidelity}{''.join(notes)}"
        )
    return lines


def _labels(points: Sequence[CurvePoint]) -> list[Label]:
    """For each point the first place where its label meets no point and no label placed before, else where it meets fewest."""
    placed: list[Label] = []
    for point in points:
        taken = [list(_taken(points, placed, point, width)) for width in _PAGE_WIDTHS]

        def conflicts(label: Label, point: CurvePoint = point, taken: list[list[_Box]] = taken) -> int:
            boxes = [_box(point, label, width) for width in _PAGE_WIDTHS]
            outside = sum(not _is_inside(box, width) for box, width in zip(boxes, _PAGE_WIDTHS, strict=True))
            return _OUTSIDE * outside + sum(
                _meet(box, other) for box, others in zip(boxes, taken, strict=True) for other in others
            )

        placed.append(min((Label(*place) for place in _PLACES), key=conflicts))
    return placed


_Box = tuple[float, float, float, float]  # left, right, top, bottom


def _taken(points: Sequence[CurvePoint], placed: Sequence[Label], own: CurvePoint, width: float) -> Iterator[_Box]:
    for point in (point for point in points if point is not own):
        x = point.x * width / 100
        yield x - _POINT, x + _POINT, point.y - _POINT, point.y + _POINT
    yield from (_box(point, label, width) for point, label in zip(points, placed, strict=False))


def _box(point: CurvePoint, label: Label, width: float) -> _Box:
    x, length = point.x * width / 100 + label.dx, _CHARACTER * len(point.label)
    left = x if label.anchor == "start" else x - length
    baseline = point.y + label.dy
    return left, left + length, baseline - _ASCENT, baseline + _DESCENT


def _is_inside(box: _Box, width: float) -> bool:
    return (
        box[0] >= CURVE_LEFT / 100 * width and box[1] <= width and box[2] >= CURVE_TOP - 14 and box[3] <= CURVE_TOP + CURVE_HEIGHT
    )


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _share(sweep: Sweep, point: SweepPoint, cost: str) -> float | None:
    """What is left of a cost; None where there is no model, or none that was compared."""
    if point.after is None or point.fidelity is None or math.isnan(point.fidelity):
        return None
    if cost == "latency":
        return None if point.latency is None else point.latency.latency_ratio
    return float(getattr(point.after, cost) / max(1, getattr(sweep.before, cost)))
