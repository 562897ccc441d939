"""What the tables of results hold, the same on the terminal and on a page."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from onnxmerge.report.sentences import speedup_text
from onnxmerge.report.tables import Column
from onnxmerge.report.wording import (
    closeness,
    decibels,
    file_size,
    magnitude,
    milliseconds,
    percent,
    quantity,
    relative_error,
    told_apart,
    two_digits,
)
from onnxmerge.results import (
    Compression,
    GroupResult,
    LatencyComparison,
    LayerComparison,
    OutputFidelity,
    Size,
    Sweep,
    SweepPoint,
)

MAX_OUTPUT_COLUMNS = 3  # as many fit beside the names of the measures in 80 characters; more outputs get a row each
MAX_LAYER_ROWS = 12  # nodes in a table of deviations; the JSON document has all
_NAME_WIDTH = 36  # characters of an output's name in a header
CHANGED_NARROW = "changed"  # header of the changed decisions in a narrow table
_DASH = "-"  # where there is no value
_MEASURES: list[tuple[str, str, bool, Callable[[OutputFidelity], str]]] = [
    ("fidelity", "fidelity", False, lambda output: "not measured" if output.unmeasured else closeness(output.fidelity)),
    ("95 % interval", "", True, lambda o: _interval(o.fidelity_low, o.fidelity_high, closeness)),
    ("SQNR", "SQNR", False, lambda output: decibels(output.sqnr_db)),
    ("cosine, mean", "cosine", False, lambda output: closeness(output.cosine_mean)),
    ("cosine, worst", "worst", False, lambda output: closeness(output.cosine_worst)),
    ("relative L2, mean", "rel. L2", False, lambda output: magnitude(output.relative_l2_mean)),
    ("relative L2, worst", "worst", True, lambda output: magnitude(output.relative_l2_worst)),
    ("largest error", "max error", True, lambda output: magnitude(output.max_abs_error)),
    ("worst input", "", True, lambda output: f"no. {output.worst_input}"),
    ("same best class", "top-1", False, lambda output: _or_dash(output.top1_agreement, percent)),
    ("changed decisions", "changed", False, lambda output: _or_dash(output.changed_decisions, two_digits)),
    ("their 95 % interval", "", True, lambda o: _interval(o.changed_decisions_low, o.changed_decisions_high, two_digits)),
    ("nearest kept", "nearest", False, lambda output: _or_dash(output.neighbours_kept, percent)),
    ("best class in top 5", "top-5", True, lambda output: _or_dash(output.top5_agreement, percent)),
]
"""Measure, its header in a narrow table ("": not in it), whether its column there is optional, and its text."""


def group_columns(groups: Sequence[GroupResult], *, compressed: bool) -> list[Column]:
    """A row for each group: what it saves and costs after `compress`; of an inspection what it could, and its sensitivity."""
    if compressed:
        details = [
            Column("kept", [f"{group.kept:,}" for group in groups]),
            Column("of", [f"{group.channels:,}" for group in groups]),
            Column("method", [group.method for group in groups], left=True),
        ]
    else:
        some_stay = any(group.removable < group.channels for group in groups)
        details = [
            Column("channels", [f"{group.channels:,}" for group in groups]),
            *([Column("removable", [f"{group.removable:,}" for group in groups])] if some_stay else []),
            *_sensitivity_columns(groups),
        ]
    return [
        Column("group", [group.name for group in groups], name=True),
        *details,
        Column("producers", [str(len(group.producers)) for group in groups], optional=True),
        Column("consumers", [str(len(group.consumers)) for group in groups], optional=True),
        Column("params", [two_digits(group.parameters_saved) for group in groups]),
        Column("MACs", [two_digits(group.macs_saved) for group in groups]),
        Column("time", [two_digits(group.time_saved) for group in groups]),
        *_error_columns(groups),
    ]


def ranked(groups: Sequence[GroupResult]) -> list[GroupResult]:
    """Those that save most time first, then MACs."""
    return sorted(groups, key=lambda group: (group.time_saved, group.macs_saved), reverse=True)


def _error_columns(groups: Sequence[GroupResult]) -> list[Column]:
    """Expected errors of the method taken and of `prune`."""
    if not any(group.expected_error for group in groups):
        return []
    taken = [group.expected_error.get(group.method) for group in groups]
    pruned = [group.expected_error.get("prune") for group in groups]
    columns = [
        Column("error", [_or_dash(value, two_digits) for value in taken]),
        Column("pruned", [_or_dash(value, two_digits) for value in pruned], optional=True),
    ]
    return _with_bars(columns, [taken, pruned])


def _sensitivity_columns(groups: Sequence[GroupResult]) -> list[Column]:
    """Fidelity by share of one group's channels removed; the bars show what is lost."""
    shares = sorted({share for group in groups for share in group.sensitivity}, key=float)
    measured = [[group.sensitivity.get(share) for group in groups] for share in shares]
    columns = [
        Column(f"{100 * float(share):g} %", [_or_dash(value, closeness) for value in values])
        for share, values in zip(shares, measured, strict=True)
    ]
    return _with_bars(columns, [[None if value is None else 1.0 - value for value in values] for values in measured])


