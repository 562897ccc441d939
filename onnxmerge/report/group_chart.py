"""The picture of a model's groups: along the network a rectangle for each, its area what the group saves.

Most are columns of one width. What several layers write, such as a residual stream, is as wide as the part of the network that
reads it, and low: as a column it would press a hundred others flat. Horizontal positions are per cent of the width, vertical ones
pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxmerge.report.wording import WILDCARD, shortened, two_digits
from onnxmerge.results import GroupResult

COLUMN_TOP, COLUMN_HEIGHT = 20, 96  # space above the highest column, and its height
STREAM_GAP = 4  # between the axis and a stream, and between two streams, in pixels
GAP = 0.2  # between two columns, as a share of their distance
MOST_LINES = 30  # groups in the picture as text
LARGEST = 3  # groups that the caption names
BAR_CHARACTERS = 30  # of the longest bar in the picture as text
_NAME_WIDTH, _CAPTION_WIDTH = 40, 60
_EIGHTHS = " ▏▎▍▌▋▊▉█"
QUANTITIES: tuple[tuple[str, str, Callable[[GroupResult], float]], ...] = (
    ("MACs", "MACs", lambda group: group.macs_saved),
    ("time", "predicted time", lambda group: group.time_saved),
)
"""Short name of a quantity, its name, and the share of it that a group saves."""


@dataclass(frozen=True)
class GroupColumn:
    """One group: where its rectangle begins, how wide and how high it is, and what it says; `y` is its upper edge."""

    x: float
    width: float
    y: float
    height: float
    text: str
    is_stream: bool


@dataclass(frozen=True)
class GroupChart:
    """The rectangles of one quantity: columns on the axis, streams hanging below it; all ends at `bottom`.

    `line` is the height at which a column saves the share `line_share`.
    """

    key: str
    title: str
    columns: Sequence[GroupColumn]
    axis: float
    bottom: float
    line: float
    line_share: str
    largest: str


def group_charts(groups: Sequence[GroupResult]) -> list[GroupChart]:
    """A chart for each quantity of which anything is saved; groups stand in the order of the graph."""
    return [_chart(groups, *each) for each in QUANTITIES if any(each[2](group) > 0.0 for group in groups)]


def _chart(groups: Sequence[GroupResult], key: str, title: str, saved: Callable[[GroupResult], float]) -> GroupChart:
    spans = [_reach(groups, index) for index in range(len(groups))]
    shares = [max(saved(group), 0.0) for group in groups]
    distance = 100.0 / len(groups)
    widths = [distance * (span - GAP) for span in spans]
    densest = max(share / width for share, width in zip(shares, widths, strict=True))
    heights = [COLUMN_HEIGHT * share / width / densest for share, width in zip(shares, widths, strict=True)]
    axis = COLUMN_TOP + max((height for height, span in zip(heights, spans, strict=True) if span == 1), default=0.0)
    tops = _tops(spans, heights, axis)
    columns = [
        GroupColumn(
            x=distance * (index + GAP / 2),
            width=widths[index],
            y=tops[index],
            height=heights[index],
            text=f"{shortened(group.name, _CAPTION_WIDTH)}: {two_digits(saved(group))} of the {title}",
            is_stream=spans[index] > 1,
        )
        for index, group in enumerate(groups)
    ]
    ordered = [group for group in sorted(groups, key=saved, reverse=True)[:LARGEST] if saved(group) > 0.0]
    largest = ", ".join(f"{shortened(group.name, _CAPTION_WIDTH)} {two_digits(saved(group))}" for group in ordered)
    full = densest * distance * (1 - GAP)  # what a column of the full height saves
    line = _round_below((axis - COLUMN_TOP) / COLUMN_HEIGHT * full)
    bottom = max(column.y + column.height for column in columns)
    return GroupChart(key, title, columns, axis, bottom, axis - COLUMN_HEIGHT * line / full, f"{100 * line:g}%", largest)


def _reach(groups: Sequence[GroupResult], index: int) -> int:
    """How many groups further the last consumer of a group lies that several layers write; 1 for all others."""
    group = groups[index]
    if len(group.producers) < 2:
        return 1
    consumers = set(group.consumers)
    last = max((at for at in range(index, len(groups)) if not consumers.isdisjoint(groups[at].producers)), default=index)
    return max(last - index, 1)


def _tops(spans: Sequence[int], heights: Sequence[float], axis: float) -> list[float]:
    """Upper edges: columns stand on the axis, streams hang below it and below those that they overlap with."""
    depths = [axis + STREAM_GAP] * (len(spans) + max(spans))  # at every place along the network, how far it is taken
    tops = []
    for index, (span, height) in enumerate(zip(spans, heights, strict=True)):
        top = axis - height if span == 1 else max(depths[index : index + span])
        if span > 1 and height > 0.0:
            depths[index : index + span] = [top + height + STREAM_GAP] * span
        tops.append(top)
    return tops


def _round_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a value; 0 for 0."""
    if value <= 0.0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= value * (1 + 1e-9) or factor == 1)


def text_picture(groups: Sequence[GroupResult]) -> list[str]:
    """The same as lines of text: of the last quantity that is saved, the groups that save most in the order of the graph.

    Nothing in a name ends a block of code.
    """
    saving = [each for each in QUANTITIES if any(each[2](group) > 0.0 for group in groups)]
    if not saving:
        return []
    _, title, saved = saving[-1]
    highest = max(map(saved, groups))
    least = sorted(map(saved, groups), reverse=True)[:MOST_LINES][-1]
    shown = [group for group in groups if saved(group) >= least][:MOST_LINES]
    names = [shortened(group.name, _NAME_WIDTH, WILDCARD).replace("`", "'") for group in shown]
    width = max(map(len, names))
    lines = [f"share of the {title} saved, along the network"]
    for group, name in zip(shown, names, strict=True):
        bar = text_bar(max(saved(group), 0.0) / highest)
        lines.append(f"{name:{width}}  {two_digits(saved(group)):>6}  {bar}".rstrip())
    rest = len(groups) - len(shown)
    if rest:
        left = sum(map(saved, groups)) - sum(map(saved, shown))
        lines.append(f"{rest} more groups save {two_digits(left)}")
    return lines


def text_bar(share: float) -> str:
    """A bar of at most `BAR_CHARACTERS`."""
    eighths = round(8 * BAR_CHARACTERS * share)
    return _EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
