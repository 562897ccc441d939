"""Tables for people, in the width of their terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxmerge.results import Comparison, Compression, Fidelity, GroupResult, Inspection, Refusal

MANY = 40  # refusals of one reason beyond this many are counted, not listed


def show_compression(console: Console, result: Compression) -> None:
    """What was removed and where, what could not be and why, how close, how much faster."""
    console.print(_sizes(result))
    console.print(_groups(result.groups, compressed=True))
    _show_refusals(console, result.refusals)
    if result.fidelity is not None:
        show_fidelity(console, result.fidelity)
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(f"wrote {escape(result.target)} in {result.seconds:.1f} s", highlight=False)


def show_inspection(console: Console, result: Inspection) -> None:
    """Groups, what each unlocks, reasons for what must stay."""
    console.print(f"{escape(result.model)}: {result.size.parameters:,} parameters, {result.size.macs:,} MACs", highlight=False)
    console.print(_groups(result.groups, compressed=False))
    _show_refusals(console, result.refusals)


def show_fidelity(console: Console, fidelity: Fidelity) -> None:
    """One row an output."""
    table = Table(title=f"closeness on {escape(fidelity.source)}, {fidelity.provider}", title_justify="left")
    table.add_column("output")
    for name in ("fidelity", "SQNR dB", "cosine mean", "worst", "relative L2 mean", "worst", "max |error|", "top-1", "top-5"):
        table.add_column(name, justify="right")
    for output in fidelity.outputs:
        numbers = (output.cosine_mean, output.cosine_worst, output.relative_l2_mean, output.relative_l2_worst)
        table.add_row(
            escape(output.name),
            f"{output.fidelity:.4f}" if output.finite else "[red]not finite[/]",
            f"{output.sqnr_db:.1f}",
            *(f"{number:.4f}" for number in numbers),
            f"{output.max_abs_error:.3g}",
            _share(output.top1_agreement),
            _share(output.top5_agreement),
        )
    console.print(table)


def show_latency(console: Console, latency: Comparison) -> None:
    """Both medians and the ratio with its interval."""
    console.print(_latency_line(latency), highlight=False)


def _latency_line(latency: Comparison) -> str:
    reference, candidate = latency.reference, latency.candidate
    return (
        f"latency {reference.median_ms:.2f} -> {candidate.median_ms:.2f} ms (median; p95 {reference.p95_ms:.2f} -> "
        f"{candidate.p95_ms:.2f}), {latency.speedup:.2f}x faster [{1 / latency.ratio_high:.2f}, {1 / latency.ratio_low:.2f}], "
        f"{latency.provider}, batch {latency.batch}, {latency.threads} threads"
    )


def _sizes(result: Compression) -> Table:
    table = Table(title=escape(f"{result.source} -> {result.target}"), title_justify="left")
    for name, side in (("", "left"), ("before", "right"), ("after", "right"), ("left", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    before, after = result.before, result.after
    rows = [("parameters", before.parameters, after.parameters), ("MACs", before.macs, after.macs)]
    for name, old, new in [*rows, ("file bytes", before.file_bytes, after.file_bytes)]:
        table.add_row(name, f"{old:,}", f"{new:,}", f"{new / max(1, old):.1%}")
    if result.latency is not None:
        latency = result.latency
        spread = f"{latency.ratio:.1%} [{latency.ratio_low:.1%}, {latency.ratio_high:.1%}]"
        where = f"latency ms ({latency.provider}, batch {latency.batch}, {latency.threads} threads)"
        table.add_row(where, f"{latency.reference.median_ms:.3f}", f"{latency.candidate.median_ms:.3f}", spread)
    return table


def _groups(groups: tuple[GroupResult, ...], *, compressed: bool) -> Table:
    table = Table(title=f"{len(groups)} channel groups", title_justify="left")
    table.add_column("group (its first producer)", overflow="fold")
    names = ("kept", "channels", "method") if compressed else ("channels", "removable")
    for name in (*names, "producers", "consumers", "parameters", "MACs", "note"):
        table.add_column(name, justify="left" if name in ("method", "note") else "right", overflow="fold")
    for group in groups:
        own = (
            (str(group.kept), str(group.channels), group.method) if compressed else (str(group.channels), str(group.removable))
        )
        ends = (str(len(group.producers)), str(len(group.consumers)))
        table.add_row(
            escape(group.name), *own, *ends, f"{group.parameters_share:.1%}", f"{group.macs_share:.1%}", escape(group.note)
        )
    return table


def _show_refusals(console: Console, refusals: Iterable[Refusal]) -> None:
    by_reason: dict[str, list[str]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.reason, []).append(refusal.where)
    if not by_reason:
        return
    table = Table(title="left as it was", title_justify="left")
    table.add_column("why", overflow="fold")
    table.add_column("where", overflow="fold")
    for reason, places in by_reason.items():
        named = list(Counter(place for place in places if place))
        more = f" and {len(named) - MANY} more" if len(named) > MANY else ""
        table.add_row(escape(reason), escape(", ".join(named[:MANY]) + more))
    console.print(table)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
