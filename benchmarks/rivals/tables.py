"""What was measured, as text: everything in it comes from the rows of the JSON file."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from results import Row, conditions, table

from rivals.plots import AXES, chart

HEADERS = ("method", "channels chosen by", "images")
COSTS = ("model", "removed", "method", "channels chosen by", "images", "parameters left", "MACs left")
MEASURED = ("CPU seconds", "MiB", "latency", "95 % interval")
ABSENT = "models/paper/{}.onnx is absent"
EQUAL = """Speed at equal accuracy: the time of a call with 16 inputs over the original's, of the fastest result of each method
that is faster than the original and loses at most so many points of accuracy (and what it removed). Times are medians over all
results with as many MACs, whose layers have the same widths. CPU seconds and MiB are those of making that
result, or where there is none, of the first share:"""
COST = "What each row cost, and what became of the size and the time of a call with 16 inputs:"
LOST = (1.0, 2.0, 5.0)  # points of accuracy within which the fastest result of a method is looked for
COMPARED = 500  # calibration images of ours beside rivals that see some


def rendered(found: dict[str, Any]) -> str:
    """The text for RESULTS.md."""
    rows: list[Row] = found["rows"]
    parts = [conditions(rows, "1 thread"), "", *_margins(found)]
    for model, facts in found["references"].items():
        own = [row for row in rows if row["model"] == model]
        if own:
            parts += ["", *_of_model(model, facts, own)]
    done = [row for row in rows if "accuracy" in row]
    costs = [(*_names(row), *_costs(row)) for row in done]
    for model, command in found["absent"].items():
        parts += ["", f"**{model}**: not run: {ABSENT.format(model)}; `{command}` makes it."]
    return "\n".join([*parts, "", EQUAL, "", *_at_equal_accuracy(found), "", COST, "", *table((*COSTS, *MEASURED), 5, costs)])


def headline(found: dict[str, Any]) -> str:
    """The table for README.md: half of the channels of every group gone."""
    return "\n".join(_margins({**found, "absent": {}, "rows": [row for row in found["rows"] if row["share"].startswith("50%")]}))


def plots(found: dict[str, Any]) -> dict[str, str]:
    """By model its SVG file; of each family of methods the best one."""
    drawn = {}
    for model, facts in found["references"].items():
        rows = _timed(found, model)
        best: dict[tuple[str, str], Row] = {}
        for row in rows:
            key = row["family"], row["share"]
            best[key] = max(best.get(key, row), row, key=lambda each: float(each["accuracy"]))
        lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for (family, _), row in best.items():
            for axis in AXES:
                lines.setdefault(family, {}).setdefault(axis, []).append((row[axis], row["accuracy"]))
        if lines:
            drawn[model] = chart(f"{model}, no fine-tuning", facts["accuracy"], lines)
    return drawn


def is_ours(row: Row) -> bool:
    """Whether the program made it."""
    return bool(row["family"].startswith("onnxmerge"))


def _at_equal_accuracy(found: dict[str, Any]) -> list[str]:
    lines = []
    for model, facts in found["references"].items():
        done = _timed(found, model)
        for family in dict.fromkeys(row["family"] for row in done):
            own = [row for row in done if row["family"] == family]
            fastest = [_fastest(own, facts["accuracy"] - lost) for lost in LOST]
            made = next((row for row in fastest if row), own[0])
            cells = [f"{row['time_left']:.2f} ({row['share']})" if row else "-" for row in fastest]
            lines.append((model, family, *cells, f"{made['cpu_seconds']:.1f}", f"{made['memory_mib']:.0f}"))
    headers = ("model", "method", *(f"at most {lost:g} lost" for lost in LOST), "CPU seconds", "MiB")
    return table(headers, 2, lines)


def _fastest(rows: list[Row], accuracy: float) -> Row | None:
    good = [row for row in rows if row["accuracy"] >= accuracy and row["time_left"] < 1.0]
    return min(good, key=lambda row: float(row["time_left"]), default=None)


def _timed(found: dict[str, Any], model: str) -> list[Row]:
    """The results for a model, with the median latency of those of equal widths."""
    done = [row for row in found["rows"] if row["model"] == model and "accuracy" in row]
    same: dict[float, list[float]] = {}
    for row in done:
        same.setdefault(row["macs_left"], []).append(row["latency_ratio"])
    return [{**row, "time_left": median(same[row["macs_left"]])} for row in done]


def _margins(found: dict[str, Any]) -> list[str]:
    """For every case the program and the best rival, with equal widths and equally many images or none."""
    rows: list[Row] = found["rows"]
    cases = dict.fromkeys((row["model"], row["share"]) for row in rows)
    lines = []
    for case in cases:
        own = [row for row in rows if (row["model"], row["share"]) == case and "accuracy" in row]
        cells: list[str] = []
        for images in (0, COMPARED):
            ours = [row for row in own if row["method"] == "reconstruct" and row["calibration"] == images]
            rivals = [row for row in own if not is_ours(row) and row["same_widths"] and bool(row["calibration"]) == bool(images)]
            best = max(rivals, key=lambda row: float(row["accuracy"]), default=None)
            behind = float(best["accuracy"]) - float(ours[0]["accuracy"]) if best and ours else 0.0
            said = f" ({behind:.2f} behind)" if behind > 0.0 else ""
            cells.append(f"{ours[0]['accuracy']:.2f}{said}" if ours else "-")
            cells.append(f"{best['accuracy']:.2f}, {best['method']}" if best else "-")
        lines.append((*case, *cells))
    lines += [(model, "-", f"not run: {ABSENT.format(model)}", "-", "-", "-") for model in found["absent"]]
    headers = (
        "model",
        "removed",
        "reconstruct, no data",
        "best rival, no data",
        f"reconstruct, {COMPARED} images",
        "best rival, images",
    )
    return table(headers, 2, lines)


def _of_model(model: str, facts: dict[str, Any], rows: list[Row]) -> list[str]:
    shares = list(dict.fromkeys(row["share"] for row in rows))
    kinds = dict.fromkeys((row["method"], row["chooser"], row["calibration"]) for row in rows)
    best = {(share, has): _best(rows, share, has) for share in shares for has in (False, True)}
    lines = []
    for kind in kinds:
        own = {row["share"]: row for row in rows if (row["method"], row["chooser"], row["calibration"]) == kind}
        cells = [_cell(own.get(share), best[share, kind[2] > 0]) for share in shares]
        lines.append((kind[0], kind[1], str(kind[2] or "none"), *cells))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "reason" in row:
            reasons.setdefault((row["method"], row["reason"]), []).append(row["share"])
    right = facts["accuracy"] / 100.0
    error = f"standard error {100.0 * (right * (1.0 - right) / facts['images']) ** 0.5:.1f} points"
    parameters, macs = f"{facts['parameters']:,} parameters", f"{facts['macs']:,} MACs"
    return [
        f"**{model}**: {facts['accuracy']:.2f} % of {facts['images']:,} {facts['kind']} ({error}), {parameters}, {macs}.",
        "",
        *table((*HEADERS, *shares), 2, lines),
        *([""] if reasons else []),
        *(f"- {method}, {', '.join(dict.fromkeys(where))}: {reason}." for (method, reason), where in reasons.items()),
        "",
        f"![{model}: accuracy against what is left](results/compare-{model}.svg)",
    ]


def _best(rows: Iterable[Row], share: str, has_images: bool) -> float:
    return max(
        (
            row["accuracy"]
            for row in rows
            if row["share"] == share and "accuracy" in row and (row["calibration"] > 0) == has_images
        ),
        default=0.0,
    )


def _cell(row: Row | None, best: float) -> str:
    if row is None or "accuracy" not in row:
        return "-"
    text = f"{row['accuracy']:.2f}{'' if row['same_widths'] else ' *'}"
    return f"**{text}**" if row["accuracy"] == best else text


def _names(row: Row) -> tuple[str, ...]:
    return row["model"], row["share"], row["method"], row["chooser"], str(row["calibration"] or "none")


def _costs(row: Row) -> tuple[str, ...]:
    left = f"{row['parameters_left']:.1%}", f"{row['macs_left']:.1%}"
    interval = "{:.2f} to {:.2f}".format(*row["latency_interval"])
    return (*left, f"{row['cpu_seconds']:.1f}", f"{row['memory_mib']:.0f}", f"{row['latency_ratio']:.2f}", interval)
