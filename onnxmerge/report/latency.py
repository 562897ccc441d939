"""Latencies for people: the interval beside the ratio, and what became of the work that was saved."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onnxmerge.report.columns import batch_columns, latency_columns
from onnxmerge.report.tables import fitted
from onnxmerge.report.wording import (
    TIMED,
    elsewhere_lines,
    execution_lines,
    macs_line,
    speed_line,
    timing_lines,
    verdict_of,
    work_line,
)
from onnxmerge.results import Benchmark, Execution, LatencyComparison

_STYLES = {"faster": "green", "slower": "red"}


def show_latency(console: Console, latency: Benchmark) -> None:
    """Latency and throughput of both, and the ratio with its interval; a row a batch size where there are several."""
    console.print(Text(TIMED, style="bold"))
    if len(latency.batches) > 1:
        console.print(fitted(batch_columns(latency.batches), console.width))
        _show_lines(console, [macs_line(latency.batches[0]), *timing_lines(latency.batches[0])])
        show_execution(console, latency.batches[0].execution, latency.batches[0].provider)
        return
    console.print(fitted(latency_columns(latency.batches[0]), console.width))
    show_speed(console, latency.batches[0])


def show_speed(console: Console, latency: LatencyComparison) -> None:
    """A line with the verdict, one with the work saved, one with what was measured."""
    console.print(Text(speed_line(latency), style=_STYLES.get(verdict_of(latency), "yellow")))
    _show_lines(console, [work_line(latency), *timing_lines(latency)])
    show_execution(console, latency.execution, latency.provider)


def show_execution(console: Console, execution: Execution | None, provider: str) -> None:
    """What a user should know of where it ran: a fallback, settings of CUDA, nodes that ran elsewhere."""
    _show_lines(console, execution_lines(execution))
    for line in elsewhere_lines(execution, provider):
        console.print(Text(line, style="yellow"))


def _show_lines(console: Console, lines: list[str | None] | list[str]) -> None:
    for line in filter(None, lines):
        console.print(Text(line, style="dim"))
