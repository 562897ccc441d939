"""Tables that fit their terminal: numbers are never cut, names give way in their middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from onnxmerge.report.wording import shortened

_GAP = 2
_NARROWEST = 8


@dataclass(frozen=True)
class Column:
    """name: holds names, so it may give way; extra: shown only where everything fits without it giving way."""

    header: str
    cells: Sequence[str]
    name: bool = False
    extra: bool = False
    left: bool = False
    style: str = ""

    @property
    def width(self) -> int:
        """Cells that the whole column needs."""
        return max(cell_len(text) for text in (self.header, *self.cells))


def fitted(columns: Sequence[Column], width: int) -> Table:
    """The table in at most `width` cells where its numbers leave room for that."""
    shown = [column for column in columns if _needed(columns) <= width or not column.extra]
    room = width - _needed([column for column in shown if not column.name]) - _GAP * sum(column.name for column in shown)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        side = "left" if column.name or column.left else "right"
        table.add_column(Text(column.header), justify=side, no_wrap=True, style=column.style, header_style="dim")  # type: ignore[arg-type]
    cells = [_cells(column, max(room, _NARROWEST)) for column in shown]
    for row in zip(*cells, strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether all of it can be shown in full."""
    return _needed(columns) <= width


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * max(0, len(columns) - 1)


def _cells(column: Column, room: int) -> list[str]:
    return [shortened(text, room) for text in column.cells] if column.name else list(column.cells)
