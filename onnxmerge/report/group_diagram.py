"""Geometry of the diagram of channel groups: a bar for each, its outline as wide as the group was, filled as far as it was kept.

Lines on the left lead from a group to the groups that its consumers produce. Horizontal positions are per cent of the width, so
that text keeps its size on a phone; vertical ones and those of the lines are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.report.wording import listed, percent, shortened
from onnxmerge.results import GroupResult

ROW_HEIGHT = 38
NAME_BASELINE, BAR_TOP, BAR_HEIGHT = 13, 19, 9  # from the top of a row
GUTTER = 46  # width of the column of lines
ROWS_PER_PART = 8  # a diagram is split so that a printed page can break between the parts
WIDE, NARROW = 60, 28  # characters of a name on a wide and on a narrow page
_MAX_WIDTH = 84.0  # per cent, of the bar of the largest group
_LEAVES, _ARRIVES = 7, 2.5  # where lines leave and reach a bar, from its top
_MAX_NAMES = 6  # producers or consumers in a tooltip


@dataclass(frozen=True)
class GroupBar:
    """A row of the diagram: `width` of the outline and `kept` of it in per cent; `error` is empty where it is not known."""

    group: GroupResult
    top: int
    width: float
    kept: float
    count: str
    error: str
    tooltip: str


@dataclass(frozen=True)
class Line:
    """A line between two rows, or with `to` None to layers that keep all of their own channels. path: as in SVG; end: (x, y)."""

    source: int
    to: int | None
    path: str
    end: tuple[float, float]

    @property
    def kind(self) -> str:
        """`forward`, `backward` to an earlier group as in a residual stream, or `end` where it leads to no group."""
        return "end" if self.to is None else "forward" if self.to > self.source else "backward"


@dataclass(frozen=True)
class Part:
    """Some consecutive rows and the lines that cross them; `number` counts groups from 1 and `kept` and `channels` add up."""

    number: int
    bars: Sequence[GroupBar]
    lines: Sequence[Line]
    channels: int
    kept: int

    @property
    def top(self) -> int:
        """Pixels of the rows before."""
        return (self.number - 1) * ROW_HEIGHT

    @property
    def height(self) -> int:
        """Pixels of the rows."""
        return len(self.bars) * ROW_HEIGHT


def group_diagram(groups: Sequence[GroupResult], *, compressed: bool) -> list[Part]:
    """The diagram in parts of eight rows.

    Parameters
    ----------
    groups : sequence of GroupResult
        At least one, in the order of the graph.
    compressed : bool
        Fill what was kept, otherwise what cannot be removed.
    """
    largest = max(group.channels for group in groups)
    bars = [_bar(index, group, largest, compressed) for index, group in enumerate(groups)]
    lines = _lines(groups)
    parts = []
    for first in range(0, len(groups), ROWS_PER_PART):
        rows = range(first, min(first + ROWS_PER_PART, len(groups)))
        crossing = [line for line in lines if _crosses(line, rows)]
        channels, kept = sum(groups[row].channels for row in rows), sum(_filled(groups[row], compressed) for row in rows)
        parts.append(Part(first + 1, bars[first : rows.stop], crossing, channels, kept))
    return parts


def links(groups: Sequence[GroupResult]) -> list[tuple[int, int]]:
    """(i, j) where a consumer of group i is a producer of another group j."""
    group_of = {producer: index for index, group in enumerate(groups) for producer in group.producers}
    found = [(index, group_of.get(layer, index)) for index, group in enumerate(groups) for layer in group.consumers]
    return [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]


def _filled(group: GroupResult, compressed: bool) -> int:
    return group.kept if compressed else group.channels - group.removable


def _bar(index: int, group: GroupResult, largest: int, compressed: bool) -> GroupBar:
    count = f"{group.kept if compressed else group.removable:,} of {group.channels:,}"
    error = group.expected_error.get(group.method)
    producers, consumers = (listed(names, _MAX_NAMES, WIDE) for names in (group.producers, group.consumers))
    return GroupBar(
        group,
        top=index * ROW_HEIGHT,
        width=_MAX_WIDTH * group.channels / largest,
        kept=100.0 * _filled(group, compressed) / group.channels,
        count=count,
        error="" if error is None else percent(error),
        tooltip=f"{shortened(group.name, WIDE)}: {count}. Producers: {producers}; consumers: {consumers or 'none'}.",
    )


def _lines(groups: Sequence[GroupResult]) -> list[Line]:
    producers = {producer for group in groups for producer in group.producers}
    ends = [index for index, group in enumerate(groups) if any(layer not in producers for layer in group.consumers)]
    return [*(_curve(*pair) for pair in links(groups)), *map(_stub, ends)]


def _curve(source: int, to: int) -> Line:
    start, end = source * ROW_HEIGHT + BAR_TOP + _LEAVES, to * ROW_HEIGHT + BAR_TOP + _ARRIVES
    reach = GUTTER - min(GUTTER * 1.25, 14 + 7 * abs(to - source))
    return Line(source, to, f"M{GUTTER - 3} {start}C{reach:g} {start} {reach:g} {end} {GUTTER - 7} {end}", (GUTTER - 2, end))


def _stub(source: int) -> Line:
    height = source * ROW_HEIGHT + BAR_TOP + _LEAVES
    return Line(source, None, f"M{GUTTER - 3} {height}H{GUTTER - 10}", (GUTTER - 13, height))


def _crosses(line: Line, rows: range) -> bool:
    first, last = sorted((line.source, line.source if line.to is None else line.to))
    return first < rows.stop and last >= rows.start
