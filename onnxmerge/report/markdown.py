"""A result as Markdown, for the summary of a job or the description of a pull request; the picture of the groups is text."""

import re
from collections.abc import Iterable, Sequence

from onnxmerge.report import columns, sentences
from onnxmerge.report.documents import Provenance, Result
from onnxmerge.report.group_chart import text_picture
from onnxmerge.report.reasons import reasons
from onnxmerge.report.sweep_chart import text_curve
from onnxmerge.report.tables import Column, without_common
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import as_command_line, listed, printable, relative_error, shortened
from onnxmerge.results import Benchmark, Compression, Fidelity, GroupResult, Inspection, Verification
from onnxmerge.results.execution import chosen_sizes

MAX_NAMES = 6  # of one reason
_NAME_WIDTH = 80
_SYMBOLS = {"good": "✅ ", "warn": "⚠️ ", "bad": "❌ ", "": ""}


def markdown(result: Result, provenance: Provenance) -> str:
    """A result as a Markdown document: the verdict, tables, and how to reproduce it.

    Parameters
    ----------
    result : Inspection, Compression, Verification, Benchmark or Sweep
    provenance : Provenance
        Shown at the end; what it leaves empty is left out.
    """
    found = verdict_of(result)
    parts = [f"{_SYMBOLS[found.tone]}**{_text(as_command_line(found.text))}**", *_body(result), _facts(result, provenance)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _body(result: Result) -> Iterable[str]:
    if isinstance(result, Compression):
        yield _warnings(result.warnings)
        yield _picture(text_picture(result.groups))
        yield _table(columns.size_columns(result))
        yield "\n".join(f"- {_text(line)}" for line in result.simplifications)
        yield _fidelity(result.fidelity)
        yield _groups(result.groups, compressed=True)
    elif isinstance(result, Inspection):
        yield _warnings(chosen_sizes(result.inputs))
        yield _text(sentences.size_line(result.size))
        yield _picture(text_picture(result.groups))
        yield _groups(columns.ranked(result.groups), compressed=False)
    elif isinstance(result, Verification):
        yield _warnings(result.warnings)
        yield _fidelity(result.fidelity)
    elif isinstance(result, Benchmark):
        first = result.batches[0]
        single = len(result.batches) == 1
        yield _table(columns.latency_columns(first) if single else columns.batch_columns(result.batches))
        yield _text("; ".join(sentences.timing_lines(first)))
    else:
        yield _warnings(sentences.sweep_warnings(result))
        yield _picture(text_curve(result))
        table, common = without_common(columns.sweep_columns(result))
        yield _table(table)
        yield _text("; ".join([*([f"all: {common}"] if common else []), *sentences.sweep_lines(result)]))
    if isinstance(result, Compression | Inspection):
        yield _untouched(result)


def _groups(groups: Sequence[GroupResult], *, compressed: bool) -> str:
    if not groups:
        return ""
    rows, common = without_common(columns.group_columns(groups, compressed=compressed))
    title = f"{sentences.groups_title(groups, compressed=compressed)}{', all: ' * bool(common)}{common}"
    saved = sentences.SAVED if compressed else sentences.SAVABLE
    return _details(title, f"{_table(rows)}\n\n{_text(saved)}")


def _picture(lines: Sequence[str]) -> str:
    return "\n".join(["```text", *lines, "```"]) if lines else ""


def _untouched(result: Compression | Inspection) -> str:
    shared = reasons(result.refusals)
    if not shared:
        return ""
    lines = [
        f"- {len(reason.layers)}: {_text(reason.heading(_NAME_WIDTH))}: {_text(listed(reason.names, MAX_NAMES, _NAME_WIDTH))}"
        for reason in shared
    ]
    return _details(sentences.untouched_title(shared, compressed=isinstance(result, Compression)), "\n".join(lines))


def _fidelity(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return ""
    errors = f"\n\n{_text(_errors(fidelity))}" if fidelity.examples and fidelity.worst.relative_l2_quantiles else ""
    accuracy = "" if fidelity.accuracy is None else f"\n\n{_text(sentences.accuracy_line(fidelity.accuracy))}"
    contents = "".join(f"\n\n{_text(line)}" for line in sentences.content_lines(fidelity))
    return f"Outputs compared:\n\n{_table(columns.output_columns(fidelity.outputs))}{errors}{contents}{accuracy}"


def _errors(fidelity: Fidelity) -> str:
    """How the error of the worst output is distributed over the inputs."""
    names = {example.which: shortened(example.name, _NAME_WIDTH) for example in fidelity.examples}
    *_, high, worst = fidelity.worst.relative_l2_quantiles
    median = f"median {relative_error(fidelity.worst.relative_l2_median)} ({names['median']})"
    return (
        f"relative L2 error of single inputs: {median}, 95th percentile {relative_error(high)}, "
        f"worst {relative_error(worst)} ({names['worst']})"
    )


def _facts(result: Result, provenance: Provenance) -> str:
    lines = [_code(provenance.command)] if provenance.command else []
    lines += [_text(f"options: {provenance.defaults}")] if provenance.defaults else []
    lines += map(_text, sentences.inputs_lines(result.inputs))
    lines += [f"SHA-256 of {_code(path)}: {_code(digest)}" for path, digest in provenance.sha256.items()]
    lines += [_text(", ".join(f"{name} {version}" for name, version in provenance.versions.items()))]
    return _details("How to reproduce this", "\n".join(f"- {line}" for line in lines if line))


def _warnings(lines: Iterable[str]) -> str:
    return "\n".join(f"> **warning:** {_text(as_command_line(line))}" for line in lines)


def _details(title: str, text: str) -> str:
    return f"<details><summary>{_text(title)}</summary>\n\n{text}\n\n</details>"


def _table(shown: Sequence[Column]) -> str:
    """Columns as a table; names are code, so that they can be copied."""
    heads = " | ".join(_text(column.header) or " " for column in shown)
    lines = "|".join(":--" if column.name or column.left else "--:" for column in shown)
    rows = zip(*([_cell(column, cell) for cell in column.cells] for column in shown), strict=True)
    return "\n".join([f"| {heads} |", f"|{lines}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(column: Column, text: str) -> str:
    return _code(text) if column.name else _text(text)


def _code(text: str) -> str:
    return f"`{shortened(text, 4 * _NAME_WIDTH).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _text(text: str) -> str:
    """Text in which nothing is markup, whatever the names in it are."""
    return re.sub(r"([\\`*_<>|\[\]~#&])", r"\\\1", printable(text))
