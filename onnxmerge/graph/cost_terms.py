"""How parameters and MACs follow the numbers of channels that groups keep: sums of bilinear terms, one for each layer.

A layer with weight (out, in) whose outputs are channels of one group and whose inputs are channels of another costs a constant
times the kept channels of both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from onnxmerge.algorithms.bilinear_cost import Cost, WeightedCost
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, inner_groups
from onnxmerge.graph.channel_ids import Ids
from onnxmerge.graph.cost import PAST_KEYS, node_macs, nodes_in_bodies, parameter_count, total_macs, total_parameters
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.layouts import is_blocked, layouts
from onnxmerge.graph.node_time import REMAINDERS, change_time, join_time, node_time, runs_once
from onnxmerge.graph.nodes import has_input, node_key, operator_key
from onnxmerge.graph.tensor_facts import Shapes
from onnxmerge.onnxio import surgeon as gs

LARGEST_GROUP = 1 << 20
"""More channels than any group has."""

CostClasses = tuple[np.ndarray, ...]
"""By group (n,) int from 0: channels of the same number cost the same."""


class CostTerms(NamedTuple):
    """cost(n) = sum over t of weight[t] * (rows[t] . n) * (columns[t] . n).

    n (classes + 1,) holds the kept channels of each cost class, those of the first group first, and a 1 in the last place.

    Attributes
    ----------
    weight : ndarray of shape (terms,), float64
        What each term costs for one position on both sides.
    rows, columns : ndarray of shape (terms, classes + 1), float64
        Positions on the output and the input side of a layer for each kept channel of a class; last: those of no group.
    """

    weight: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def plus(self, other: "CostTerms") -> "CostTerms":
        """The terms of both."""
        return CostTerms(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def cost_classes(channels: Channels, groups: Sequence[ChannelGroup]) -> CostClasses:
    """Which channels of a group cost the same: those that every layer and every per-channel constant holds equally often.

    Channels behind a Slice, a Pad or a Gather stand in other layers than the rest of their group, so that other parameters leave
    with them.
    """
    sizes = [group.size for group in groups]
    channel_ids = np.concatenate([group.channel_ids for group in groups])
    position = np.full(channels.id_count, len(channel_ids))
    position[channel_ids] = np.arange(len(channel_ids))
    classes = np.repeat(np.arange(len(groups)), sizes)
    held_ids = [ids for layer in channels.layers for ids in (layer.out_ids, layer.in_ids)]
    for ids in held_ids + [parameter.ids for parameter in channels.parameters]:
        counts = np.bincount(position[ids.reshape(-1)], minlength=len(channel_ids) + 1)[:-1]
        classes = np.unique(classes * (int(counts.max()) + 1) + counts, return_inverse=True)[1].reshape(-1)
    parts = np.split(classes, np.cumsum(sizes)[:-1])
    return tuple(np.unique(part, return_inverse=True)[1].reshape(-1) for part in parts)


class _TermBuilder:
    """Collects the terms of layers, from what each costs with all channels."""

    def __init__(self, channels: Channels, groups: Sequence[ChannelGroup], classes: CostClasses) -> None:
        sizes = [np.bincount(own) for own in classes]
        self.sizes = np.concatenate([*sizes, [1]]).astype(np.float64)
        self._class_of = np.full(channels.id_count, len(self.sizes) - 1)
        self._constant = np.zeros(len(self.sizes))
        self._constant[-1] = 1.0
        first = 0
        for group, own, size in zip(groups, classes, sizes, strict=True):
            self._class_of[group.channel_ids] = first + own
            first += len(size)
        self.terms: list[tuple[float, np.ndarray, np.ndarray]] = []

    def _positions_per_channel(self, ids: Ids) -> np.ndarray:
        """(classes + 1,) how many of these positions each kept channel of a class takes; last: how many are of no group."""
        return np.bincount(self._class_of[ids.reshape(-1)], minlength=len(self.sizes)) / self.sizes

    def add(self, total: float, out_ids: Ids, in_ids: Ids | None = None) -> None:
        """A layer that costs `total` with all channels, with the ids that it writes and those that it reads."""
        rows = self._positions_per_channel(out_ids)
        columns = self._constant if in_ids is None else self._positions_per_channel(in_ids)
        product = float((rows @ self.sizes) * (columns @ self.sizes))
        if total and product:
            self.terms.append((total / product, rows, columns))

    def add_products(self, total: float, layer: Layer) -> None:
        """What is in proportion to a layer's weight, and for recurrent layers to the weight of the state too."""
        if layer.is_linear:
            self.add(total, layer.out_ids, layer.in_ids)
            return
        inputs = layer.in_ids.size / (layer.in_ids.size + layer.units.size)
        self.add(total * inputs, layer.out_ids, layer.in_ids)
        self.add(total * (1.0 - inputs), layer.out_ids, layer.units)

    def sum(self) -> float:
        """What the terms so far cost with all channels."""
        return sum(weight * float((rows @ self.sizes) * (columns @ self.sizes)) for weight, rows, columns in self.terms)

    def build(self, total: float) -> CostTerms:
        """The terms, with a constant one so that all channels cost `total`."""
        weights, rows, columns = zip(*self.terms, (total - self.sum(), self._constant, self._constant), strict=True)
        return CostTerms(np.array(weights), np.stack(rows), np.stack(columns))


