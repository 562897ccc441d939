"""Where a candidate drifts from its reference, for people."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.wording import percent, printable, shortened
from onnxmerge.results import LayerComparison, NodeDeviation

MOST_ROWS = 12
_NAME = 60


def show_layers(console: Console, layers: LayerComparison) -> None:
    """The nodes that add most error, in the order they run, and the first of them last."""
    console.print()
    console.print(Text(layers_title(layers), style="bold"))
    if layers.deviations:
        console.print(fitted(drift_columns(layers), console.width))
    for line in drift_lines(layers):
        console.print(Text(line, style="dim"))
    for mistake in layers.unexplained:
        console.print(Text(printable(mistake), style="red"))
    style = "green" if layers.first_deviation is None else "red" if layers.same_channel_counts else "yellow"
    console.print(Text(first_drift(layers), style=style))


def layers_title(layers: LayerComparison) -> str:
    """What was compared."""
    return f"Layer by layer, on {layers.input_count} runs"


def drift_lines(layers: LayerComparison) -> list[str]:
    """What the table leaves out, and what could be compared."""
    left_out = len(layers.deviations) - len(_steepest(layers.deviations))
    more = [f"the nodes that add most error; {left_out} more drift (--json lists all)"] if left_out > 0 else []
    apart = f"; {layers.skipped_tensors} others lost channels" if layers.skipped_tensors else ""
    return [*more, f"compared: {layers.compared_tensors} tensors of equal name and shape{apart}; relative L2 error"]


def first_drift(layers: LayerComparison) -> str:
    """The node where it starts."""
    if layers.first_deviation is None:
        return "no drift beyond rounding"
    note = f": {printable(layers.first_deviation.note)}" if layers.first_deviation.note else ""
    return f"first drift: {shortened(layers.first_deviation.node, _NAME)}{note}"


def _steepest(nodes: tuple[NodeDeviation, ...]) -> list[NodeDeviation]:
    """Those that add error, the first always among them."""
    adding = [index for index, node in enumerate(nodes) if not index or node.added_error > 0.0]
    steep = sorted(adding, key=lambda index: (index != 0, -nodes[index].added_error))[:MOST_ROWS]
    return [nodes[index] for index in sorted(steep)]


def drift_columns(layers: LayerComparison) -> list[Column]:
    """The nodes that add most error, in the order they run, the first of all among them."""
    nodes = _steepest(layers.deviations)
    return [
        Column("node", [node.node for node in nodes], name=True),
        Column("operator", [node.operator for node in nodes], left=True, extra=True),
        Column("error before it", [_error(node.relative_l2_before) for node in nodes]),
        Column("behind it", [_error(node.relative_l2_after) for node in nodes]),
    ]


def _error(value: float) -> str:
    return "not finite" if math.isinf(value) else "0" if value == 0.0 else percent(value) if value >= 1e-3 else f"{value:.1e}"
