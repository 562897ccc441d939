"""A result as one page that needs no network and no script: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePath

from onnxmerge.report import sections
from onnxmerge.report.curve import curves
from onnxmerge.report.documents import Provenance, Result
from onnxmerge.report.elements import Markup, element, joined, named
from onnxmerge.report.sweeps import share_left, sweep_title, sweep_warnings
from onnxmerge.report.wording import (
    LEFT,
    MUST_STAY,
    closeness,
    file_size,
    milliseconds,
    percent,
    shortened,
    small,
    speed_interval,
    verdict_of,
)
from onnxmerge.results import (
    Benchmark,
    Compression,
    Fidelity,
    Inspection,
    LatencyComparison,
    Size,
    Sweep,
    SweepPoint,
    Verification,
)

STYLESHEET = files("onnxmerge.report").joinpath("page.css").read_text(encoding="utf-8")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a page from strangers' names fetches and runs nothing

MANY_TILES = 6

Tile = tuple[str, str, str]  # what, how much, beside it


@dataclass(frozen=True)
class Story:
    """What a page tells: its title, the verdict, the files it speaks of, the figures that matter most, and the sections."""

    title: str
    headline: str
    paths: tuple[str, ...]
    tiles: Sequence[Tile]
    parts: Sequence[Markup | None]


def page(result: Result, run: Provenance) -> str:
    """The whole document."""
    story = _story(result, run)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", story.title),
        element("style", Markup(STYLESHEET)),
    )
    top = element(
        "header",
        element("p", story.title, class_="kicker"),
        element("h1", story.headline),
        element("p", *_arrowed(story.paths), class_="paths"),
        _tiles(story.tiles),
    )
    body = element("body", element("main", top, *story.parts))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _story(result: Result, run: Provenance) -> Story:
    if isinstance(result, Compression):
        return _compression(result, run)
    if isinstance(result, Inspection):
        return _inspection(result, run)
    if isinstance(result, Sweep):
        return _sweep(result, run)
    if isinstance(result, Benchmark):
        return _batches(result, run)
    return _verification(result, run)


def _compression(result: Compression, run: Provenance) -> Story:
    before, after = result.before, result.after
    left = after.parameters / max(1, before.parameters)
    said = [f"{percent(left)} of the parameters left"]
    tiles = _size_tiles(before, after)
    if result.latency is not None:
        said.append(_speed(result.latency))
        tiles.append(_speed_tile(result.latency))
    if result.fidelity is not None:
        said.append(f"fidelity {closeness(result.fidelity.worst.fidelity)}")
        tiles.append(_fidelity_tile(result.fidelity))
    parts = [
        _warnings(result.warnings),
        sections.sizes(result),
        sections.groups(result.groups, compressed=True),
        None if result.fidelity is None else sections.fidelity(result.fidelity),
        None if result.latency is None else sections.latency(result.latency, alone=False),
        sections.refusals(LEFT, result.refusals),
        sections.origin(
            replace(run, versions=result.versions),
            {"seed": str(result.seed), "took": f"{result.seconds:.1f} s", **_measured(result.fidelity, result.latency)},
        ),
    ]
    title = f"{_file_name(result.model)}, made smaller"
    return Story(title, ", ".join(said), (result.model, result.output), tiles, parts)


def _inspection(result: Inspection, run: Provenance) -> Story:
    size = result.size
    removable = sum(group.removable for group in result.groups)
    headline = f"{removable:,} channels in {len(result.groups)} groups may go" if result.groups else "No channel group can shrink"
    tiles = [
        ("parameters", f"{size.parameters:,}", ""),
        ("MACs", f"{size.macs:,}", "for one input"),
        ("file", file_size(size.file_bytes), ""),
    ]
    parts = [
        sections.groups(result.groups, compressed=False, inputs=result.input_description),
        sections.refusals(MUST_STAY, result.refusals),
        sections.origin(run, {}),
    ]
    return Story(f"{_file_name(result.model)}, what could shrink", headline, (result.model,), tiles, parts)


def _sweep(result: Sweep, run: Provenance) -> Story:
    made = [point for point in result.points if point.fidelity is not None]
    closest = sorted(point.fidelity for point in made if point.fidelity is not None)
    kept = f", fidelity {closeness(closest[0])} to {closeness(closest[-1])}" if closest else ""
    parts = [
        _warnings(sweep_warnings(result)),
        curves(result),
        sections.origin(replace(run, versions=result.versions), {"seed": str(result.seed), "inputs": result.input_description}),
    ]
    tiles = [_point_tile(result, point) for point in made[:MANY_TILES]]
    return Story(
        f"{_file_name(result.model)}, size against fidelity", f"{sweep_title(result)}{kept}", (result.model,), tiles, parts
    )


def _point_tile(result: Sweep, point: SweepPoint) -> Tile:
    return (point.target, closeness(point.fidelity or 0.0), f"{share_left(point, result.before, 'parameters')} of the parameters")


def _verification(result: Verification, run: Provenance) -> Story:
    fidelity = result.fidelity
    headline = f"{'Passed' if result.passed else 'Failed'}: fidelity {closeness(fidelity.worst.fidelity)}"
    parts = [
        _warnings(result.failures, "failed"),
        sections.fidelity(fidelity),
        None if fidelity.layer_comparison is None else sections.layers(fidelity.layer_comparison),
        sections.origin(run, _measured(fidelity, None)),
    ]
    return Story("Outputs of two models", headline, (result.reference, result.candidate), _fidelity_tiles(fidelity), parts)


def _batches(result: Benchmark, run: Provenance) -> Story:
    models = tuple(filter(None, (result.reference, result.candidate)))
    if len(result.batches) == 1:
        (only,) = result.batches
        parts = [sections.latency(only, alone=True), sections.origin(run, _measured(None, only))]
        return Story("Latency of two models", _speed(only), models, _latency_tiles(only), parts)
    tiles = [(f"batch {each.batch_size}", f"{each.speedup:.2f}x", verdict_of(each)) for each in result.batches]
    speeds = sorted(each.speedup for each in result.batches)
    headline = f"{speeds[0]:.2f}x to {speeds[-1]:.2f}x as fast, by batch size"
    parts = [sections.batches(result), sections.origin(run, _measured(None, result.batches[0]))]
    return Story("Latency of two models", headline, models, tiles, parts)


def _size_tiles(before: Size, after: Size) -> list[Tile]:
    rows = [
        ("parameters", before.parameters, after.parameters, f"{before.parameters:,} → {after.parameters:,}"),
        ("MACs", before.macs, after.macs, f"{before.macs:,} → {after.macs:,}"),
        ("file", before.file_bytes, after.file_bytes, f"{file_size(before.file_bytes)} → {file_size(after.file_bytes)}"),
    ]
    return [(what, f"{percent(new / max(1, old))} left", beside) for what, old, new, beside in rows]


def _speed(latency: LatencyComparison) -> str:
    low, high = speed_interval(latency)
    return f"{latency.speedup:.2f}x as fast [{low:.2f}, {high:.2f}]"


def _speed_tile(latency: LatencyComparison) -> Tile:
    return ("speed", f"{latency.speedup:.2f}x", verdict_of(latency))


def _fidelity_tile(result: Fidelity) -> Tile:
    worst = result.worst
    beside = f"the worst of {len(result.outputs)} outputs" if len(result.outputs) > 1 else f"on {result.input_count:,} inputs"
    return ("fidelity", closeness(worst.fidelity), beside)


def _fidelity_tiles(result: Fidelity) -> list[Tile]:
    worst = result.worst
    tiles = [
        _fidelity_tile(result),
        ("cosine", closeness(worst.cosine_mean), f"worst {closeness(worst.cosine_worst)}"),
        ("relative L2", small(worst.relative_l2_mean), f"worst {small(worst.relative_l2_worst)}"),
    ]
    agreement = worst.top1_agreement
    return tiles if agreement is None else [*tiles, ("same best class", percent(agreement), "share of the inputs")]


def _latency_tiles(latency: LatencyComparison) -> list[Tile]:
    sides = (("reference", latency.reference), ("candidate", latency.candidate))
    medians = [(f"{name}, median", milliseconds(side.median_ms), f"p95 {milliseconds(side.p95_ms)}") for name, side in sides]
    return [_speed_tile(latency), *medians]


def _measured(fidelity: Fidelity | None, latency: LatencyComparison | None) -> dict[str, str]:
    found = {"inputs": "" if fidelity is None else fidelity.input_description}
    providers = [measured.provider for measured in (fidelity, latency) if measured is not None]
    found["execution provider"] = ", ".join(dict.fromkeys(providers))
    found["threads"] = "" if latency is None else f"{latency.threads}"
    return found


def _tiles(tiles: Sequence[Tile]) -> Markup:
    cells = [
        element("div", element("dt", what), element("dd", much, element("small", beside) if beside else None))
        for what, much, beside in tiles
    ]
    return element("dl", *cells, class_="tiles")


def _warnings(found: Sequence[str], word: str = "warning") -> Markup | None:
    if not found:
        return None
    lines = [element("li", element("strong", f"{word}: "), line) for line in found]
    return element("ul", *lines, class_=f"told {'bad' if word == 'failed' else 'warn'}")


def _file_name(path: str) -> str:
    return shortened(PurePath(path).name, 80)


def _arrowed(paths: Sequence[str]) -> list[Markup]:
    return [joined(" → " if index else None, named(path)) for index, path in enumerate(paths)]
