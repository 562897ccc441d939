"""How parameters and MACs follow the numbers of channels that groups keep: a table of bilinear terms, one a layer.

Channels of a group that stand at other places than the rest of it, behind a Slice, a Pad or a Gather, are of a kind of their own:
what leaves with them is different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_ids import Flow
from onnxmerge.graph.cost import Shapes, macs_of, total_macs, total_parameters
from onnxmerge.graph.layers import Ids, Layer
from onnxmerge.onnxio import surgeon as gs

Terms = tuple[np.ndarray, np.ndarray, np.ndarray]
Kinds = tuple[np.ndarray, ...]  # by group (n,): the kind of each of its channels, from 0


def kinds_of(channels: Channels, groups: Sequence[ChannelGroup]) -> Kinds:
    """Channels of a group are of one kind where every layer and every per-channel constant holds them equally often."""
    flow = channels.flow
    channel_ids = np.concatenate([group.channel_ids for group in groups])
    position = np.full(len(flow.parents), len(channel_ids))
    position[channel_ids] = np.arange(len(channel_ids))
    kinds = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    for ids in [ids for each in flow.layers for ids in (each.out_ids, each.in_ids)] + [rider.ids for rider in flow.riders]:
        counts = np.bincount(position[ids.reshape(-1)], minlength=len(channel_ids) + 1)[:-1]
        kinds = np.unique(kinds * (int(counts.max()) + 1) + counts, return_inverse=True)[1].reshape(-1)
    parts = np.split(kinds, np.cumsum([group.size for group in groups])[:-1])
    return tuple(np.unique(part, return_inverse=True)[1].reshape(-1) for part in parts)


class _Table:
    """Terms under construction: weight * (units of each kind in the rows) * (in the columns), a constant in the last place."""

    def __init__(self, flow: Flow, groups: Sequence[ChannelGroup], kinds: Kinds) -> None:
        sizes = [np.bincount(own) for own in kinds]
        self.sizes = np.concatenate([*sizes, [1]]).astype(np.float64)
        self.owner = np.full(len(flow.parents), len(self.sizes) - 1)
        first = 0
        for group, own, size in zip(groups, kinds, sizes, strict=True):
            self.owner[group.channel_ids] = first + own
            first += len(size)
        self.terms: list[tuple[float, np.ndarray, np.ndarray]] = []

    def share(self, ids: Ids) -> np.ndarray:
        """(kinds + 1,) positions for each kept unit of a kind, and those of no group."""
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


def parameter_terms(channels: Channels, groups: Sequence[ChannelGroup], kinds: Kinds, shapes: Shapes) -> Terms:
    """Floating-point parameters; a tensor that several nodes read counts once."""
    flow = channels.flow
    table = _Table(flow, groups, kinds)
    seen: set[int] = set()

    def is_new(tensor: gs.Tensor) -> bool:
        key = id(gs.stored_values(tensor)) if isinstance(tensor, gs.Constant) else id(tensor)
        known = key in seen
        seen.add(key)
        return not known

    for layer in flow.layers:
        if is_new(layer.node.inputs[layer.weight_input]):
            table.add(layer.stored_weight.size, layer.out_ids, layer.in_ids)
    for rider in flow.riders:
        value = flow.constant(rider.node.inputs[rider.input])
        if value is not None and np.issubdtype(value.dtype, np.floating) and is_new(rider.node.inputs[rider.input]):
            table.add(value.size, rider.ids)
    return table.finished(total_parameters(flow.model))


def mac_terms(channels: Channels, groups: Sequence[ChannelGroup], kinds: Kinds, shapes: Shapes) -> Terms:
    """Multiply-accumulates for the shapes given."""
    table = _Table(channels.flow, groups, kinds)
    for layer in channels.flow.layers:
        table.add(macs_of(layer.node, shapes), layer.out_ids, layer.in_ids)
    for rider in channels.flow.riders:
        if rider.depthwise:
            table.add(macs_of(rider.node, shapes), rider.ids)
    return table.finished(total_macs(channels.flow.model, shapes))


def bias_terms(channels: Channels, groups: Sequence[ChannelGroup], kinds: Kinds) -> Terms:
    """What the layers that read channels gain where a solve gives them the bias that they lack."""
    table = _Table(channels.flow, groups, kinds)
    for layer in channels.flow.layers:
        if layer.in_ids.any() and not _has_bias(channels.flow, layer):
            table.add(layer.out_ids.size, layer.out_ids)
    return table.finished(sum(weight * float(rows @ table.sizes) for weight, rows, _ in table.terms))


def together(one: Terms, other: Terms) -> Terms:
    """The terms of both."""
    weights, rows, columns = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    return weights, rows, columns


def _has_bias(flow: Flow, layer: Layer) -> bool:
    """Whether there is a constant that a bias can be added to: the node's own, or that of an Add behind a MatMul."""
    node = layer.node
    if node.op != "MatMul":
        return len(node.inputs) > 2 and bool(node.inputs[2].name)
    following = node.outputs[0].outputs
    return len(following) == 1 and following[0].op == "Add" and any(flow.constant(t) is not None for t in following[0].inputs)


COST_TERMS: dict[str, Callable[[Channels, Sequence[ChannelGroup], Kinds, Shapes], Terms]] = {
    "params": parameter_terms,
    "macs": mac_terms,
}
"""What a budget may be counted in."""
