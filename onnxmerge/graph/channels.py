"""Channel groups: which channels of a model live and die together, who writes them and who reads them.

Every output channel of every weighted node gets an id, and one walk over the graph follows the ids (operators.py holds the
rules). What is united, written by one node or bound by a grouped convolution forms a group; a *unit* of a group is one set
of united ids: it is kept or removed as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.flow import Flow, Ids, Partition, Rider, Weighted, collapse, label, varying
from onnxmerge.graph.model import Model
from onnxmerge.graph.operators import operator_of
from onnxmerge.graph.sharing import unite_shared_weights
from onnxmerge.results import Refusal

T = TypeVar("T")

# Operators with weights of their own: each that stays as it is has a reason.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}) | {
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
}


@dataclass(frozen=True)
class Link:
    """A weighted node seen from a group.

    places (n, r): for each unit its positions on the node's flattened output (producer) or input (consumer) channel axis,
    in ascending order, padded with -1 where it has fewer than r (none at all for a unit that the node does not touch).
    """

    weighted: Weighted
    places: np.ndarray

    @property
    def node(self) -> gs.Node:
        """The node itself."""
        return self.weighted.node

    @property
    def name(self) -> str:
        """The node's name, or what stands for it."""
        return label(self.node)

    @property
    def key(self) -> str:
        """The key of the weighted node."""
        return self.weighted.key


@dataclass(frozen=True)
class ChannelGroup:
    """n units that are decided together.

    units (n,) representative ids; removable (n,) bool; cells (n,) int: every cell must keep the same number of units
    (all zero without grouped convolutions); reason: why units are not removable, "" if all are.
    """

    name: str
    units: Ids
    removable: np.ndarray
    cells: np.ndarray
    producers: tuple[Link, ...]
    consumers: tuple[Link, ...]
    riders: tuple[Rider, ...]
    reason: str

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes whose outputs are the group's channels: producers and depthwise convolutions."""
        depthwise = (label(rider.node) for rider in self.riders if rider.depthwise)
        return (*(link.name for link in self.producers), *depthwise)

    @property
    def profiles(self) -> np.ndarray:
        """(n,) int: units with the same number are read by the same consumers in the same way, within the same cell."""
        counts = np.stack([self.cells, *((link.places >= 0).sum(1) for link in self.consumers)], axis=1)
        return np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Channels:
    """The model understood: groups that can shrink, in topological order, and reasons for all that cannot."""

    flow: Flow
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]


Shapes = Mapping[str, tuple[int, ...]]


def analyse(model: Model, shapes: Shapes, other_shapes: Shapes | None, values: Mapping[str, np.ndarray]) -> Channels:
    """Walk the graph once.

    shapes: concrete shapes of all tensors in one run; other_shapes: the same with other dynamic sizes, None where nothing
    is dynamic; values: the small integer tensors of the first run, since graphs compute shapes.
    """
    flow = Flow(model, dict(shapes), None if other_shapes is None else dict(other_shapes), dict(values))
    for node in model.graph.nodes:
        _visit(flow, node)
    for tensor in model.graph.outputs:
        flow.pin(flow.ids(tensor), Refusal(tensor.name, f"it is written to the graph output {tensor.name}"))
    unite_shared_weights(flow)
    _tie(flow)
    return _grouped(flow)


def _visit(flow: Flow, node: gs.Node) -> None:
    """Apply the operator's rule; a reason in place of ids pins all that enters."""
    for body in node.subgraphs():
        for tensor in _captured(body):
            flow.pin(flow.ids(tensor), Refusal(label(node), f"it is read inside the body of {node.op}"))
        inside = [inner for inner in _nodes(body) if inner.op in LAYERS]
        flow.refusals += [Refusal(label(inner), f"it is inside the body of {label(node)}, which stays whole") for inner in inside]
    if all(flow.constant(output) is not None for output in node.outputs if output.name):
        return
    unseen = [t.name for t in (*node.inputs, *node.outputs) if t.name and flow.shape(t) is None]
    outcome = f"the shape of {unseen[0]} could not be observed" if unseen else operator_of(node).rule(flow, node)
    if isinstance(outcome, str):
        refusal = Refusal(label(node), outcome)
        flow.refusals.append(refusal)
        for tensor in node.inputs:
            flow.pin(flow.ids(tensor), refusal)
        return
    for output, ids in zip(node.outputs, outcome, strict=True):
        if output.name and varying(ids):
            flow.tensors[output.name] = ids


