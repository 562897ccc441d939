"""Geometry of the diagram of channel groups: a bar for each, its outline as wide as the group was, filled as far as it was kept.

Lines on the left lead from a group to the groups that its consumers produce. Horizontal positions are per cent of the width, so
that text keeps its size on a phone; vertical ones and those of the lines are pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.results import GroupResult

ROW_HEIGHT = 38
NAME_BASELINE, BAR_TOP, BAR_HEIGHT = 13, 19, 9  # from the top of a row
GUTTER = 46  # width of the column of lines
ROWS_PER_PART = 8  # a diagram is split so that a printed page can break between the parts
BAR_WIDTH = 84.0  # per cent, of the bar of the largest group
WIDE, NARROW = 60, 28  # characters of a name on a wide and on a narrow page
TOOLTIP_NAMES = 6  # producers or consumers in a tooltip
_LEAVES, _ARRIVES = 7, 2.5  # where lines leave and reach a bar, from its top


@dataclass(frozen=True)
class Line:
    """A line between the rows of two groups, or with `to` None to layers that keep all of their own channels.

    Attributes
    ----------
    source : int
        Index of the group whose channels are read.
    to : int or None
        Index of the group that the consumer produces.
    path : str
        The line as an SVG path.
    end : tuple of float
        Where it ends, (x, y).
    """

    source: int
    to: int | None
    path: str
    end: tuple[float, float]

    @property
    def kind(self) -> str:
        """`forward`, `backward` to an earlier group as in a residual stream, or `end` where it leads to no group."""
        return "end" if self.to is None else "forward" if self.to > self.source else "backward"

    def crosses(self, rows: range) -> bool:
        """Whether it begins, ends or passes in these rows."""
        first, last = sorted((self.source, self.source if self.to is None else self.to))
        return first < rows.stop and last >= rows.start


@dataclass(frozen=True)
class Part:
    """Rows of the diagram: their groups, the index of the first one, and the lines that cross them."""

    first: int
    groups: Sequence[GroupResult]
    lines: Sequence[Line]


def group_diagram(groups: Sequence[GroupResult]) -> list[Part]:
    """The diagram of groups, which stand in the order of the graph, in parts of `ROWS_PER_PART` rows."""
    producers = {producer for group in groups for producer in group.producers}
    ends = [index for index, group in enumerate(groups) if any(layer not in producers for layer in group.consumers)]
    lines = [*(_curve(*pair) for pair in links(groups)), *map(_stub, ends)]
    starts = range(0, len(groups), ROWS_PER_PART)
    parts = [(first, groups[first : first + ROWS_PER_PART]) for first in starts]
    return [Part(first, rows, [line for line in lines if line.crosses(range(first, first + len(rows)))]) for first, rows in parts]


def links(groups: Sequence[GroupResult]) -> list[tuple[int, int]]:
    """(i, j) where a consumer of group i is a producer of another group j."""
    group_of = {producer: index for index, group in enumerate(groups) for producer in group.producers}
    found = [(index, group_of.get(layer, index)) for index, group in enumerate(groups) for layer in group.consumers]
    return [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]


def _curve(source: int, to: int) -> Line:
    start, end = source * ROW_HEIGHT + BAR_TOP + _LEAVES, to * ROW_HEIGHT + BAR_TOP + _ARRIVES
    reach = GUTTER - min(GUTTER * 1.25, 14 + 7 * abs(to - source))
    return Line(source, to, f"M{GUTTER - 3} {start}C{reach:g} {start} {reach:g} {end} {GUTTER - 7} {end}", (GUTTER - 2, end))


def _stub(source: int) -> Line:
    height = source * ROW_HEIGHT + BAR_TOP + _LEAVES
    return Line(source, None, f"M{GUTTER - 3} {height}H{GUTTER - 10}", (GUTTER - 13, height))