def parameter_terms(channels: Channels, groups: Sequence[ChannelGroup], classes: CostClasses, shapes: Shapes) -> CostTerms:
    """Parameters; a tensor that several nodes read counts once."""
    builder = _TermBuilder(channels, groups, classes)
    counted: set[int] = set()

    def is_new(tensor: gs.Tensor) -> bool:
        while tensor.inputs and tensor.inputs[0].op == "Transpose":
            tensor = tensor.inputs[0].inputs[0]
        identity = id(gs.stored_values(tensor)) if isinstance(tensor, gs.Constant) else id(tensor)
        was_counted = identity in counted
        counted.add(identity)
        return not was_counted

    for layer in channels.layers:
        if is_new(layer.node.inputs[layer.weight_input]):
            builder.add(layer.stored_weight.size, layer.out_ids, layer.in_ids)
    for axes in channels.parameters_by_input():
        tensor = axes[0].node.inputs[axes[0].input_index]
        value = channels.constant(tensor)
        if value is not None and (count := parameter_count(value)) and is_new(tensor):
            builder.add(count, *(each.ids for each in axes[:2]))
    return builder.build(total_parameters(channels.model))


def mac_terms(channels: Channels, groups: Sequence[ChannelGroup], classes: CostClasses, shapes: Shapes) -> CostTerms:
    """Multiply-accumulates for the shapes given."""
    builder = _TermBuilder(channels, groups, classes)
    layers = {id(layer.node): layer for layer in channels.layers}
    for node in channels.model.graph.nodes:
        layer, macs = layers.get(id(node)), node_macs(node, shapes)
        if layer is not None:
            builder.add_products(macs, layer)
        elif macs:  # channels pass depthwise convolutions, and matrices that mix positions
            builder.add(macs, _passing_or_summed(channels, node))
    return builder.build(total_macs(channels.model, shapes))


def _passing_or_summed(channels: Channels, node: gs.Node) -> Ids:
    """Ids of the channels that pass a node without a weight; of a product of two computed tensors those that it sums over, and of
    a whole attention both."""
    if operator_key(node) in PAST_KEYS:
        tensors = (node.inputs[0], node.outputs[0])
        whole = [np.broadcast_to(channels.ids(each), channels.shape(each) or ())[:1, ..., :1, :] for each in tensors]
        return np.concatenate([each.reshape(-1) for each in whole])
    passing = channels.ids(node.outputs[0])
    return channels.ids(node.inputs[0]) if node.op in ("MatMul", "Einsum") and not passing.any() else passing


def time_cost(
    channels: Channels,
    groups: Sequence[ChannelGroup],
    classes: CostClasses,
    shapes: Shapes,
    kept: tuple[np.ndarray, ...],
    block: int,
    repeats: float = 1.0,
) -> WeightedCost:
    """Predicted nanoseconds on the CPU, for numbers of channels that are filled up to whole blocks.

    Parameters
    ----------
    channels, groups, classes, shapes
        As for the other costs.
    kept : tuple of ndarray of shape (size + 1, classes)
        Channels of each class that stay, by how many of its group do.
    block : int
        Channels that convolutions compute at once.
    repeats : float
        The batch that is timed, as a multiple of the one that the shapes are of; the constant part of a node does not grow.
    """
    builder, in_blocks = (_TermBuilder(channels, groups, classes) for _ in range(2))
    nodes, layers = channels.model.graph.nodes, {id(layer.node): layer for layer in channels.layers}
    laid_out, total, folded = layouts(nodes, shapes, block), 0.0, runs_once(nodes)
    constant: dict[str, float] = {}
    for node in (node for node in nodes if id(node) not in folded):
        layer, time = layers.get(id(node)), node_time(node, shapes, laid_out, block, repeats)
        total += time.total
        passing = np.zeros(1, np.int64) if layer is not None or not time.total else channels.ids(node.outputs[0])
        if layer is not None:
            (in_blocks if is_blocked(node, shapes, block) else builder).add_products(time.product, layer)
            builder.add(time.written, layer.out_ids)
        elif time.total:
            builder.add(time.product, _passing_or_summed(channels, node))
            builder.add(time.written, passing)
        constant[node_key(node)] = time.constant if layer is not None or passing.any() else time.total
    total += sum(node_time(node, shapes, laid_out, block, repeats).total for node in nodes_in_bodies(channels.model, shapes))
    for tensor in laid_out.changes:
        total += change_time(tensor, shapes, repeats)
        builder.add(change_time(tensor, shapes, repeats), channels.ids(tensor))
    sizes = [group.size for group in groups]
    saved = [_saved_without(group, constant, shapes, repeats) for group in groups]
    convolved = in_blocks.sum()
    costs = (
        filled_cost(builder.build(total - convolved - sum(saved)), kept, sizes, block),
        filled_cost(in_blocks.build(convolved), kept, sizes, block, REMAINDERS),
        _presence_cost(saved, classes, kept),
    )
    return WeightedCost(tuple((1.0, replace(cost, inner=inner_groups(groups))) for cost in costs))


