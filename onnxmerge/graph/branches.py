"""Channel groups of which no channel has to stay: without them their consumers write constants, which are joined with the rest.

The blocks of a residual network are such branches, and so are squeeze-and-excitation gates: x + f(x) becomes x + c, x * g(x)
becomes x * c, and everything that computes f or g is gone. A constant has the rank of what it stands for and extents of 1 (but
for its channels), so it must be joined with a tensor that has the whole shape.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxmerge.graph.channel_groups import Branch, ChannelGroup, Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input, is_standard, node_key
from onnxmerge.graph.symbolic_shapes import STATIC
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.traversal import names_read

JOINS = frozenset({"Add", "Sum", "Sub", "Mul", "Div"})
"""Where a constant may meet computed values."""
_KEEP_RANK = JOINS | {
    *("BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu"),
    *("Softplus", "Softsign", "Mish", "Gelu", "Erf", "Identity", "Cast", "Transpose", "Neg", "Exp", "Sqrt", "Max", "Min"),
}
"""Operators that make a constant of the same rank from one, whatever extents of 1 it has."""


def with_branches(channels: Channels) -> Channels:
    """The same channels, with the branch of each group that has one (`ChannelGroup.branch`)."""
    groups, taken = [], set[str]()
    for group, carriers in zip(channels.groups, _carriers(channels), strict=True):
        branch = _branch_of(channels, group, carriers)
        if branch is None or branch.joins & taken:  # where two constants meet, nothing would have the whole shape
            groups.append(group)
        else:
            taken |= branch.joins
            groups.append(replace(group, branch=branch))
    return replace(channels, groups=tuple(groups))


def _carriers(channels: Channels) -> list[set[str]]:
    """For each group the names of the tensors that hold channels of it."""
    group_of_id = np.full(channels.id_count, -1)
    for number, group in enumerate(channels.groups):
        group_of_id[group.channel_ids] = number
    found = [set[str]() for _ in channels.groups]
    for name, ids in channels.tensor_ids.items():
        for number in np.unique(group_of_id[ids]).tolist():
            if number >= 0:
                found[number].add(name)
    return found


def _branch_of(channels: Channels, group: ChannelGroup, carriers: set[str]) -> Branch | None:
    layers = [consumer.layer for consumer in group.consumers]
    if group.products or not group.removable.all() or not all(_reads_nothing_else(channels, group, each) for each in layers):
        return None
    nodes = channels.model.graph.nodes
    needed = _needed_nodes(channels.model.graph, layers)
    ends = [layer for layer in layers if id(layer.node) in needed]
    others = [node for node in nodes if id(node) in needed and all(node is not layer.node for layer in ends)]
    joins = _joins(channels, ends, others)
    if not joins or any(tensor.name in carriers for node in others for tensor in (*node.inputs, *node.outputs)):
        return None
    belongs = ~channels.kept_mask([(group, np.zeros(0, np.int64))])
    alone = frozenset(node_key(node) for node in nodes if id(node) not in needed)
    inner = [each for each in channels.groups if each is not group and _is_within(each, alone)]
    belongs[np.concatenate([np.zeros(0, np.int64), *(each.channel_ids for each in inner)])] = True
    lost = [layer for layer in channels.layers if layer.key in alone]
    if not all(belongs[layer.out_ids].all() or belongs[layer.in_ids].all() for layer in lost):
        return None  # what such a layer costs would not be known to fall
    return Branch(alone, joins, frozenset(each.name for each in inner))


def _is_within(group: ChannelGroup, nodes: frozenset[str]) -> bool:
    """Whether all that writes and reads a group is among some nodes."""
    return all(link.key in nodes for link in (*group.producers, *group.consumers))


def _reads_nothing_else(channels: Channels, group: ChannelGroup, layer: Layer) -> bool:
    """Whether a consumer writes a constant where no channel of the group stays."""
    has_bias = layer.takes_bias and has_input(layer.node, 2)
    is_plain = layer.is_linear and layer.output_axis < layer.output_rank and len(layer.node.outputs) == 1
    is_known = not has_bias or channels.constant(layer.node.inputs[2]) is not None
    return is_plain and is_known and bool(np.isin(layer.in_ids, group.channel_ids).all())


def _joins(channels: Channels, ends: Sequence[Layer], others: Sequence[gs.Node]) -> frozenset[str]:
    """Outputs of the nodes that join the constants with whole tensors; none where a constant goes anywhere else.

    ends: what writes the constants; others: the nodes that are needed still.
    """
    constants, joins = {layer.key: layer.output_axis for layer in ends}, set[str]()  # -> their axis of channels
    for node in others:
        if constants.keys().isdisjoint(names_read(node)):
            continue
        output, axis = node.outputs[0], next((constants[each.name] for each in node.inputs if each.name in constants), None)
        if not is_standard(node) or node.op not in _KEEP_RANK or len(node.outputs) > 1 or node.attrs.get("training_mode"):
            return frozenset()
        if axis is None or (node.op == "BatchNormalization" and axis != 1):
            return frozenset()
        whole = [each for each in node.inputs if each.name not in constants and channels.constant(each) is None]
        if not whole:
            axes = list(range(len(channels.facts.shape(output) or ())))
            constants[output.name] = list(node.attrs.get("perm", axes[::-1])).index(axis) if node.op == "Transpose" else axis
        elif node.op in JOINS and any(_has_whole_shape(channels, each, node) for each in whole):
            joins.add(output.name)
        else:
            return frozenset()
    is_output = any(tensor.name in constants for tensor in channels.model.graph.outputs)
    return frozenset() if is_output else frozenset(joins)


def _has_whole_shape(channels: Channels, operand: gs.Tensor, node: gs.Node) -> bool:
    """Whether an operand of a node has the shape of its output: in both runs, since with other sizes it may be broadcast.

    The runs give all inputs of the model one batch: where an axis has another name in another operand it may be broadcast too.
    """
    symbols, graph = channels.facts.symbols, channels.model.graph
    fed = {symbol for tensor in graph.inputs for symbol in symbols.extents(tensor)} - {STATIC}
    for other in node.inputs:
        pairs = zip(symbols.extents(operand)[::-1], symbols.extents(other)[::-1], strict=False)
        if any(one != another and {one, another} <= fed for one, another in pairs):
            return False
    runs = (channels.facts.shapes, channels.facts.other_shapes)
    return all(run is None or run.get(operand.name) == run.get(node.outputs[0].name, ()) for run in runs)


def _needed_nodes(graph: gs.Graph, constants: Sequence[Layer]) -> set[int]:
    """`id` of the nodes that the outputs need where some layers are constants; these themselves included."""
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    ends = {id(layer.node) for layer in constants}
    pending, needed = [tensor.name for tensor in graph.outputs], set[int]()
    while pending:
        node = producers.get(pending.pop())
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        pending.extend(() if id(node) in ends else names_read(node))
    return needed
