"""Results for people, in the width of their terminal. What matters most comes last, where the eye is when a command ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from onnxmerge.report.latency import latency_rows, show_execution, show_speed
from onnxmerge.report.layers import show_layers
from onnxmerge.report.tables import Column, fits, fitted
from onnxmerge.report.wording import (
    closeness,
    decibels,
    file_size,
    listed,
    percent,
    printable,
    reasons,
    shortened,
    small,
)
from onnxmerge.results import Compression, Fidelity, GroupResult, Inspection, OutputFidelity, Refusal

MANY_NAMES = 12  # of one reason; --json lists them all
MANY_OUTPUTS = 3  # more get a row each
_NAME = 36


def show_inspection(console: Console, result: Inspection) -> None:
    """What must stay and why, the groups and what each unlocks, the whole."""
    _show_refusals(console, "Must stay whole", result.refusals)
    _show_groups(console, result.groups, compressed=False)
    size = result.size
    figures = f"{size.parameters:,} parameters, {size.macs:,} MACs for one input, {file_size(size.file_bytes)}"
    _line(console, shortened(result.model, console.width), "bold")
    _line(console, figures)


def show_compression(console: Console, result: Compression) -> None:
    """What could not be removed and why, what was removed and where, how close, how much smaller and faster."""
    _show_refusals(console, "Left as it was", result.refusals)
    _show_groups(console, result.groups, compressed=True)
    if result.fidelity is not None:
        show_fidelity(console, result.fidelity)
        console.print()
    _show_sizes(console, result)
    for warning in result.warnings:
        _line(console, f"warning: {printable(warning)}", "yellow")
    _line(console, f"wrote {printable(result.target)} in {result.seconds:.1f} s", "green")


def show_fidelity(console: Console, fidelity: Fidelity) -> None:
    """How close the outputs stayed: a column an output, or a row an output where there are many."""
    outputs = fidelity.outputs
    title = f"Outputs against the reference's, on {fidelity.inputs} inputs"
    columns = _measures_down(outputs)
    if len(outputs) > MANY_OUTPUTS or not fits(columns, console.width):
        columns = _measures_across(outputs)
    _line(console, title, "bold")
    console.print(fitted(columns, console.width))
    _line(console, f"inputs: {printable(fidelity.source)}; {fidelity.provider}", "dim")
    show_execution(console, fidelity.execution, fidelity.provider)
    if fidelity.accuracy is not None:
        before, after = fidelity.accuracy.before, fidelity.accuracy.after
        points = f"{100 * (after - before):+.2f} points"
        _line(console, f"accuracy by the labels: {percent(before, 2)} before, {percent(after, 2)} after ({points})")
    if fidelity.layers is not None:
        show_layers(console, fidelity.layers)
    for output in outputs:
        if not output.finite:
            _line(console, f"output {printable(output.name)} holds NaN or infinity", "red")


def _show_sizes(console: Console, result: Compression) -> None:
    before, after = result.before, result.after
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", _left(before.parameters, after.parameters)),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", _left(before.macs, after.macs)),
        ("file", file_size(before.file_bytes), file_size(after.file_bytes), _left(before.file_bytes, after.file_bytes)),
        *([] if result.latency is None else latency_rows(result.latency)),
    ]
    half = (console.width - 3) // 2
    _line(console, f"{shortened(result.source, half)} → {shortened(result.target, half)}", "bold")
    console.print(fitted(_columns(("", "before", "after", "left"), rows), console.width))
    if result.latency is not None:
        show_speed(console, result.latency)


def _show_groups(console: Console, groups: Sequence[GroupResult], *, compressed: bool) -> None:
    if not groups:
        _line(console, "No channel group can shrink." if not compressed else "No channel group was made smaller.", "yellow")
        console.print()
        return
    note = Column("note", [printable(group.note) for group in groups], left=True)
    columns = _group_columns(groups, compressed=compressed)
    inline = any(group.note for group in groups) and fits([*columns, note], console.width)
    groups_named = f"{len(groups)} channel group{'s' * (len(groups) != 1)}"
    title = f"{groups_named} made smaller" if compressed else f"{groups_named} can shrink"
    _line(console, title, "bold")
    console.print(fitted([*columns, note] if inline else columns, console.width))
    if not compressed:
        _line(console, "shares: the layers that write or read the group's channels; groups overlap", "dim")
    console.print()
    if not inline:
        _show_refusals(console, "Notes on these groups", [Refusal(group.name, group.note) for group in groups if group.note])


def _error_columns(groups: Sequence[GroupResult]) -> list[Column]:
    """The expected error of the method taken, and of pruning alone beside it."""
    if not any(group.expected_error for group in groups):
        return []
    taken = [group.expected_error.get(group.method) for group in groups]
    pruned = [group.expected_error.get("prune") for group in groups]
    return [
        Column("error", ["-" if error is None else percent(error) for error in taken]),
        Column("pruned", ["-" if error is None else percent(error) for error in pruned]),
    ]


def _group_columns(groups: Sequence[GroupResult], *, compressed: bool) -> list[Column]:
    if compressed:
        counts = [
            Column("kept", [f"{group.kept:,}" for group in groups]),
            Column("of", [f"{group.channels:,}" for group in groups]),
            Column("method", [group.method for group in groups], left=True),
            *_error_columns(groups),
        ]
    else:
        counts = [
            Column("channels", [f"{group.channels:,}" for group in groups]),
            Column("may go", [f"{group.removable:,}" for group in groups]),
        ]
    return [
        Column("group", [group.name for group in groups], name=True),
        *counts,
        Column("writers", [str(len(group.producers)) for group in groups], extra=True),
        Column("readers", [str(len(group.consumers)) for group in groups], extra=True),
        Column("params", [percent(group.parameters_share) for group in groups]),
        Column("MACs", [percent(group.macs_share) for group in groups]),
    ]


def _show_refusals(console: Console, title: str, refusals: Iterable[Refusal]) -> None:
    """A list, reason by reason: a table of these would be mostly air."""
    found = reasons(refusals)
    if not found:
        return
    _line(console, title, "bold")
    for reason in found:
        lone = reason.obstacles[0] if len(reason.obstacles) == 1 else ""
        at = f" ({shortened(lone, _NAME)})" if lone and printable(lone) not in reason.text and reason.layers else ""
        _line(console, reason.text + at, indent=2)
        names = listed(reason.layers or reason.obstacles, MANY_NAMES, _NAME)
        if names:
            _line(console, names, "dim", indent=4)
    console.print()


def _measures_down(outputs: Sequence[OutputFidelity]) -> list[Column]:
    measures = [(output.name, _measures(output)) for output in outputs]
    names = list(dict.fromkeys(key for _, found in measures for key in found))
    columns = [Column(shortened(name, _NAME), [found.get(key, "-") for key in names]) for name, found in measures]
    return [Column("", names, left=True), *columns]


def _measures(output: OutputFidelity) -> dict[str, str]:
    found = {
        "fidelity": closeness(output.fidelity),
        "SQNR": decibels(output.sqnr_db),
        "cosine, mean": closeness(output.cosine_mean),
        "cosine, worst": closeness(output.cosine_worst),
        "relative L2, mean": small(output.relative_l2_mean),
        "relative L2, worst": small(output.relative_l2_worst),
        "largest error": small(output.max_abs_error),
        "worst input": f"no. {output.worst_input}",
    }
    if output.top1_agreement is not None:
        found["same best class"] = percent(output.top1_agreement)
    if output.top5_agreement is not None:
        found["best class in top 5"] = percent(output.top5_agreement)
    return found


def _measures_across(outputs: Sequence[OutputFidelity]) -> list[Column]:
    columns = [
        Column("output", [output.name for output in outputs], name=True),
        Column("fidelity", [closeness(output.fidelity) for output in outputs]),
        Column("SQNR", [decibels(output.sqnr_db) for output in outputs]),
        Column("cosine", [closeness(output.cosine_mean) for output in outputs]),
        Column("worst", [closeness(output.cosine_worst) for output in outputs]),
        Column("rel. L2", [small(output.relative_l2_mean) for output in outputs]),
        Column("worst", [small(output.relative_l2_worst) for output in outputs], extra=True),
        Column("max error", [small(output.max_abs_error) for output in outputs], extra=True),
    ]
    if any(output.top1_agreement is not None for output in outputs):
        columns.append(Column("top-1", [_share(output.top1_agreement) for output in outputs]))
        columns.append(Column("top-5", [_share(output.top5_agreement) for output in outputs], extra=True))
    return columns


def _columns(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[Column]:
    cells = list(zip(*rows, strict=True))
    return [Column(header, cells[index], left=index == 0) for index, header in enumerate(headers)]


def _left(before: int, after: int) -> str:
    return percent(after / before) if before else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _line(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, indent), expand=False))