def _with_bars(columns: Sequence[Column], lengths: Sequence[Sequence[float | None]]) -> list[Column]:
    """The columns with bars on a common scale: the longest is 1."""
    longest = max((length for column in lengths for length in column if length is not None), default=0.0)
    if longest <= 0.0:
        return list(columns)
    scaled = [[None if length is None else max(0.0, length) / longest for length in column] for column in lengths]
    return [replace(column, bars=bars) for column, bars in zip(columns, scaled, strict=True)]


def measure_rows(outputs: Sequence[OutputFidelity]) -> list[Column]:
    """A row for each measure and a column for each output."""
    table = _by_measure(outputs)
    names = told_apart([output.name for output in outputs], _NAME_WIDTH, "…")
    columns = [Column(name, cells) for name, cells in zip(names, zip(*table.values(), strict=True), strict=True)]
    return [Column("", list(table), left=True), *columns]


def output_rows(outputs: Sequence[OutputFidelity], *, narrow: bool) -> list[Column]:
    """A row for each output; narrow: with the most important measures only, under short headers."""
    table = _by_measure(outputs)
    headers = [(measure, short if narrow else measure, narrow and optional) for measure, short, optional, _ in _MEASURES]
    shown = [each for each in headers if each[0] in table and each[1]]
    columns = [Column(header, table[measure], optional=optional) for measure, header, optional in shown]
    return [Column("output", [output.name for output in outputs], name=True), *columns]


def output_columns(outputs: Sequence[OutputFidelity]) -> list[Column]:
    """All measures of all outputs."""
    return measure_rows(outputs) if len(outputs) <= MAX_OUTPUT_COLUMNS else output_rows(outputs, narrow=False)


def _by_measure(outputs: Sequence[OutputFidelity]) -> dict[str, list[str]]:
    """Each measure and its value for each output."""
    table = {
        measure: [_DASH if each.unmeasured and measure != "fidelity" else text(each) for each in outputs]
        for measure, _, _, text in _MEASURES
    }
    return {measure: cells for measure, cells in table.items() if set(cells) != {_DASH}}


def size_columns(result: Compression) -> list[Column]:
    """Sizes before and after, latencies where they were measured, and what share is left."""
    latencies = [] if result.latency is None else _latency_rows(result.latency)
    return _columns(("", "before", "after", "left"), [*size_rows(result.before, result.after), *latencies])


def size_rows(before: Size, after: Size) -> list[tuple[str, str, str, str]]:
    """What is counted, before, after, and the share that is left."""
    return [
        ("parameters", quantity(before.parameters), quantity(after.parameters), share_left(before.parameters, after.parameters)),
        ("MACs", quantity(before.macs), quantity(after.macs), share_left(before.macs, after.macs)),
        ("file", file_size(before.file_bytes), file_size(after.file_bytes), share_left(before.file_bytes, after.file_bytes)),
    ]


def latency_columns(latency: LatencyComparison) -> list[Column]:
    """Latency and throughput of both models."""
    inputs_per_second = latency.reference_inputs_per_second, latency.candidate_inputs_per_second
    throughput = ("throughput", *(_or_dash(value, _per_second) for value in inputs_per_second), percent(latency.speedup))
    return _columns(("", "reference", "candidate", "ratio"), [*_latency_rows(latency), throughput])