def _saved_without(group: ChannelGroup, constant: Mapping[str, float], shapes: Shapes, repeats: float) -> float:
    """Nanoseconds that go with the last channel of a group, beside what is in proportion to its channels."""
    if group.branch is None:
        return 0.0
    gone = {*group.branch.nodes, *(consumer.key for consumer in group.consumers)}
    joins = sum(join_time(shapes[name], repeats) for name in group.branch.joins)
    return max(0.0, sum(constant.get(name, 0.0) for name in gone) - joins)


def _presence_cost(saved: Sequence[float], classes: CostClasses, kept: tuple[np.ndarray, ...]) -> Cost:
    """What groups cost that keep any channel at all: their sizes are filled up to one very large block."""
    widths = [int(own.max()) + 1 for own in classes]
    rows = np.zeros((len(widths), sum(widths) + 1))
    for number, (width, first) in enumerate(zip(widths, np.cumsum([0, *widths]).tolist(), strict=False)):
        rows[number, first : first + width] = 1.0
    columns = np.zeros_like(rows)
    columns[:, -1] = 1.0
    return Cost(np.array(saved) / LARGEST_GROUP**2, rows, columns, kept, LARGEST_GROUP)


def join_cost(
    channels: Channels, groups: Sequence[ChannelGroup], classes: CostClasses, quantity: str, kept: tuple[np.ndarray, ...]
) -> Cost:
    """Parameters or multiply-accumulates of the joins that stay in the place of branches (`GraphEditor.fold_join`)."""
    added = []
    for group in groups:
        shapes = [channels.facts.shapes.get(name, ()) for name in sorted(group.branch.joins)] if group.branch else []
        maps = [shape for shape in shapes if len(shape) == len(("batch", "channels", "height", "width"))]
        added.append(float(sum(math.prod(shape) if quantity == "macs" else 2 * shape[1] for shape in maps)))
    cost = _presence_cost([-each for each in added], classes, kept)
    constant = np.zeros(cost.rows.shape[1])
    constant[-1] = 1.0
    return replace(
        cost,
        weight=np.append(cost.weight, sum(added) / LARGEST_GROUP**2),
        rows=np.vstack([cost.rows, constant]),
        columns=np.vstack([cost.columns, constant]),
    )


def filled_cost(
    terms: CostTerms, kept: tuple[np.ndarray, ...], sizes: Sequence[int], block: int, remainders: tuple[float, ...] = (0.0,)
) -> Cost:
    """Terms as a cost whose sides are filled up to blocks; with all channels, `sizes`, it is that of the terms as given."""
    plain, blocked = Cost(*terms, kept), Cost(*terms, kept, block, remainders)
    return replace(blocked, weight=terms.weight * plain.positions(sizes) / blocked.positions(sizes))


def bias_terms(channels: Channels, groups: Sequence[ChannelGroup], classes: CostClasses) -> CostTerms:
    """Parameters that consumers gain where reconstruction gives them a bias that they lack."""
    builder = _TermBuilder(channels, groups, classes)
    for layer in channels.layers:
        if layer.in_ids.any() and not _has_bias(channels, layer):
            builder.add(layer.out_ids.size, layer.out_ids)
    return builder.build(builder.sum())


def _has_bias(channels: Channels, layer: Layer) -> bool:
    """Whether there is a constant that a bias can be added to: the node's own, or that of an Add behind it."""
    if layer.takes_bias:
        return has_input(layer.node, 2)
    following = layer.node.outputs[0].outputs
    return len(following) == 1 and following[0].op == "Add" and any(channels.constant(t) is not None for t in following[0].inputs)


COST_TERMS: dict[str, Callable[[Channels, Sequence[ChannelGroup], CostClasses, Shapes], CostTerms]] = {
    "params": parameter_terms,
    "macs": mac_terms,
}
"""What a budget may be counted in."""