def _captured(graph: gs.Graph) -> list[gs.Tensor]:
    """Tensors that a subgraph reads from outside, at any depth."""
    own = {tensor.name for node in graph.nodes for tensor in node.outputs} | {tensor.name for tensor in graph.inputs}
    read = [tensor for node in graph.nodes for tensor in node.inputs] + list(graph.outputs)
    for node in graph.nodes:
        for value in node.attrs.values():
            read += _captured(value) if isinstance(value, gs.Graph) else []
    return [tensor for tensor in read if tensor.name and tensor.name not in own]


def _nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of a body, at any depth."""
    return [*graph.nodes, *(inner for node in graph.nodes for body in node.subgraphs() for inner in _nodes(body))]


def _tie(flow: Flow) -> None:
    """Make every tensor's ids vary along one axis only.

    A channel axis that is split (channel shuffle, pixel shuffle) stays rectangular only if every block loses the same
    positions, so those ids are united across the shorter axes.
    """
    changed = True
    while changed:
        changed = False
        for name, raw in flow.tensors.items():
            ids = collapse(flow.roots(raw))
            axes = varying(ids)
            if len(axes) > 1:
                longest = max(axes, key=lambda axis: (ids.shape[axis], axis))
                flow.tensors[name] = flow.flatten_to(ids, [longest])
                changed = True


def _grouped(flow: Flow) -> Channels:
    """Representatives, pins and links, gathered into groups."""
    roots = flow.roots(np.arange(len(flow.parents)))
    for name, ids in flow.tensors.items():
        flow.tensors[name] = collapse(roots[ids])
    pins: dict[int, Refusal] = {}
    for channel, refusal in flow.pins.items():
        pins.setdefault(int(roots[channel]), refusal)
    weighted = [Weighted(w.node, w.weight, w.layout, roots[w.in_ids], roots[w.out_ids]) for w in flow.weighted]
    riders = [Rider(rider.node, rider.input, roots[rider.ids]) for rider in flow.riders]
    partitions = [Partition(each.node, roots[each.ids]) for each in flow.partitions]
    components = _components(roots, [each.out_ids for each in weighted] + [each.ids for each in partitions])
    members: dict[int, list[int]] = defaultdict(list)
    for channel in np.unique(roots[1:]).tolist():
        members[components[channel]].append(channel)
    parts = _Parts(np.array([components.get(int(root), -1) for root in roots]), weighted, riders, partitions)
    groups, refusals = [], list(flow.refusals)
    for number, units in members.items():
        group = _group(np.array(units), len(roots), parts, number, pins)
        if group.producers and group.removable.any() and group.size > 1:
            groups.append(group)
        refusals += [Refusal(name, group.reason) for name in group.layers if group.reason]
    flow.riders = riders
    flow.weighted = weighted
    refusals += [Refusal(label(w.node), "it has a single output channel") for w in weighted if not w.out_ids.any()]
    order = {id(node): position for position, node in enumerate(flow.model.graph.nodes)}
    groups.sort(key=lambda group: order[id(group.producers[0].node)])
    return Channels(flow, tuple(groups), tuple(dict.fromkeys(refusals)))


class _Parts:
    """What touches each group, by the number of the group."""

    def __init__(self, number: np.ndarray, weighted: list[Weighted], riders: list[Rider], partitions: list[Partition]) -> None:
        self.number = number
        self.producing = self._sorted(weighted, lambda each: each.out_ids)
        self.consuming = self._sorted(weighted, lambda each: each.in_ids)
        self.riding = self._sorted(riders, lambda each: each.ids)
        self.binding = self._sorted(partitions, lambda each: each.ids)

    def _sorted(self, parts: list[T], ids_of: Callable[[T], Ids]) -> dict[int, list[T]]:
        found: dict[int, list[T]] = defaultdict(list)
        for part in parts:
            ids = ids_of(part)
            for number in np.unique(self.number[ids[ids > 0]]).tolist():
                found[number].append(part)
        return found


def unit_places(flow: Flow, group: ChannelGroup, ids: Ids) -> np.ndarray:
    """(n, r) positions of each unit of a group in a flattened id array, padded with -1."""
    index = np.full(len(flow.parents), -1)
    index[group.units] = np.arange(group.size)
    return _places(index, ids)


def _components(roots: Ids, together: list[Ids]) -> dict[int, int]:
    """Representative id -> number of its group: whatever one node writes or one partition binds is one group."""
    parents = {int(channel): int(channel) for channel in np.unique(roots)}

    def find(channel: int) -> int:
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    for ids in together:
        present = np.unique(ids[ids > 0]).tolist()
        for channel in present[1:]:
            parents[find(channel)] = find(present[0])
    return {channel: find(channel) for channel in parents}


def _group(units: Ids, count: int, parts: _Parts, number: int, pins: dict[int, Refusal]) -> ChannelGroup:
    """One group from its units."""
    index = np.full(count, -1)
    index[units] = np.arange(len(units))
    producers = tuple(Link(w, _places(index, w.out_ids)) for w in parts.producing[number])
    consumers = tuple(Link(w, _places(index, w.in_ids)) for w in parts.consuming[number])
    own = tuple(parts.riding[number])
    pinned = [pins[channel] for channel in units.tolist() if channel in pins]
    removable = np.array([channel not in pins for channel in units.tolist()])
    cells = _cells(index, len(units), parts.binding[number])
    if isinstance(cells, str):
        pinned, removable, cells = [Refusal("", cells)], np.zeros(len(units), bool), np.zeros(len(units), np.int64)
    if not pinned and len(units) == 1:
        pinned = [Refusal("", "its channels can only go all at once: something after it reads them as positions")]
    reason = f"{pinned[0].where}: {pinned[0].reason}" if pinned and pinned[0].where else pinned[0].reason if pinned else ""
    name = label(producers[0].node) if producers else ""
    return ChannelGroup(name, units, removable, cells, producers, consumers, own, reason)


def _places(index: np.ndarray, ids: Ids) -> np.ndarray:
    """(n, r) positions of each unit in a flattened id array."""
    flat = index[ids.reshape(-1)]
    flat[ids.reshape(-1) == 0] = -1
    count = int(index.max()) + 1
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    owner = flat[order]
    many = np.bincount(owner, minlength=count)
    places = np.full((count, max(1, many.max())), -1)
    places[owner, np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)] = order
    return places


def _cells(index: np.ndarray, count: int, partitions: list[Partition]) -> np.ndarray | str:
    """Labels such that equal numbers kept in every label keep every block of every partition equal; a reason if none do."""
    labels = np.zeros(count, np.int64)
    for partition in partitions:
        ids = partition.ids
        owner = np.where(ids > 0, index[ids], -1)
        if (owner < 0).all():
            continue
        table = np.zeros((count, len(ids)), np.int64)
        block = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
        np.add.at(table, (owner[owner >= 0], block[owner >= 0]), 1)
        fixed = (owner < 0).sum(1)
        single = (table > 0).sum(1) == 1
        even = (table == table[:, :1]).all(1)
        if (fixed != fixed[0]).any() or not (single | even).all() or (even.any() and not even.all()):
            return f"the groups of {label(partition.node)} would keep different numbers of channels"
        if not even.all():
            labels = labels * len(ids) + table.argmax(1)
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    if len(set(np.bincount(labels).tolist())) > 1:
        bound = ", ".join(dict.fromkeys(label(partition.node) for partition in partitions))
        return f"grouped convolutions ({bound}) bind its channels in unequal numbers"
    return labels
