"""Parts of the page: each takes a result and gives a section, or None where there is nothing to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxmerge.errors import Refusal
from onnxmerge.report.columns import (
    MANY_OUTPUTS,
    batch_columns,
    group_columns,
    latency_columns,
    levels,
    measures,
    measures_down,
    size_columns,
)
from onnxmerge.report.distribution import distribution_picture
from onnxmerge.report.documents import Provenance
from onnxmerge.report.elements import Markup, element, joined, named
from onnxmerge.report.layers import drift_columns, drift_lines, first_drift, layers_title
from onnxmerge.report.picture import groups_picture, legend
from onnxmerge.report.tables import Column
from onnxmerge.report.wording import (
    COMPARED,
    NOTES,
    SHARES,
    TIMED,
    SharedReason,
    accuracy_line,
    elsewhere_lines,
    execution_lines,
    groups_title,
    macs_line,
    notes,
    reasons,
    sensitivity_line,
    speed_line,
    timing_lines,
    work_line,
)
from onnxmerge.results import (
    Benchmark,
    Compression,
    Execution,
    Fidelity,
    GroupResult,
    LatencyComparison,
    LayerComparison,
    OutputFidelity,
)

ERRORS = (
    "error and pruned: share of the readers' output variance that is expected to be lost if only this group shrinks, "
    "and if its channels were merely dropped"
)
_STRIPS = (
    "Darker where more calls fell: each band holds a twentieth of them. The upright line is the median, "
    "the thin one reaches from the fastest call to the slowest."
)
MANY_NAMES = 100  # of one reason; the JSON report lists them all
_NAME = 80
MEANINGS = {
    "fidelity": "share of the reference's variance that is explained: 1 is identical, 0 as good as a constant",
    "SQNR": "the same in decibels",
    "cosine, mean": "between the two models' outputs for one input; 1 is the same direction",
    "relative L2, mean": "length of the difference for one input, by the reference's length",
    "largest error": "of a single number of the output",
    "worst input": "counted from 0, the one with the largest relative L2: look at it",
    "same best class": "share of the inputs",
}


def section(title: str, *children: Markup | None) -> Markup:
    """A heading and what belongs to it."""
    return element("section", element("h2", title), *children)


def table(caption: str, columns: Sequence[Column], bars: Mapping[str, Sequence[float | None]] | None = None) -> Markup:
    """Columns as a table that scrolls in its own box where the page is narrow; bars: drawn under cells, on one scale."""
    bars = bars or {}
    most = max((share for shares in bars.values() for share in shares if share is not None), default=0.0)
    heads = [element("th", column.header or _hidden(caption), scope="col", class_=_side(column)) for column in columns]
    rows = []
    for index in range(len(columns[0].cells)):
        cells = [_cell(column, index, bars.get(column.header), most) for column in columns[1:]]
        first = columns[0].cells[index]
        meaning = None if columns[0].header else MEANINGS.get(first)
        head = named(first) if columns[0].name else joined(first, element("small", meaning) if meaning else None)
        rows.append(element("tr", element("th", head, scope="row", class_=_side(columns[0])), *cells))
    whole = element(
        "table",
        element("caption", _hidden(caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
    )
    return element("div", whole, class_="scrolls", tabindex="0", role="region", aria_label=caption)


def sizes(result: Compression) -> Markup:
    """What went in and what came out."""
    return section("Before and after", table("Sizes before and after", size_columns(result)))


def groups(found: Sequence[GroupResult], *, compressed: bool, inputs: str = "") -> Markup:
    """The picture of the groups, and the same as a table with errors and notes."""
    title = groups_title(found, compressed=compressed)
    if not found:
        return section("Channel groups", element("p", title))
    columns = group_columns(found, compressed=compressed)
    errors = {
        "error": [group.expected_error.get(group.method) for group in found],
        "pruned": [group.expected_error.get("prune") for group in found],
    }
    lost = {header: [_lost(group, level) for group in found] for header, level in levels(found).items()}
    explained = f"{ERRORS}; {SHARES}" if any(group.expected_error for group in found) else SHARES
    return section(
        title,
        element(
            "figure", groups_picture(found, compressed=compressed), element("figcaption", legend(found, compressed=compressed))
        ),
        table(title, columns, {**errors, **lost}),
        element("p", explained, class_="quiet"),
        element("p", f"{sensitivity_line(inputs)}. The bars: what is lost.", class_="quiet") if inputs else None,
        *_told("h3", NOTES, notes(found)),
    )


def fidelity(result: Fidelity) -> Markup:
    """Every measure of every output, and what it was measured on."""
    outputs = result.outputs
    columns = measures_down(outputs) if len(outputs) <= MANY_OUTPUTS else _all_measures(outputs)
    broken = [named(output.name) for output in outputs if not output.finite]
    title = f"{COMPARED}, on {result.input_count:,} inputs"
    return section(
        title,
        *(element("p", "output ", what, " holds NaN or infinity", class_="bad") for what in broken),
        table(title, columns),
        None if result.accuracy is None else element("p", accuracy_line(result.accuracy)),
        element("p", f"inputs: {result.input_description}; {result.provider}", class_="quiet"),
        *_executed(result.execution, result.provider),
    )


def layers(result: LayerComparison) -> Markup:
    """Where the candidate drifts from the reference."""
    title = layers_title(result)
    return section(
        title,
        element("p", first_drift(result)),
        *(element("p", mistake, class_="bad") for mistake in result.unexplained),
        table(title, drift_columns(result)) if result.deviations else None,
        *(element("p", line, class_="quiet") for line in drift_lines(result)),
    )


def latency(result: LatencyComparison, *, alone: bool) -> Markup:
    """The verdict, the distributions, and where it stands alone the figures."""
    return section(TIMED, *_measured(result, alone=alone))


def batches(result: Benchmark) -> Markup:
    """A table with a row a batch size, then the distributions of each."""
    title = f"{TIMED}: {len(result.batches)} batch sizes"
    parts = [(element("h3", f"batch {each.batch_size}"), *_measured(each, alone=False)) for each in result.batches]
    realised = macs_line(result.batches[0])
    return section(
        title,
        table(title, batch_columns(result.batches)),
        element("p", realised, class_="quiet") if realised else None,
        *(part for found in parts for part in found),
    )


def _measured(result: LatencyComparison, *, alone: bool) -> list[Markup | None]:
    picture, work = distribution_picture(result), work_line(result)
    return [
        element("p", speed_line(result)),
        element("p", work) if work else None,
        None if picture is None else element("figure", picture, element("figcaption", _STRIPS)),
        table(TIMED, latency_columns(result)) if alone else None,
        *(element("p", line, class_="quiet") for line in timing_lines(result)),
        *_executed(result.execution, result.provider),
    ]


def _executed(execution: Execution | None, provider: str) -> list[Markup]:
    lines = [element("p", line, class_="quiet") for line in execution_lines(execution)]
    return [*lines, *(element("p", line, class_="warn") for line in elsewhere_lines(execution, provider))]


def refusals(title: str, found: Sequence[Refusal]) -> Markup | None:
    """Reasons, and under each the layers that it keeps whole."""
    return element("section", *_told("h2", title, reasons(found))) if found else None


def _told(heading: str, title: str, found: Sequence[SharedReason]) -> list[Markup]:
    rows = []
    for reason in found:
        names = reason.layers or reason.obstacles
        more = f" and {len(names) - MANY_NAMES} more" if len(names) > MANY_NAMES else None
        shown = [joined(", " if index else None, named(name, _NAME)) for index, name in enumerate(names[:MANY_NAMES])]
        rows += [element("dt", reason.told(_NAME)), element("dd", *shown, more)]
    return [element(heading, title), element("dl", *rows, class_="reasons")] if rows else []


def origin(run: Provenance, facts: Mapping[str, str]) -> Markup:
    """What gives the result again."""
    versions = ", ".join(f"{package} {version}" for package, version in run.versions.items())
    told = {**facts, "versions": versions, "made at": run.made_at}
    rows = [part for key, value in told.items() if value for part in (element("dt", key), element("dd", value))]
    command = element("pre", element("code", run.command)) if run.command else None
    return section("To make it again", command, element("dl", *rows, class_="facts"))


def _all_measures(outputs: Sequence[OutputFidelity]) -> list[Column]:
    """A row an output, all measures across."""
    rows = measures_down(outputs)[0].cells
    found = [measures(output) for output in outputs]
    names = Column("output", [output.name for output in outputs], name=True)
    return [names, *(Column(key, [measured.get(key, "-") for measured in found]) for key in rows)]


def _cell(column: Column, index: int, shares: Sequence[float | None] | None, most: float) -> Markup:
    share = None if shares is None else shares[index]
    bar = None if share is None or most <= 0 else _bar(max(0.0, share) / most, column.header)
    return element("td", column.cells[index], bar, class_=_side(column))


def _lost(group: GroupResult, level: str) -> float | None:
    return 1.0 - group.sensitivity[level] if level in group.sensitivity else None


def _bar(share: float, what: str) -> Markup:
    line = element("rect", width=f"{share:.1%}", height=3, class_="pruned" if what == "pruned" else "kept")
    return element("svg", line, class_="bar", width="100%", height=3, aria_hidden="true")


def _side(column: Column) -> str | None:
    return "name" if column.name else "words" if column.left else None


def _hidden(content: str) -> Markup:
    return element("span", content, class_="hidden")
