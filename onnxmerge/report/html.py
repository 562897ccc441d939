"""A result as one HTML page without scripts and network: here what it says, in `templates` how it is marked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxmerge.report import charts, columns, group_diagram, reasons, sentences, wording
from onnxmerge.report.documents import KINDS, Provenance, Result
from onnxmerge.report.tables import without_common
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import closeness, file_size, magnitude, milliseconds, percent, printable, quantity, shortened
from onnxmerge.results import Benchmark, Compression, Fidelity, Inspection, LatencyComparison, Sweep, Verification
from onnxmerge.results.execution import chosen_sizes

MAX_TILES = 6  # of a sweep, which may have many targets
MEANINGS = {
    "fidelity": "share of the reference's variance that is explained: 1 is identical, 0 as good as a constant",
    "SQNR": "the same in decibels",
    "cosine, mean": "of both models' outputs for one input; 1 is the same direction",
    "relative L2, mean": "length of the difference for one input, divided by the reference's length",
    "largest error": "of a single element of the output",
    "95 % interval": "of the fidelity, for other inputs of the same kind",
    "worst input": "index, from 0, of the input with the largest relative L2: look at it",
    "same best class": "share of the inputs",
}
"""What the rows of a table of measures hold."""


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top of a page."""

    name: str
    figure: str
    remark: str = ""


@dataclass(frozen=True)
class Summary:
    """The top of a page: `paths` are the models that it is about."""

    title: str
    paths: Sequence[str]
    tiles: Sequence[Tile]


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
    return template.render(result=result, provenance=provenance, summary=summary_of(result), verdict=verdict_of(result))


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
    for module in (charts, columns, group_diagram, reasons, sentences, wording):
        environment.globals |= {name: value for name, value in vars(module).items() if not name.startswith("_")}
    environment.globals |= {"MEANINGS": MEANINGS, "chosen_sizes": chosen_sizes, "without_common": without_common}
    environment.filters |= {"shortened": shortened, "percent": percent}
    return environment


def _plain(value: Any) -> Any:
    """What a template writes: text without control characters, numbers with two decimals at most, None as nothing."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value if value.isprintable() else printable(value)
    if isinstance(value, float):
        return f"{round(value, 2):g}"
    return "" if value is None else value


def summary_of(result: Result) -> Summary:
    """Title and the most important figures."""
    if isinstance(result, Compression):
        return _compression(result)
    if isinstance(result, Inspection):
        return _inspection(result)
    if isinstance(result, Sweep):
        return _sweep(result)
    return _verification(result) if isinstance(result, Verification) else _benchmark(result)


def _compression(result: Compression) -> Summary:
    rows = columns.size_rows(result.before, result.after)
    tiles = [Tile(name, f"{left} left", f"{before} → {after}") for name, before, after, left in rows]
    if result.latency is not None:
        tiles.append(_speed_tile(result.latency))
    if result.fidelity is not None:
        tiles.append(_fidelity_tile(result.fidelity))
    return Summary(f"{_file_name(result.model)}, compressed", (result.model, result.output), tiles)


def _inspection(result: Inspection) -> Summary:
    tiles = [
        Tile("parameters", quantity(result.size.parameters)),
        Tile("MACs", quantity(result.size.macs)),
        Tile("file", file_size(result.size.file_bytes)),
    ]
    return Summary(f"{_file_name(result.model)}, channel groups", (result.model,), tiles)


def _sweep(result: Sweep) -> Summary:
    tiles = []
    for point in result.points:
        if point.after is not None and point.fidelity is not None:
            left = columns.share_left(result.before.parameters, point.after.parameters)
            tiles.append(Tile(point.target, closeness(point.fidelity), f"{left} of the parameters"))
    return Summary(f"{_file_name(result.model)}, size against fidelity", (result.model,), tiles[:MAX_TILES])


def _verification(result: Verification) -> Summary:
    worst = result.fidelity.worst
    tiles = [
        _fidelity_tile(result.fidelity),
        Tile("cosine", closeness(worst.cosine_mean), f"worst {closeness(worst.cosine_worst)}"),
        Tile("relative L2", magnitude(worst.relative_l2_mean), f"worst {magnitude(worst.relative_l2_worst)}"),
    ]
    if worst.top1_agreement is not None:
        tiles.append(Tile("same best class", percent(worst.top1_agreement), "share of the inputs"))
    return Summary("Outputs of two models", (result.reference, result.candidate), tiles)


def _benchmark(result: Benchmark) -> Summary:
    first, title = result.batches[0], "Latency of two models"
    paths = [path for path in (result.reference, result.candidate) if path]
    if len(result.batches) > 1:
        tiles = [Tile(f"batch {each.batch_size}", f"{each.speedup:.2f}x", each.verdict) for each in result.batches]
        return Summary(title, paths, tiles)
    medians = [
        Tile(f"{name}, median", milliseconds(side.median_ms), f"p95 {milliseconds(side.p95_ms)}")
        for name, side in (("reference", first.reference), ("candidate", first.candidate))
    ]
    return Summary(title, paths, [_speed_tile(first), *medians])


def _speed_tile(latency: LatencyComparison) -> Tile:
    return Tile("speed", f"{latency.speedup:.2f}x", latency.verdict)


def _fidelity_tile(fidelity: Fidelity) -> Tile:
    count = len(fidelity.outputs)
    remark = f"the worst of {count} outputs" if count > 1 else f"on {wording.counted(fidelity.input_count, 'input')}"
    return Tile("fidelity", closeness(fidelity.worst.fidelity), remark)


def _file_name(path: str) -> str:
    return shortened(PurePath(path).name, 80)
