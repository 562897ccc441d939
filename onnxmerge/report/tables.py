"""Tables that fit the terminal: numbers are never cut, names are shortened in the middle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from onnxmerge.report.wording import told_apart

_GAP = 2  # terminal cells between two columns
_MIN_NAME_WIDTH = 8
TONES = {"good": "green", "warn": "yellow", "bad": "red", "": ""}
"""What something means -> its style on a terminal."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    header : str
    cells : sequence of str
    name : bool
        The cells are names, which may be shortened.
    optional : bool
        Shown on a terminal only where the whole table fits without shortening names.
    left : bool
        Aligned to the left.
    bars : sequence of float or None
        Length, from 0 to 1, of the bar that a page draws below each cell.
    tones : sequence of str
        "bad" for each cell that is red; empty where none is.
    """

    header: str
    cells: Sequence[str]
    name: bool = False
    optional: bool = False
    left: bool = False
    bars: Sequence[float | None] = ()
    tones: Sequence[str] = ()

    def rows(self, start: int, stop: int) -> "Column":
        """Only these rows."""
        part = slice(start, stop)
        return replace(self, cells=self.cells[part], bars=self.bars[part], tones=self.tones[part])

    @property
    def width(self) -> int:
        """Terminal cells that the column needs."""
        return max(cell_len(text) for text in (self.header, *self.cells))


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether a table of these columns needs at most `width` terminal cells."""
    return _needed(columns) <= width


def without_common(columns: Sequence[Column]) -> tuple[list[Column], str]:
    """The columns that tell rows apart, or warn, and in words what all rows have in common: "method reconstruct"."""
    several = [column for column in columns if not column.name and len(column.cells) > 1]
    common = [column for column in several if len(set(column.cells)) == 1 and not any(column.tones)]
    said = [f"{column.header} {column.cells[0]}" for column in common if column.header and column.cells[0] not in ("", "-")]
    return [column for column in columns if column not in common], ", ".join(said)


def fitted(columns: Sequence[Column], width: int) -> Table:
    """A table of at most `width` terminal cells, unless its numbers need more.

    Parameters
    ----------
    columns : sequence of Column
        Columns of equal length.
    width : int
        Terminal cells.

    Returns
    -------
    rich.table.Table
        Without optional columns and with shortened names where not everything fits.
    """
    shown = [column for column in columns if fits(columns, width) or not column.optional]
    numbers = _needed([column for column in shown if not column.name]) + _GAP * sum(column.name for column in shown)
    name_width = max(width - numbers, _MIN_NAME_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        left = column.name or column.left
        table.add_column(Text(column.header), justify="left" if left else "right", no_wrap=True, header_style="dim")
    cells = [
        [
            Text(text, TONES[tone])
            for text, tone in zip(
                told_apart(column.cells, name_width) if column.name else column.cells,
                column.tones or [""] * len(column.cells),
                strict=True,
            )
        ]
        for column in shown
    ]
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * max(0, len(columns) - 1)
