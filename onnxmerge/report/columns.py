"""What tables of results hold, the same for every way of showing them: a column has its header and its cells as text."""

from __future__ import annotations

from collections.abc import Sequence

from onnxmerge.report.tables import Column
from onnxmerge.report.wording import closeness, decibels, file_size, milliseconds, percent, shortened, small, speed_interval
from onnxmerge.results import Compression, GroupResult, LatencyComparison, OutputFidelity

MANY_OUTPUTS = 3  # more get a row each
_NAME = 36


def group_columns(groups: Sequence[GroupResult], *, compressed: bool) -> list[Column]:
    """Groups and what became of them, or what could go."""
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
            *_sensitivity_columns(groups),
        ]
    return [
        Column("group", [group.name for group in groups], name=True),
        *counts,
        Column("writers", [str(len(group.producers)) for group in groups], extra=True),
        Column("readers", [str(len(group.consumers)) for group in groups], extra=True),
        Column("params", [percent(group.parameters_share) for group in groups]),
        Column("MACs", [percent(group.macs_share) for group in groups]),
    ]


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


def levels(groups: Sequence[GroupResult]) -> dict[str, str]:
    """Header of a column -> the share removed, where that was measured."""
    found = sorted({level for group in groups for level in group.sensitivity}, key=float)
    return {f"{100 * float(level):g} %": level for level in found}


def _sensitivity_columns(groups: Sequence[GroupResult]) -> list[Column]:
    """The fidelity with a part of one group removed."""
    measured = {header: [group.sensitivity.get(level) for group in groups] for header, level in levels(groups).items()}
    return [
        Column(header, ["-" if value is None else closeness(value) for value in values]) for header, values in measured.items()
    ]


def measures_down(outputs: Sequence[OutputFidelity]) -> list[Column]:
    """A row a measure, a column an output."""
    measured = [(output.name, measures(output)) for output in outputs]
    names = list(dict.fromkeys(key for _, found in measured for key in found))
    columns = [Column(shortened(name, _NAME), [found.get(key, "-") for key in names]) for name, found in measured]
    return [Column("", names, left=True), *columns]


def measures(output: OutputFidelity) -> dict[str, str]:
    """Every measure of one output as people read it."""
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


def measures_across(outputs: Sequence[OutputFidelity]) -> list[Column]:
    """A row an output, the measures that matter most in few columns."""
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


def size_columns(result: Compression) -> list[Column]:
    """Costs before and after, and what is left of them; latencies where they were measured."""
    before, after = result.before, result.after
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", _left(before.parameters, after.parameters)),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", _left(before.macs, after.macs)),
        ("file", file_size(before.file_bytes), file_size(after.file_bytes), _left(before.file_bytes, after.file_bytes)),
        *([] if result.latency is None else _latency_rows(result.latency)),
    ]
    return _columns(("", "before", "after", "left"), rows)


def latency_columns(latency: LatencyComparison) -> list[Column]:
    """Latency and throughput of reference and candidate."""
    per_second = [_rate(value) for value in (latency.reference_inputs_per_second, latency.candidate_inputs_per_second)]
    rows = [*_latency_rows(latency), ("throughput", *per_second, percent(1 / latency.latency_ratio))]
    return _columns(("", "reference", "candidate", "ratio"), rows)


def batch_columns(batches: Sequence[LatencyComparison]) -> list[Column]:
    """A row a batch size."""
    intervals = [speed_interval(each) for each in batches]
    return [
        Column("batch", [str(each.batch_size) for each in batches]),
        Column("reference", [milliseconds(each.reference.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.reference.p95_ms) for each in batches], extra=True),
        Column("candidate", [milliseconds(each.candidate.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.candidate.p95_ms) for each in batches], extra=True),
        Column("inputs a second", [_rate(each.candidate_inputs_per_second) for each in batches], extra=True),
        Column("as fast", [f"{each.speedup:.2f}x" for each in batches]),
        Column("95 % interval", [f"{low:.2f}x to {high:.2f}x" for low, high in intervals]),
        Column("realised", ["-" if each.realised_saving is None else percent(each.realised_saving, 0) for each in batches]),
    ]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} /s"


def _latency_rows(latency: LatencyComparison) -> list[tuple[str, str, str, str]]:
    reference, candidate = latency.reference, latency.candidate
    return [
        ("latency, median", milliseconds(reference.median_ms), milliseconds(candidate.median_ms), percent(latency.latency_ratio)),
        ("latency, p95", milliseconds(reference.p95_ms), milliseconds(candidate.p95_ms), ""),
    ]


def _columns(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[Column]:
    cells = list(zip(*rows, strict=True))
    return [Column(header, cells[index], left=index == 0) for index, header in enumerate(headers)]


def _left(before: int, after: int) -> str:
    return percent(after / before) if before else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
