"""A sweep as curves: fidelity upwards, the share that is left across, a picture each for parameters, MACs and time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onnxmerge.report.distribution import ticks
from onnxmerge.report.elements import Markup, element, joined, named
from onnxmerge.report.sections import section, table
from onnxmerge.report.sweeps import sweep_columns, sweep_title, timing_line
from onnxmerge.report.wording import closeness, percent
from onnxmerge.results import Sweep, SweepPoint

COSTS = {"parameters": "parameters left", "macs": "MACs left", "latency": "time of one call, as a share of what it was"}
_TOP, _HEIGHT, _AXIS = 12, 180, 24  # pixels: above the plot, of it, and below it
_LEFT, _RIGHT = 12.0, 97.0  # per cent of the width
_LOWEST = -0.1  # a fidelity below stands at the lower edge

Place = tuple[float, float, str]  # share left, fidelity, target


def curves(result: Sweep) -> Markup:
    """A picture for each cost, then the same as a table."""
    title = f"{sweep_title(result)}: what is left, and how close"
    pictures = [(cost, picture) for cost in COSTS if (picture := curve_picture(result, cost)) is not None]
    files = [element("p", "kept: ", *_listed([point.output for point in result.points if point.output]), class_="quiet")]
    return section(
        title,
        *(
            element("figure", picture, element("figcaption", f"Fidelity by {COSTS[cost]}; the ring is the model as it was"))
            for cost, picture in pictures
        ),
        table(title, sweep_columns(result)),
        element("p", f"inputs: {result.input_description}", class_="quiet") if result.input_description else None,
        element("p", line, class_="quiet") if (line := timing_line(result)) else None,
        *(files if any(point.output for point in result.points) else []),
    )


def _listed(files: Sequence[str]) -> list[Markup]:
    return [joined(", " if number else None, named(file)) for number, file in enumerate(files)]


def curve_picture(result: Sweep, cost: str) -> Markup | None:
    """One <svg> of COSTS; None where nothing was measured."""
    places = sorted(place for point in result.points if (place := _place(result, point, cost)) is not None)
    if not places:
        return None
    most = max(1.0, *(share for share, _, _ in places))
    lowest = max(_LOWEST, min(fidelity for _, fidelity, _ in places) - 0.02)
    spots = [(_across(share / most), _down(fidelity, lowest)) for share, fidelity, _ in places]
    return element(
        "svg",
        element("title", f"Fidelity by {COSTS[cost]}", id=f"curve-title-{cost}"),
        element("desc", "; ".join(_told(place) for place in places), id=f"curve-told-{cost}"),
        *(mark for tick in ticks(lowest, 1.0) for mark in _level(tick, lowest)),
        *(mark for tick in ticks(0.0, most) for mark in _upright(tick, most)),
        element("circle", element("title", "the model as it was"), class_="ring", cx=f"{_across(1 / most):.2f}%", cy=_TOP, r=4),
        *(element("line", class_="curve", x1=f"{a:.2f}%", y1=b, x2=f"{c:.2f}%", y2=d) for (a, b), (c, d) in pairwise(spots)),
        *(_spot(spot, place) for spot, place in zip(spots, places, strict=True)),
        class_="distribution",
        role="img",
        aria_labelledby=f"curve-title-{cost} curve-told-{cost}",
        width="100%",
        height=_TOP + _HEIGHT + _AXIS,
    )


def _place(result: Sweep, point: SweepPoint, cost: str) -> Place | None:
    if point.after is None or point.fidelity is None or point.fidelity != point.fidelity:
        return None
    if cost == "latency":
        return None if point.latency is None else (point.latency.latency_ratio, point.fidelity, point.target)
    return getattr(point.after, cost) / max(1, getattr(result.before, cost)), point.fidelity, point.target


def _told(place: Place) -> str:
    share, fidelity, target = place
    return f"{target}: {percent(share)} left, fidelity {closeness(fidelity)}"


def _spot(spot: tuple[float, float], place: Place) -> Markup:
    return element("circle", element("title", _told(place)), class_="kept", cx=f"{spot[0]:.2f}%", cy=spot[1], r=4)


def _level(fidelity: float, lowest: float) -> Sequence[Markup]:
    height = _down(fidelity, lowest)
    return (
        element("line", class_="grid", x1=f"{_LEFT:g}%", x2=f"{_RIGHT:g}%", y1=height, y2=height),
        element("text", f"{round(fidelity, 9):g}", x=f"{_LEFT - 1.5:g}%", y=height + 4, text_anchor="end"),
    )


def _upright(share: float, most: float) -> Sequence[Markup]:
    place = f"{_across(share / most):.2f}%"
    return (
        element("line", class_="grid", x1=place, x2=place, y1=_TOP, y2=_TOP + _HEIGHT),
        element("text", f"{share:.0%}", x=place, y=_TOP + _HEIGHT + 16, text_anchor="middle"),
    )


def _across(share: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * share


def _down(fidelity: float, lowest: float) -> float:
    return _TOP + _HEIGHT * (1.0 - (max(fidelity, lowest) - lowest) / (1.0 - lowest))
