"""What was measured, as text: everything in it comes from the rows of the JSON file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from speed import table

from rivals.plots import AXES, chart

Row = dict[str, Any]
HEADERS = ("method", "channels chosen by", "images")
COSTS = ("model", "removed", "method", "channels chosen by", "images", "parameters left", "MACs left")
MEASURED = ("CPU seconds", "MiB", "latency", "95 % interval")
COMPARED = 500  # calibration images of ours beside rivals that see some


def rendered(found: dict[str, Any]) -> str:
    """The text for RESULTS.md."""
    rows: list[Row] = found["rows"]
    parts = [_conditions(rows), "", *_margins(rows)]
    for model, facts in found["references"].items():
        own = [row for row in rows if row["model"] == model]
        if own:
            parts += ["", *_of_model(model, facts, own)]
    done = [row for row in rows if "accuracy" in row]
    costs = [(*_names(row), *_costs(row)) for row in done]
    return "\n".join([*parts, "", "What each row cost, and what became of the size and the time of a call with 16 inputs:", "",
                      *table((*COSTS, *MEASURED), 5, costs)])  # fmt: skip


def headline(found: dict[str, Any]) -> str:
    """The table for README.md: half of the channels of every group gone."""
    rows = [row for row in found["rows"] if row["share"].startswith("50%")]
    return "\n".join(_margins(rows))


def plots(found: dict[str, Any]) -> dict[str, str]:
    """By model its SVG file; of each family of methods the best one."""
    drawn = {}
    for model, facts in found["references"].items():
        rows = [row for row in found["rows"] if row["model"] == model and "accuracy" in row]
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


def _conditions(rows: Iterable[Row]) -> str:
    versions: dict[str, str] = {}
    processors = dict.fromkeys(row["processor"] for row in rows if "processor" in row)
    for row in rows:
        versions |= row.get("versions", {})
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"{' and '.join(processors)}, 1 thread; {listed}."


def _margins(rows: list[Row]) -> list[str]:
    """For every case the program and the best rival, with equal widths and equally many images or none."""
    cases = dict.fromkeys((row["model"], row["share"]) for row in rows)
    lines = []
    for case in cases:
        own = [row for row in rows if (row["model"], row["share"]) == case and "accuracy" in row]
        cells: list[str] = []
        for images in (0, COMPARED):
            ours = [row for row in own if row["method"] == "reconstruct" and row["calibration"] == images]
            rivals = [row for row in own if not is_ours(row) and row["same_widths"] and bool(row["calibration"]) == bool(images)]
            best = max(rivals, key=lambda row: float(row["accuracy"]), default=None)
            cells.append(f"{ours[0]['accuracy']:.2f}" if ours else "-")
            cells.append(f"{best['accuracy']:.2f}, {best['method']}" if best else "-")
        lines.append((*case, *cells))
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
