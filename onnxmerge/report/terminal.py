"""Results for people, in the width of their terminal. What matters most comes last, where the eye is when a command ends."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from onnxmerge.report.columns import MANY_OUTPUTS, group_columns, measures_across, measures_down, size_columns
from onnxmerge.report.latency import show_execution, show_speed
from onnxmerge.report.layers import show_layers
from onnxmerge.report.tables import Column, fits, fitted
from onnxmerge.report.wording import (
    COMPARED,
    LEFT,
    MUST_STAY,
    NOTES,
    SHARES,
    SharedReason,
    accuracy_line,
    as_command_line,
    groups_title,
    listed,
    notes,
    printable,
    reasons,
    sensitivity_line,
    shortened,
    size_line,
)
from onnxmerge.results import Compression, Fidelity, GroupResult, Inspection, Verification

MANY_NAMES = 12  # of one reason; --json and --report list them all
_NAME = 36


def show_inspection(console: Console, result: Inspection) -> None:
    """What must stay and why, the groups and what each unlocks, the whole."""
    _show_reasons(console, MUST_STAY, reasons(result.refusals))
    _show_groups(console, result.groups, compressed=False, inputs=result.input_description)
    _line(console, shortened(result.model, console.width), "bold")
    _line(console, size_line(result.size))


def show_compression(console: Console, result: Compression) -> None:
    """What could not be removed and why, what was removed and where, how close, how much smaller and faster."""
    _show_reasons(console, LEFT, reasons(result.refusals))
    _show_groups(console, result.groups, compressed=True)
    if result.fidelity is not None:
        _show_fidelity(console, result.fidelity)
        console.print()
    _show_sizes(console, result)
    for warning in result.warnings:
        _line(console, f"warning: {printable(as_command_line(warning))}", "yellow")
    console.print(Text(f"wrote {printable(result.output)} in {result.seconds:.1f} s", style="green"), soft_wrap=True)


def show_verification(console: Console, result: Verification) -> None:
    """How close the outputs are; failures are left to the error message."""
    _show_fidelity(console, result.fidelity)


def _show_fidelity(console: Console, fidelity: Fidelity) -> None:
    """How close the outputs stayed: a column an output, or a row an output where there are many."""
    outputs = fidelity.outputs
    columns = measures_down(outputs)
    if len(outputs) > MANY_OUTPUTS or not fits(columns, console.width):
        columns = measures_across(outputs)
    _line(console, f"{COMPARED}, on {fidelity.input_count} inputs", "bold")
    console.print(fitted(columns, console.width))
    _line(console, f"inputs: {printable(fidelity.input_description)}; {fidelity.provider}", "dim")
    show_execution(console, fidelity.execution, fidelity.provider)
    if fidelity.accuracy is not None:
        _line(console, accuracy_line(fidelity.accuracy))
    if fidelity.layer_comparison is not None:
        show_layers(console, fidelity.layer_comparison)
    for output in outputs:
        if not output.finite:
            _line(console, f"output {printable(output.name)} holds NaN or infinity", "red")


def _show_sizes(console: Console, result: Compression) -> None:
    half = (console.width - 3) // 2
    _line(console, f"{shortened(result.model, half)} → {shortened(result.output, half)}", "bold")
    console.print(fitted(size_columns(result), console.width))
    if result.latency is not None:
        show_speed(console, result.latency)


def _show_groups(console: Console, groups: Sequence[GroupResult], *, compressed: bool, inputs: str = "") -> None:
    if not groups:
        _line(console, groups_title(groups, compressed=compressed), "yellow")
        console.print()
        return
    note = Column("note", [printable(group.note) for group in groups], left=True)
    columns = group_columns(groups, compressed=compressed)
    inline = any(group.note for group in groups) and fits([*columns, note], console.width)
    _line(console, groups_title(groups, compressed=compressed), "bold")
    console.print(fitted([*columns, note] if inline else columns, console.width))
    if not compressed:
        _line(console, SHARES, "dim")
    if inputs:
        _line(console, sensitivity_line(inputs), "dim")
    console.print()
    if not inline:
        _show_reasons(console, NOTES, notes(groups))


def _show_reasons(console: Console, title: str, found: Sequence[SharedReason]) -> None:
    """A list, reason by reason: a table of these would be mostly air."""
    if not found:
        return
    _line(console, title, "bold")
    for reason in found:
        _line(console, reason.told(_NAME), indent=2)
        names = listed(reason.layers or reason.obstacles, MANY_NAMES, _NAME)
        if names:
            _line(console, names, "dim", indent=4)
    console.print()


def _line(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, indent), expand=False))
