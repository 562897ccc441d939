"""Geometry of the charts of a page: latencies as strips, a sweep as curves.

Horizontal positions are per cent of the width, so that text keeps its size on a phone; vertical ones are pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxmerge.report.wording import closeness, milliseconds, percent
from onnxmerge.results import LatencyComparison, LatencySummary, Sweep, SweepPoint

STRIP_ROW, STRIP_TOP, STRIP_HEIGHT = 50, 20, 18  # height of a row; where its strip begins, and how high it is
CURVE_TOP, CURVE_HEIGHT = 30, 220  # space above the plot, and its height
CURVE_LEFT, CURVE_RIGHT = 12.0, 97.0  # ends of the plot
AXIS_HEIGHT, AXIS_TITLE = 24, 20  # of the labels below a plot, and of the title below these
COSTS = {"macs": "MACs left", "latency": "time of one call, as a share of the original's"}
_LOWEST_FIDELITY = -0.1  # what is lower stands at the lower edge
_LAST_LABEL = 75.0  # labels of points further right stand on the left of them
_MAX_TICKS = 5
_MARGIN = 0.06  # of the axis on both sides, as a share of the range
_EDGE = 10.0  # within this of an end the label of a tick is aligned to it, or it would be cut
_MIN_OPACITY = 0.08  # of a band with hardly any calls
_MIN_BAND = 0.002  # width of a band, as a share of the axis


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / _MAX_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Tick:
    """A line across the plot at `at`, and its label."""

    at: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Band:
    """The range between two neighbouring quantiles of a strip."""

    left: float
    width: float
    opacity: float


@dataclass(frozen=True)
class Strip:
    """Latencies of one model; `middle` says where half of the calls lie."""

    name: str
    figures: str
    middle: str
    fastest: float
    slowest: float
    median: float
    bands: Sequence[Band]


@dataclass(frozen=True)
class LatencyChart:
    """A strip for each model on one axis."""

    batch_size: int
    strips: Sequence[Strip]
    ticks: Sequence[Tick]


def latency_chart(latency: LatencyComparison) -> LatencyChart | None:
    """A strip for each model; None where no quantiles were kept.

    The axis reaches from the fastest call to the larger 95th percentile, or single slow calls would press all others together.
    """
    summaries = {"reference": latency.reference, "candidate": latency.candidate}
    if not all(each.quantiles_ms for each in summaries.values()):
        return None
    low = min(each.quantiles_ms[0] for each in summaries.values())
    high = max(each.quantiles_ms[-2] for each in summaries.values())
    margin = max(high - low, 1e-3 * high, 1e-9) * _MARGIN
    axis = _Axis(low - margin, high + margin)
    strips = [_strip(name, each, axis) for name, each in summaries.items()]
    marks = [Tick(axis.at(value), f"{value:g} ms", _anchor(axis.at(value))) for value in ticks(axis.low, axis.high)]
    return LatencyChart(latency.batch_size, strips, marks)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def at(self, value: float) -> float:
        """Per cent of the width; what lies beyond the axis stands at its end."""
        return 100.0 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def _anchor(at: float) -> str:
    return "start" if at < _EDGE else "end" if at > 100.0 - _EDGE else "middle"


def _strip(name: str, summary: LatencySummary, axis: _Axis) -> Strip:
    quantiles = summary.quantiles_ms
    quarter = len(quantiles) // 4
    return Strip(
        name=name,
        figures=f"median {milliseconds(summary.median_ms)}, slowest {milliseconds(quantiles[-1])}",
        middle=f"{milliseconds(quantiles[quarter])} to {milliseconds(quantiles[-1 - quarter])}",
        fastest=axis.at(quantiles[0]),
        slowest=axis.at(quantiles[-1]),
        median=axis.at(summary.median_ms),
        bands=_bands(quantiles[1:-1], axis),
    )


def _bands(quantiles: Sequence[float], axis: _Axis) -> list[Band]:
    """Each band holds equally many calls, so that density = 1 / width; its root is drawn, or the tails could not be seen."""
    length = axis.high - axis.low
    widths = [max(after - before, _MIN_BAND * length) for before, after in pairwise(quantiles)]
    opacities = [_MIN_OPACITY + (1 - _MIN_OPACITY) * math.sqrt(min(widths) / width) for width in widths]
    lefts = map(axis.at, quantiles[:-1])
    return [Band(*each) for each in zip(lefts, (100.0 * width / length for width in widths), opacities, strict=True)]


@dataclass(frozen=True)
class CurvePoint:
    """A compressed model: x in per cent, y in pixels; on the Pareto front where no other one is as cheap and closer."""

    x: float
    y: float
    text: str
    label: str
    anchor: str
    is_slower: bool = False
    is_front: bool = False
    is_recommended: bool = False


@dataclass(frozen=True)
class SweepChart:
    """Fidelity (upwards) by a cost of COSTS; `original` is where the original model stands."""

    cost: str
    points: Sequence[CurvePoint]
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
    lowest = max(_LOWEST_FIDELITY, min(fidelity for _, fidelity, _ in measured) - 0.02)
    recommended = sweep.recommended

    def across(share: float) -> float:
        return CURVE_LEFT + (CURVE_RIGHT - CURVE_LEFT) * share / largest

    def down(fidelity: float) -> float:
        return CURVE_TOP + CURVE_HEIGHT * (1.0 - (max(fidelity, lowest) - lowest) / (1.0 - lowest))

    def drawn(share: float, fidelity: float, point: SweepPoint) -> CurvePoint:
        return CurvePoint(
            across(share),
            down(fidelity),
            f"{point.target}: {percent(share)} left, fidelity {closeness(fidelity)}",
            point.target,
            "end" if across(share) > _LAST_LABEL else "start",
            is_slower=point.latency is not None and point.latency.verdict == "slower",
            is_front=not any(own <= share and closer > fidelity for own, closer, _ in measured),
            is_recommended=point is recommended,
        )

    return SweepChart(
        cost,
        [drawn(*each) for each in measured],
        across(1.0),
        levels=[Tick(down(value), f"{round(value, 9):g}") for value in ticks(lowest, 1.0)],
        shares=[Tick(across(value), f"{value:.0%}") for value in ticks(0.0, largest)],
    )


def _share(sweep: Sweep, point: SweepPoint, cost: str) -> float | None:
    """What is left of a cost; None where there is no model, or none that was compared."""
    if point.after is None or point.fidelity is None or math.isnan(point.fidelity):
        return None
    if cost == "latency":
        return None if point.latency is None else point.latency.latency_ratio
    return float(getattr(point.after, cost) / max(1, getattr(sweep.before, cost)))
