"""The channel groups as a picture: a bar each in the order of the graph, its outline the width before, filled what stayed.

Lines on the left lead from a group to the groups that its readers write. Positions across are shares of the width, so that
text keeps its size on a phone; positions down are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxmerge.report.elements import Markup, element, joined
from onnxmerge.report.wording import listed, percent, shortened
from onnxmerge.results import GroupResult

_ROW, _NAME_LINE, _BAR, _BAR_HEIGHT = 38, 13, 19, 9  # pixels: of a row, then from its top
_PART = 8  # rows of one <svg>
_GUTTER = 46  # pixels, for the lines
_WIDEST = 84  # per cent of the width, for the group with the most channels
_WIDE, _NARROW, _NAMES = 60, 28, 6  # characters of a name on a wide and a narrow page; names in a list
_OUT, _IN = 7, 2.5  # where lines leave a bar and where they arrive, from its top

_ARROW = element("polygon", points="17,4.5 23,7.5 17,10.5", class_="head")
_SAMPLES = {
    "before": element("rect", x=1, y=3, width=22, height=9, rx=1.5, class_="before"),
    "kept": element("rect", x=1, y=3, width=22, height=9, rx=1.5, class_="kept"),
    "link": joined(element("path", d="M1 7.5H18", class_="link"), _ARROW),
    "back": joined(element("path", d="M1 7.5H18", class_="link back"), _ARROW),
    "ring": joined(element("path", d="M8 7.5H22", class_="link"), element("circle", cx=5.5, cy=7.5, r=2.5, class_="ring")),
}
_LEGEND = {
    "before": "channels before",
    "kept": "channels that stayed",
    "link": "leads to the group that its readers write",
    "back": "the same, to an earlier group (a residual stream)",
    "ring": "read by layers that keep all their own channels",
}


def legend(groups: Sequence[GroupResult], *, compressed: bool) -> Markup:
    """What the marks that the picture holds say."""
    words = _LEGEND if compressed else {**_LEGEND, "before": "channels that may go", "kept": "channels that must stay"}
    found = {
        "before": True,
        "kept": any(_solid(group, compressed) for group in groups),
        "link": any(end > start for start, end in links(groups)),
        "back": any(end < start for start, end in links(groups)),
        "ring": bool(_rings(groups)),
    }
    shown = [kind for kind in words if found[kind]]
    marks = {kind: element("svg", _SAMPLES[kind], width=24, height=15, aria_hidden="true") for kind in shown}
    return element("ul", *(element("li", marks[kind], words[kind]) for kind in shown), class_="legend")


def groups_picture(groups: Sequence[GroupResult], *, compressed: bool) -> Markup:
    """A row a group; an <svg> for every eight rows, one below the other without a gap, so that paper can break between them."""
    widest = max(group.channels for group in groups)
    rows = [_row(index, group, widest, compressed) for index, group in enumerate(groups)]
    lines = _lines(groups)
    parts = []
    for first in range(0, len(groups), _PART):
        last = min(first + _PART, len(groups)) - 1
        crossing = [line for start, end, line in lines if start <= last and end >= first]
        parts.append(_part(groups, first, last, [*crossing, *rows[first : last + 1]], compressed))
    return joined(*parts)


def _part(groups: Sequence[GroupResult], first: int, last: int, marks: Sequence[Markup], compressed: bool) -> Markup:
    shown = groups[first : last + 1]
    before, solid = sum(group.channels for group in shown), sum(_solid(group, compressed) for group in shown)
    said = f"{solid:,} of {before:,} channels kept" if compressed else f"{before - solid:,} of {before:,} channels may go"
    title, told = f"picture-title-{first}", f"picture-told-{first}"
    return element(
        "svg",
        element("title", f"Channel groups {first + 1} to {last + 1} of {len(groups)}, from the input to the output", id=title),
        element("desc", f"{said}. The table below holds the same figures.", id=told),
        element("g", *marks, transform=f"translate(0 {-first * _ROW})"),
        class_="picture",
        role="img",
        aria_labelledby=f"{title} {told}",
        width="100%",
        height=_ROW * len(shown),
    )


def links(groups: Sequence[GroupResult]) -> list[tuple[int, int]]:
    """(i, j) where a reader of group i writes group j, another one."""
    writes = {producer: index for index, group in enumerate(groups) for producer in group.producers}
    found = [(index, writes.get(layer, index)) for index, group in enumerate(groups) for layer in group.consumers]
    return [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]


def _solid(group: GroupResult, compressed: bool) -> int:
    return group.kept if compressed else group.channels - group.removable


def _row(index: int, group: GroupResult, widest: int, compressed: bool) -> Markup:
    top = index * _ROW
    count = f"{group.kept:,} of {group.channels:,}" if compressed else f"{group.removable:,} of {group.channels:,}"
    error = group.expected_error.get(group.method)
    writers, layers = (listed(names, _NAMES, 60) for names in (group.producers, group.consumers))
    bar = element(
        "svg",
        element("rect", class_="before", width="100%", height=_BAR_HEIGHT, rx=1.5),
        element("rect", class_="kept", width=f"{_solid(group, compressed) / group.channels:.2%}", height=_BAR_HEIGHT, rx=1.5),
        x=_GUTTER,
        y=top + _BAR,
        width=f"{_WIDEST * group.channels / widest:.2f}%",
        height=_BAR_HEIGHT,
        overflow="visible",
    )
    return element(
        "g",
        element("title", f"{shortened(group.name, 60)}: {count}. Written by {writers}; read by {layers or 'nothing'}."),
        *(_named(top, shortened(group.name, width), kind) for width, kind in ((_WIDE, "wide"), (_NARROW, "narrow"))),
        _figure(top, count, class_="count" if error is None else "count beside"),
        None if error is None else _figure(top, element("tspan", "error ", class_="word"), percent(error)),
        bar,
    )


def _named(top: int, name: str, kind: str) -> Markup:
    """The style sheet shows one of two, by the width of the page."""
    return element("text", name, class_=f"name {kind}", x=_GUTTER, y=top + _NAME_LINE)


def _figure(top: int, *content: str, class_: str | None = None) -> Markup:
    return element("text", *content, x="100%", y=top + _NAME_LINE, text_anchor="end", class_=class_)


def _lines(groups: Sequence[GroupResult]) -> list[tuple[int, int, Markup]]:
    """(first row, last row, line): links, dashed where they lead back up; a ring where a reader keeps all its own channels."""
    curves = [(min(pair), max(pair), _curve(*pair)) for pair in links(groups)]
    return [*curves, *((index, index, _ring(index)) for index in _rings(groups))]


def _rings(groups: Sequence[GroupResult]) -> list[int]:
    written = {producer for group in groups for producer in group.producers}
    return [index for index, group in enumerate(groups) if any(layer not in written for layer in group.consumers)]


def _curve(start: int, end: int) -> Markup:
    first, last = start * _ROW + _BAR + _OUT, end * _ROW + _BAR + _IN
    reach = _GUTTER - min(_GUTTER * 1.25, 14 + 7 * abs(end - start))
    path = f"M{_GUTTER - 3} {first}C{reach:g} {first} {reach:g} {last} {_GUTTER - 7} {last}"
    head = f"{_GUTTER - 8},{last - 3} {_GUTTER - 2},{last} {_GUTTER - 8},{last + 3}"
    return joined(
        element("path", d=path, class_="link" if end > start else "link back"), element("polygon", points=head, class_="head")
    )


def _ring(index: int) -> Markup:
    height = index * _ROW + _BAR + _OUT
    return joined(
        element("path", d=f"M{_GUTTER - 3} {height}H{_GUTTER - 10}", class_="link"),
        element("circle", cx=_GUTTER - 13, cy=height, r=2.5, class_="ring"),
    )
