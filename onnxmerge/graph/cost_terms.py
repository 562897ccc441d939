"""How parameters and MACs follow the numbers of channels that groups keep: a table of bilinear terms, one a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.channels import ChannelGroup, Channels
from onnxmerge.graph.cost import Shapes, macs_of, total_macs, total_parameters
from onnxmerge.graph.flow import Flow, Ids
from onnxmerge.graph.model import held
from onnxmerge.graph.weights import weight_of

Terms = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Table:
    """Terms under construction: weight * (units of each group in the rows) * (in the columns), a constant in the last place."""

    def __init__(self, flow: Flow, groups: Sequence[ChannelGroup]) -> None:
        self.sizes = np.array([*(group.size for group in groups), 1], np.float64)
        self.owner = np.full(len(flow.parents), len(groups))
        for number, group in enumerate(groups):
            self.owner[group.units] = number
        self.terms: list[tuple[float, np.ndarray, np.ndarray]] = []

    def share(self, ids: Ids) -> np.ndarray:
        """(groups + 1,) positions for each kept unit of a group, and those of no group."""
        return np.bincount(self.owner[ids.reshape(-1)], minlength=len(self.sizes)) / self.sizes

    def add(self, total: float, rows: Ids, columns: Ids | None = None) -> None:
        """A layer that costs `total` with all channels, over the ids that it writes and those that it reads."""
        one = np.zeros(len(self.sizes))
        one[-1] = 1.0
        parts = self.share(rows), one if columns is None else self.share(columns)
        full = float(np.prod([part @ self.sizes for part in parts]))
        if total and full:
            self.terms.append((total / full, *parts))

    def finished(self, total: float) -> Terms:
        """With what does not depend on any group, so that all channels cost `total`."""
        so_far = sum(weight * (rows @ self.sizes) * (columns @ self.sizes) for weight, rows, columns in self.terms)
        constant = np.zeros(len(self.sizes))
        constant[-1] = 1.0
        weights, rows, columns = zip(*self.terms, (total - so_far, constant, constant), strict=True)
        return np.array(weights), np.stack(rows), np.stack(columns)


def parameter_terms(channels: Channels, groups: Sequence[ChannelGroup], shapes: Shapes) -> Terms:
    """Floating-point parameters; a tensor that several nodes read counts once."""
    flow = channels.flow
    table = _Table(flow, groups)
    seen: set[int] = set()

    def is_new(tensor: gs.Tensor) -> bool:
        key = id(held(tensor)) if isinstance(tensor, gs.Constant) else id(tensor)
        known = key in seen
        seen.add(key)
        return not known

    for weighted in flow.weighted:
        if is_new(weighted.node.inputs[weighted.weight]):
            table.add(weight_of(flow, weighted).size, weighted.out_ids, weighted.in_ids)
    for rider in flow.riders:
        value = flow.constant(rider.node.inputs[rider.input])
        if value is not None and np.issubdtype(value.dtype, np.floating) and is_new(rider.node.inputs[rider.input]):
            table.add(value.size, rider.ids)
    return table.finished(total_parameters(flow.model))


def mac_terms(channels: Channels, groups: Sequence[ChannelGroup], shapes: Shapes) -> Terms:
    """Multiply-accumulates for the shapes given."""
    table = _Table(channels.flow, groups)
    for weighted in channels.flow.weighted:
        table.add(macs_of(weighted.node, shapes), weighted.out_ids, weighted.in_ids)
    for rider in channels.flow.riders:
        if rider.depthwise:
            table.add(macs_of(rider.node, shapes), rider.ids)
    return table.finished(total_macs(channels.flow.model, shapes))


COST_TERMS: dict[str, Callable[[Channels, Sequence[ChannelGroup], Shapes], Terms]] = {
    "params": parameter_terms,
    "macs": mac_terms,
}
"""What a budget may be counted in."""
