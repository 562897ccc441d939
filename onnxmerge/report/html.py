"""A result as one HTML page without scripts and network: here what it says, in `templates` how it is marked up."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from onnxmerge.report import charts, columns, group_chart, reasons, sentences, sweep_chart, wording
from onnxmerge.report.documents import KINDS, Provenance, Result
from onnxmerge.report.tables import Column, without_common
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import percent, printable, shortened
from onnxmerge.results import Compression, Fidelity, Inspection, LatencyComparison, Sweep, Verification
from onnxmerge.results.execution import chosen_sizes

MEANINGS = {
    "fidelity": "share of the reference's variance that is explained: 1 is identical, 0 as good as a constant",
    "SQNR": "the same in decibels",
    "cosine, mean": "of both models' outputs for one input; 1 is the same direction",
    "relative L2, mean": "length of the difference for one input, divided by the reference's length",
    "largest error": "of a single element of the output",
    "95 % interval": "of the fidelity, for other inputs of the same kind",
    "worst input": "index, from 0, of the input with the largest relative L2: look at it",
    "same best class": "share of the inputs",
    "changed decisions": "expected share, each weighed by how far the reference's best class led; of synthetic inputs a quarter",
    "their 95 % interval": "of the changed decisions, for other inputs of the same kind",
    "nearest kept": "share of inputs whose nearest other input, by cosine, is among the candidate's five nearest",
}
"""What the rows of a table of measures hold."""

MOST_ROWS = 12  # of groups in a table; the others are shown on demand
WIDE = 11  # characters of a cell above which a card gives it the room of two


def page(result: Result, provenance: Provenance) -> str:
    """A result as an HTML document.

    Parameters
    ----------
    result : Inspection, Compression, Verification, Benchmark or Sweep
    provenance : Provenance
        Shown at the end; what it leaves empty is left out.

    Returns
    -------
    str
        A complete document with its style sheet.
    """
    template = _environment().get_template(f"{KINDS[type(result)].name}.html")
    title, paths = _title(result)
    return template.render(result=result, provenance=provenance, title=title, paths=paths, verdict=verdict_of(result))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("onnxmerge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # templates call the functions and constants of these modules by their names
    for module in (charts, columns, group_chart, reasons, sentences, sweep_chart, wording):
        environment.globals |= {name: value for name, value in vars(module).items() if not name.startswith("_")}
    environment.globals |= {
        "MEANINGS": MEANINGS,
        "MOST_ROWS": MOST_ROWS,
        "WIDE": WIDE,
        "chosen_sizes": chosen_sizes,
        "execution_facts": _execution_facts,
        "without_common": without_common,
    }
    environment.filters |= {"shortened": shortened, "percent": percent, "rows": Column.rows, "unbroken": _unbroken}
    environment.filters["interval_below"] = _interval_below
    return environment


def _execution_facts(measured: Sequence[Fidelity | LatencyComparison]) -> list[str]:
    """Why the CPU was taken and the settings of the provider, each said once."""
    return list(dict.fromkeys(line for each in measured for line in sentences.execution_lines(each.execution)))


def _unbroken(text: str) -> Markup:
    """Text in which no line ends inside an option, behind the hyphens of --mean, or inside an interval [1.45, 1.54]."""
    return Markup(re.sub(r"(--[a-z][a-z0-9-]*|\[[\d., -]+\])", r'<span class="unbroken">\1</span>', str(escape(_plain(text)))))


def _interval_below(text: str) -> Markup:
    """A cell such as `0.9812 [0.9743, 0.9868]` with the interval in a second line."""
    value, space, interval = _plain(text).partition(" [")
    return Markup("{}<small>[{}</small>").format(value, interval) if space else Markup("{}").format(value)


def _plain(value: Any) -> Any:
    """What a template writes: text without control characters, numbers with two decimals at most, None as nothing."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value if value.isprintable() else printable(value)
    if isinstance(value, float):
        return f"{round(value, 2):g}"
    return "" if value is None else value


def _title(result: Result) -> tuple[str, tuple[str, ...]]:
    """The kind of page, and the models that it is about."""
    if isinstance(result, Compression):
        return f"{_file_name(result.model)}, compressed", (result.model, result.output)
    if isinstance(result, Inspection | Sweep):
        what = "channel groups" if isinstance(result, Inspection) else "size against fidelity"
        return f"{_file_name(result.model)}, {what}", (result.model,)
    what = "Outputs of two models" if isinstance(result, Verification) else "Latency of two models"
    return what, tuple(path for path in (result.reference, result.candidate) if path)


def _file_name(path: str) -> str:
    return shortened(PurePath(path).name, 80)