def batch_columns(batches: Sequence[LatencyComparison]) -> list[Column]:
    """A row for each batch size."""
    intervals = [each.speedup_interval for each in batches]
    realised = [each.realised_saving if each.verdict == "faster" else None for each in batches]
    return [
        Column("batch", [str(each.batch_size) for each in batches]),
        Column("reference", [milliseconds(each.reference.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.reference.p95_ms) for each in batches], optional=True),
        Column("candidate", [milliseconds(each.candidate.median_ms) for each in batches]),
        Column("p95", [milliseconds(each.candidate.p95_ms) for each in batches], optional=True),
        Column("inputs a second", [_or_dash(each.candidate_inputs_per_second, _per_second) for each in batches], optional=True),
        Column("as fast", [f"{each.speedup:.2f}x" for each in batches], tones=_tones(batches)),
        Column("95 % interval", [f"{low:.2f}x to {high:.2f}x" for low, high in intervals]),
        Column("realised", [_or_dash(each, lambda share: percent(share, 0)) for each in realised]),
    ]


def deviation_columns(layers: LayerComparison) -> list[Column]:
    """The nodes that add most error, in the order in which they run, the first that deviates always among them."""
    nodes = layers.deviations
    adding = [index for index, node in enumerate(nodes) if index == 0 or node.added_error > 0.0]
    largest = sorted(adding, key=lambda index: (index != 0, -nodes[index].added_error))[:MAX_LAYER_ROWS]
    shown = [nodes[index] for index in sorted(largest)]
    return [
        Column("node", [node.node for node in shown], name=True),
        Column("operator", [node.operator for node in shown], left=True, optional=True),
        Column("error before it", [relative_error(node.relative_l2_before) for node in shown]),
        Column("behind it", [relative_error(node.relative_l2_after) for node in shown]),
    ]


def sweep_columns(sweep: Sweep, *, narrow: bool = False) -> list[Column]:
    """A row for each target: what is left of the model, how close and how fast it is.

    Narrow: the intervals are those of speeds alone, and marks stand for slower ones.
    """
    points, before = sweep.points, sweep.before
    sizes = [point.after for point in points]
    columns = [
        Column("target", [point.target for point in points], left=True),
        Column("params", [_DASH if size is None else share_left(before.parameters, size.parameters) for size in sizes]),
        Column("MACs", [_DASH if size is None else share_left(before.macs, size.macs) for size in sizes]),
        Column("file", [_DASH if size is None else file_size(size.file_bytes) for size in sizes], optional=True),
        Column(
            "fidelity", [_or_dash(point.fidelity, closeness) + _bounds(point, "fidelity", closeness, narrow) for point in points]
        ),
    ]
    if any(point.changed_decisions is not None for point in points):
        changed = [
            _or_dash(point.changed_decisions, two_digits) + _bounds(point, "changed_decisions", two_digits, narrow)
            for point in points
        ]
        columns.append(Column(CHANGED_NARROW if narrow else "changed decisions", changed))
    if any(point.top1_agreement is not None for point in points):
        agreements = [_or_dash(point.top1_agreement, percent) for point in points]
        columns.append(Column("same best class", agreements, optional=True))
    if any(point.latency is not None for point in points):
        text = partial(speedup_text, narrow=narrow)
        speedups = [_DASH if point.latency is None else text(point.latency) for point in points]
        columns.append(Column("as fast", speedups, tones=_tones([point.latency for point in points])))
    return columns


def _bounds(point: SweepPoint, measure: str, text: Callable[[float], str], narrow: bool) -> str:
    """` [0.9812, 0.9920]`, the 95 % interval of a measure of a point; empty where there is none, or no room."""
    low, high = getattr(point, f"{measure}_low"), getattr(point, f"{measure}_high")
    return "" if narrow or low is None or high is None else f" [{text(low)}, {text(high)}]"


def _interval(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    return _DASH if low is None or high is None else f"{text(low)} to {text(high)}"


def share_left(before: int, after: int) -> str:
    """after / before in per cent."""
    return percent(after / before) if before else _DASH


def _tones(latencies: Sequence[LatencyComparison | None]) -> list[str]:
    """ "bad" where the candidate is slower."""
    return ["bad" if each is not None and each.verdict == "slower" else "" for each in latencies]


def _latency_rows(latency: LatencyComparison) -> list[tuple[str, str, str, str]]:
    reference, candidate = latency.reference, latency.candidate
    return [
        ("latency, median", milliseconds(reference.median_ms), milliseconds(candidate.median_ms), percent(latency.latency_ratio)),
        ("latency, p95", milliseconds(reference.p95_ms), milliseconds(candidate.p95_ms), ""),
    ]


def _columns(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[Column]:
    cells = list(zip(*rows, strict=True))
    return [Column(header, cells[index], left=index == 0) for index, header in enumerate(headers)]


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return _DASH if value is None else text(value)


def _per_second(throughput: float) -> str:
    return f"{throughput:,.0f} /s"
