"""Where a candidate drifts from its reference, for people."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from onnxmerge.drift import LayerDrift, NodeDrift
from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.wording import percent, printable, shortened

MOST_ROWS = 12
_NAME = 60


def show_layers(console: Console, layers: LayerDrift) -> None:
    """The nodes that add most error, in the order they run, and the first of them last."""
    console.print()
    console.print(Text(f"Layer by layer, on {layers.inputs} runs", style="bold"))
    if layers.nodes:
        console.print(fitted(_columns(_steepest(layers.nodes)), console.width))
        left_out = len(layers.nodes) - len(_steepest(layers.nodes))
        if left_out > 0:
            console.print(Text(f"the nodes that add most error; {left_out} more drift (--json lists all)", style="dim"))
    apart = f"; {layers.not_comparable} others lost channels" if layers.not_comparable else ""
    console.print(Text(f"compared: {layers.compared} tensors of equal name and shape{apart}; relative L2 error", style="dim"))
    for mistake in layers.mistakes:
        console.print(Text(printable(mistake), style="red"))
    console.print(_verdict(layers))


def _steepest(nodes: tuple[NodeDrift, ...]) -> list[NodeDrift]:
    """Those that add error, the first always among them."""
    adding = [index for index, node in enumerate(nodes) if not index or node.jump > 0.0]
    steep = sorted(adding, key=lambda index: (index != 0, -nodes[index].jump))[:MOST_ROWS]
    return [nodes[index] for index in sorted(steep)]


def _columns(nodes: list[NodeDrift]) -> list[Column]:
    return [
        Column("node", [node.node for node in nodes], name=True),
        Column("operator", [node.operator for node in nodes], left=True, extra=True),
        Column("error before it", [_error(node.error_in) for node in nodes]),
        Column("behind it", [_error(node.error_out) for node in nodes]),
    ]


def _error(value: float) -> str:
    return "not finite" if math.isinf(value) else "0" if value == 0.0 else percent(value) if value >= 1e-3 else f"{value:.1e}"


def _verdict(layers: LayerDrift) -> Text:
    if layers.first is None:
        return Text("no drift beyond rounding", style="green")
    note = f": {printable(layers.first.note)}" if layers.first.note else ""
    return Text(f"first drift: {shortened(layers.first.node, _NAME)}{note}", style="red" if layers.same_layers else "yellow")
