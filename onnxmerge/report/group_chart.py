"""The picture of a model's groups: along the network a column for each, as high as what the group saves, so that areas compare.

It is as readable with a hundred groups as with five. Horizontal positions are per cent of the width, vertical ones pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxmerge.report.wording import WILDCARD, shortened, two_digits
from onnxmerge.results import GroupResult

COLUMN_TOP, COLUMN_HEIGHT = 16, 96  # space above the highest column, and its height
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
    """One group: where its column begins, how wide and how high it is, and what it says."""

    x: float
    width: float
    height: float
    text: str
    is_stream: bool


@dataclass(frozen=True)
class GroupChart:
    """The columns of one quantity; `highest` is what a column of the full height saves."""

    key: str
    title: str
    columns: Sequence[GroupColumn]
    highest: str
    largest: str


def group_charts(groups: Sequence[GroupResult]) -> list[GroupChart]:
    """A chart for each quantity of which anything is saved; groups stand in the order of the graph."""
    return [_chart(groups, *each) for each in QUANTITIES if any(each[2](group) > 0.0 for group in groups)]


def _chart(groups: Sequence[GroupResult], key: str, title: str, saved: Callable[[GroupResult], float]) -> GroupChart:
    distance, highest = 100.0 / len(groups), max(map(saved, groups))
    columns = [
        GroupColumn(
            x=distance * (index + GAP / 2),
            width=distance * (1 - GAP),
            height=COLUMN_HEIGHT * max(saved(group), 0.0) / highest,
            text=f"{shortened(group.name, _CAPTION_WIDTH)}: {two_digits(saved(group))} of the {title}",
            is_stream=len(group.producers) > 1,
        )
        for index, group in enumerate(groups)
    ]
    ordered = sorted(groups, key=saved, reverse=True)[:LARGEST]
    largest = ", ".join(f"{shortened(group.name, _CAPTION_WIDTH)} {two_digits(saved(group))}" for group in ordered)
    return GroupChart(key, title, columns, two_digits(highest), largest)


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
        eighths = round(8 * BAR_CHARACTERS * max(saved(group), 0.0) / highest)
        bar = _EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{name:{width}}  {two_digits(saved(group)):>6}  {bar}".rstrip())
    rest = len(groups) - len(shown)
    if rest:
        left = sum(map(saved, groups)) - sum(map(saved, shown))
        lines.append(f"{rest} more groups save {two_digits(left)}")
    return lines
