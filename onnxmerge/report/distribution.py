"""Latencies as a picture: a strip a model, darker where more calls fell, on one axis of milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from onnxmerge.report.elements import Markup, element
from onnxmerge.report.wording import milliseconds
from onnxmerge.results import LatencyComparison, LatencySummary

_ROW, _NAME_LINE, _STRIP, _STRIP_HEIGHT = 50, 13, 20, 18  # pixels: of a row, then from its top
_AXIS = 26
_EDGE = 10  # per cent of the width at both ends, where text must not stand across a tick
_FAINTEST, _NARROWEST = 0.08, 0.002  # opacity of a band; width of one, as a share of the axis
_TICKS = 5
_MARGIN = 0.06


def distribution_picture(latency: LatencyComparison) -> Markup | None:
    """One <svg>; None where no quantiles were kept."""
    sides = (("reference", latency.reference), ("candidate", latency.candidate))
    if not all(side.quantiles_ms for _, side in sides):
        return None
    limits = _limits([side for _, side in sides])
    said = "; ".join(f"{name}: half of the calls within {_middle(side)}" for name, side in sides)
    height = _ROW * len(sides)
    rows = [mark for index, (name, side) in enumerate(sides) for mark in _row(index, name, side, limits)]
    return element(
        "svg",
        element("title", f"Latency of single calls, batch {latency.batch_size}", id=f"latency-title-{latency.batch_size}"),
        element("desc", f"{said}.", id=f"latency-told-{latency.batch_size}"),
        *(mark for tick in ticks(*limits) for mark in _tick(tick, limits, height)),
        *rows,
        class_="distribution",
        role="img",
        aria_labelledby=f"latency-title-{latency.batch_size} latency-told-{latency.batch_size}",
        width="100%",
        height=height + _AXIS,
    )


def ticks(low: float, high: float) -> list[float]:
    """At most five round numbers between low and high, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _limits(sides: Sequence[LatencySummary]) -> tuple[float, float]:
    """From the fastest call to the slower 95th percentile: single outliers would press the rest together."""
    low, high = min(side.quantiles_ms[0] for side in sides), max(side.quantiles_ms[-2] for side in sides)
    margin = max(high - low, 1e-3 * high, 1e-9) * _MARGIN
    return low - margin, high + margin


def _row(index: int, name: str, side: LatencySummary, limits: tuple[float, float]) -> list[Markup]:
    top = index * _ROW
    quantiles = side.quantiles_ms
    beyond = milliseconds(quantiles[-1])
    figures = f"median {milliseconds(side.median_ms)}, slowest {beyond}"
    line = top + _STRIP + _STRIP_HEIGHT / 2
    return [
        element("title", f"{name}: {figures}"),
        element("text", name, class_="count", x=_at(limits[0], limits), y=top + _NAME_LINE),
        element("text", figures, x=_at(limits[1], limits), y=top + _NAME_LINE, text_anchor="end"),
        element("line", class_="range", x1=_at(quantiles[0], limits), x2=_at(quantiles[-1], limits), y1=line, y2=line),
        *_bands(quantiles[1:-1], limits, top),
        element(
            "line",
            class_="median",
            x1=_at(side.median_ms, limits),
            x2=_at(side.median_ms, limits),
            y1=top + _STRIP - 2,
            y2=top + _STRIP + _STRIP_HEIGHT + 2,
        ),
    ]


def _bands(quantiles: Sequence[float], limits: tuple[float, float], top: int) -> list[Markup]:
    """Between neighbours lie equally many calls, so density = 1 / width; opacity goes with its root, which faint ends need."""
    narrowest = _NARROWEST * (limits[1] - limits[0])
    widths = [max(after - before, narrowest) for before, after in pairwise(quantiles)]
    return [
        element(
            "rect",
            class_="band",
            x=_at(start, limits),
            width=f"{100 * width / (limits[1] - limits[0]):.2f}%",
            y=top + _STRIP,
            height=_STRIP_HEIGHT,
            fill_opacity=_FAINTEST + (1 - _FAINTEST) * math.sqrt(min(widths) / width),
        )
        for start, width in zip(quantiles, widths, strict=False)
    ]


def _tick(value: float, limits: tuple[float, float], height: int) -> list[Markup]:
    place, share = _at(value, limits), _share(value, limits)
    side = "start" if share < _EDGE else "end" if share > 100 - _EDGE else "middle"
    return [
        element("line", class_="grid", x1=place, x2=place, y1=0, y2=height),
        element("text", f"{value:g} ms", x=place, y=height + 16, text_anchor=side),
    ]


def _share(value: float, limits: tuple[float, float]) -> float:
    """Per cent of the picture's width; what lies beyond the axis ends at its end."""
    return 100 * min(max((value - limits[0]) / (limits[1] - limits[0]), 0.0), 1.0)


def _at(value: float, limits: tuple[float, float]) -> str:
    return f"{_share(value, limits):.2f}%"


def _middle(side: LatencySummary) -> str:
    quarter = len(side.quantiles_ms) // 4
    return f"{milliseconds(side.quantiles_ms[quarter])} to {milliseconds(side.quantiles_ms[-1 - quarter])}"
