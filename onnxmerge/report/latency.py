"""Latencies for people: the interval beside the ratio, and what became of the work that was saved."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.wording import listed, milliseconds, percent, printable
from onnxmerge.results import Bench, Comparison, Execution

_MANY_NODES, _NAME = 6, 36
_SETTINGS = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA graph", "trt_cuda_graph_enable": "CUDA graph"}


def show_latency(console: Console, latency: Comparison | Bench) -> None:
    """Latency and throughput of both, and the ratio with its interval; a row a batch size where there are several."""
    if isinstance(latency, Bench):
        _show_batches(console, latency.batches)
        return
    per_second = [_rate(value) for value in (latency.reference_per_second, latency.candidate_per_second)]
    rows = [*latency_rows(latency), ("throughput", *per_second, percent(1 / latency.ratio))]
    console.print(Text("Latency of one call, measured in turn", style="bold"))
    cells = list(zip(*rows, strict=True))
    headers = ("", "reference", "candidate", "ratio")
    columns = [Column(header, cells[index], left=index == 0) for index, header in enumerate(headers)]
    console.print(fitted(columns, console.width))
    show_speed(console, latency)


def latency_rows(latency: Comparison) -> list[tuple[str, str, str, str]]:
    """Label, reference, candidate, ratio."""
    reference, candidate = latency.reference, latency.candidate
    return [
        ("latency, median", milliseconds(reference.median_ms), milliseconds(candidate.median_ms), percent(latency.ratio)),
        ("latency, p95", milliseconds(reference.p95_ms), milliseconds(candidate.p95_ms), ""),
    ]


def show_speed(console: Console, latency: Comparison) -> None:
    """A line with the verdict, one with the work saved, one with what was measured."""
    low, high = 1 / latency.ratio_high, 1 / latency.ratio_low
    verdict = _verdict(latency)
    style = {"faster": "green", "slower": "red"}.get(verdict, "yellow")
    text = f"{latency.speedup:.2f}x as fast, 95 % interval {low:.2f}x to {high:.2f}x: {verdict}"
    console.print(Text(text, style=style))
    if latency.macs_ratio is not None and latency.realised is not None:
        text = f"{percent(1 - latency.macs_ratio)} of the MACs and {percent(1 - latency.ratio)} of the time saved"
        console.print(Text(f"{text}: {percent(latency.realised, 0)} of what was possible if time followed the MACs", style="dim"))
    _show_conditions(console, latency, f"batch {latency.batch}")


def show_execution(console: Console, execution: Execution | None, provider: str) -> None:
    """What a user should know of where it ran: a fallback, settings of CUDA, nodes that ran elsewhere."""
    if execution is None:
        return
    if execution.fallback:
        console.print(Text(f"on the CPU because CUDA does not work here: {printable(execution.fallback)}", style="dim"))
    if execution.settings:
        stated = [_setting(key, value) for key, value in execution.settings.items()]
        console.print(Text(f"CUDA: {', '.join(stated)}", style="dim"))
    for side, placed in (("reference", execution.reference), ("candidate", execution.candidate)):
        elsewhere = [node for node, where in placed.items() if where != provider]
        if elsewhere:
            names = listed(elsewhere, _MANY_NODES, _NAME)
            console.print(Text(f"{len(elsewhere)} of {len(placed)} nodes of the {side} ran elsewhere: {names}", style="yellow"))


def _setting(key: str, value: str) -> str:
    if key in _SETTINGS:
        return f"{_SETTINGS[key]} {'on' if value in ('1', 'True', 'true') else 'off'}"
    return f"cuDNN search {value.lower()}" if key == "cudnn_conv_algo_search" else f"{key} {value}"


def _verdict(latency: Comparison) -> str:
    faster, slower = latency.ratio_high < 1, latency.ratio_low > 1
    return "faster" if faster else "slower" if slower else "no difference that can be measured"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} /s"


def _show_batches(console: Console, batches: Sequence[Comparison]) -> None:
    intervals = [f"{1 / each.ratio_high:.2f}x to {1 / each.ratio_low:.2f}x" for each in batches]
    columns = [
        Column("batch", [str(each.batch) for each in batches]),
        Column("reference", [milliseconds(each.reference.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.reference.p95_ms) for each in batches], extra=True),
        Column("candidate", [milliseconds(each.candidate.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.candidate.p95_ms) for each in batches], extra=True),
        Column("inputs a second", [_rate(each.candidate_per_second) for each in batches], extra=True),
        Column("as fast", [f"{each.speedup:.2f}x" for each in batches]),
        Column("95 % interval", intervals),
        Column("realised", ["-" if each.realised is None else percent(each.realised, 0) for each in batches]),
    ]
    console.print(Text("Latency of one call, measured in turn", style="bold"))
    console.print(fitted(columns, console.width))
    macs = batches[0].macs_ratio
    if macs is not None:
        text = f"{percent(1 - macs)} of the MACs saved; realised: the share of them that became time saved"
        console.print(Text(text, style="dim"))
    _show_conditions(console, batches[0], f"batch {batches[0].batch}")


def _show_conditions(console: Console, latency: Comparison, batch: str) -> None:
    threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
    calls = f"{latency.candidate.runs:,} calls of each"
    console.print(Text(f"timed: {calls}, {batch}, {latency.provider}, {threads}", style="dim"))
    if latency.warm_up_runs:
        rounds = f"{latency.rounds} round{'s' * (latency.rounds != 1)}"
        text = f"in {rounds} of freshly opened sessions, warmed up until stable: {latency.warm_up_runs} calls"
        console.print(Text(text, style="dim"))
    show_execution(console, latency.execution, latency.provider)
