"""A sweep for people: a row a target."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.wording import closeness, file_size, percent, printable, shortened, size_line, speed_interval
from onnxmerge.results import Size, Sweep, SweepPoint


def sweep_title(result: Sweep) -> str:
    """How many targets gave a model."""
    made = sum(point.after is not None for point in result.points)
    return f"{made} of {len(result.points)} targets gave a model" if made < len(result.points) else f"{made} smaller models"


def sweep_columns(result: Sweep) -> list[Column]:
    """What was asked for, what is left, how close and how fast."""
    points = result.points
    columns = [
        Column("target", [point.target for point in points], left=True),
        Column("params", [share_left(point, result.before, "parameters") for point in points]),
        Column("MACs", [share_left(point, result.before, "macs") for point in points]),
        Column("file", ["-" if point.after is None else file_size(point.after.file_bytes) for point in points]),
        Column("fidelity", ["-" if point.fidelity is None else closeness(point.fidelity) for point in points]),
    ]
    if any(point.top1_agreement is not None for point in points):
        agreed = ["-" if point.top1_agreement is None else percent(point.top1_agreement) for point in points]
        columns.append(Column("same best class", agreed))
    if any(point.latency is not None for point in points):
        columns.append(Column("as fast", [_speed(point) for point in points]))
    return columns


def sweep_warnings(result: Sweep) -> list[str]:
    """What a user should know of single points, those with the same words together."""
    found: dict[str, list[str]] = {}
    for point in result.points:
        for warning in (*point.warnings, *([f"no model: {point.failure}"] if point.failure else [])):
            found.setdefault(warning, []).append(point.target)
    return [f"{', '.join(targets)}: {warning}" for warning, targets in found.items()]


def share_left(point: SweepPoint, before: Size, cost: str) -> str:
    """Of parameters, macs or file_bytes."""
    return "-" if point.after is None else percent(getattr(point.after, cost) / max(1, getattr(before, cost)))


def timing_line(result: Sweep) -> str | None:
    """Where latencies were measured, None where none were."""
    timed = next((point.latency for point in result.points if point.latency is not None), None)
    if timed is None:
        return None
    threads = f"{timed.threads} thread{'s' * (timed.threads != 1)}"
    return f"timed against the model as it was: batch {timed.batch_size}, {timed.provider}, {threads}; [low, high]: 95 % interval"


def show_sweep(console: Console, result: Sweep) -> None:
    """The model, a row a target, what to know."""
    console.print(Text(shortened(result.model, console.width), style="bold"))
    console.print(Text(size_line(result.before)))
    console.print()
    console.print(Text(f"{sweep_title(result)}: what is left, and how close", style="bold"))
    console.print(fitted(sweep_columns(result), console.width))
    for line in filter(
        None, (f"inputs: {printable(result.input_description)}" if result.input_description else None, timing_line(result))
    ):
        console.print(Text(line, style="dim"))
    for warning in sweep_warnings(result):
        console.print(Text(f"warning: {printable(warning)}", style="yellow"))
    for point in result.points:
        if point.output:
            console.print(Text(f"wrote {printable(point.output)}", style="green"), soft_wrap=True)


def _speed(point: SweepPoint) -> str:
    if point.latency is None:
        return "-"
    low, high = speed_interval(point.latency)
    return f"{point.latency.speedup:.2f}x [{low:.2f}, {high:.2f}]"
