"""Geometry of distributions: latencies of calls and errors of inputs, a strip for each model or output.

Horizontal positions are per cent of the width, so that text keeps its size on a phone; vertical ones are pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxmerge.report.wording import milliseconds, relative_error, shortened
from onnxmerge.results import Fidelity, LatencyComparison

STRIP_ROW, STRIP_TOP, STRIP_HEIGHT = 50, 20, 18  # height of a row; where its strip begins, and how high it is
MAX_STRIPS = 3  # outputs, those that differ most
AXIS_HEIGHT = 24  # of the labels below a plot
_MAX_TICKS = 5
_STRIP_TICKS = 4  # whose labels are long: 0.0005 ms
_NAME_WIDTH = 20  # characters of an output's name, which has a line with the figures
_MARGIN = 0.06  # of the axis on both sides, as a share of the range
_EDGE = 10.0  # within this of an end the label of a tick is aligned to it, or it would be cut
_MIN_OPACITY = 0.08  # of a band that is very wide
_MIN_BAND = 0.002  # width of a band, as a share of the axis


def ticks(low: float, high: float, most: int = _MAX_TICKS) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart: at least two, and about `most`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    found: list[float] = []
    for step in (10 * power, 5 * power, 2 * power, power, power / 2):
        if len(found) >= 2 and step * most < high - low:
            break
        found = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return found


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
    """One model or output; `middle` says where half of the values lie."""

    name: str
    figures: str
    middle: str
    least: float
    largest: float
    median: float
    bands: Sequence[Band]


@dataclass(frozen=True)
class Distribution:
    """Strips on one axis, of so many of `what` each: "calls" or "inputs"."""

    key: str
    title: str
    what: str
    strips: Sequence[Strip]
    ticks: Sequence[Tick]


def latency_chart(latency: LatencyComparison) -> Distribution | None:
    """A strip for each model; None where no quantiles were kept."""
    kept = {"reference": latency.reference.quantiles_ms, "candidate": latency.candidate.quantiles_ms}
    title = f"Latency of single calls, batch {latency.batch_size}"
    return _distribution(
        (f"latency-{latency.batch_size}", title, "calls"), kept, milliseconds, "slowest", lambda at: f"{at:g} ms"
    )


def error_chart(fidelity: Fidelity) -> Distribution | None:
    """A strip for each of the outputs that differ most; None where nothing differs, or for a single input."""
    worst = sorted(fidelity.outputs, key=lambda output: (output.finite, output.fidelity))[:MAX_STRIPS]
    kept = {shortened(output.name, _NAME_WIDTH): output.relative_l2_quantiles for output in worst}
    if fidelity.input_count < 2 or not any(max(each, default=0.0) for each in kept.values()):
        return None
    title = "Relative L2 error of single inputs"
    return _distribution(("errors", title, "inputs"), kept, relative_error, "worst", lambda at: f"{100 * at:g}%")


def _distribution(
    labels: tuple[str, str, str],
    quantiles: Mapping[str, Sequence[float]],
    text: Callable[[float], str],
    last: str,
    tick: Callable[[float], str],
) -> Distribution | None:
    """None where quantiles are missing or not finite.

    The axis reaches from the least value to the largest 95th percentile, or single outliers would press all others together.
    """
    if not all(quantiles.values()):
        return None
    low, high = min(each[0] for each in quantiles.values()), max(each[-2] for each in quantiles.values())
    if not math.isfinite(high):
        return None
    margin = max(high - low, 1e-3 * high, 1e-9) * _MARGIN
    axis = _Axis(max(low - margin, 0.0), high + margin)
    strips = [_strip(name, each, axis, text, last) for name, each in quantiles.items()]
    marks = [Tick(axis.at(value), tick(value), _anchor(axis.at(value))) for value in ticks(axis.low, axis.high, _STRIP_TICKS)]
    return Distribution(*labels, strips, marks)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def at(self, value: float) -> float:
        """Per cent of the width; what lies beyond the axis stands at its end."""
        return 100.0 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def _anchor(at: float) -> str:
    return "start" if at < _EDGE else "end" if at > 100.0 - _EDGE else "middle"


def _strip(name: str, quantiles: Sequence[float], axis: _Axis, text: Callable[[float], str], last: str) -> Strip:
    quarter, median = len(quantiles) // 4, quantiles[len(quantiles) // 2]
    return Strip(
        name=name,
        figures=f"median {text(median)}, {last} {text(quantiles[-1])}",
        middle=f"{text(quantiles[quarter])} to {text(quantiles[-1 - quarter])}",
        least=axis.at(quantiles[0]),
        largest=axis.at(quantiles[-1]),
        median=axis.at(median),
        bands=_bands(quantiles[1:-1], axis),
    )


def _bands(quantiles: Sequence[float], axis: _Axis) -> list[Band]:
    """Each band holds equally many calls, so that density = 1 / width; its root is drawn, or the tails could not be seen."""
    length = axis.high - axis.low
    widths = [max(after - before, _MIN_BAND * length) for before, after in pairwise(quantiles)]
    opacities = [_MIN_OPACITY + (1 - _MIN_OPACITY) * math.sqrt(min(widths) / width) for width in widths]
    lefts = map(axis.at, quantiles[:-1])
    return [Band(*each) for each in zip(lefts, (100.0 * width / length for width in widths), opacities, strict=True)]
