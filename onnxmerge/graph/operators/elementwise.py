"""Propagation rules of elementwise operators: Relu, Sigmoid, Add, Mul, Where, PRelu and the like."""

import numpy as np

from onnxmerge.errors import Reason
from onnxmerge.graph.channel_ids import Ids, collapse, varying_axes, with_rank
from onnxmerge.graph.channel_propagation import ChannelPropagation, channel_axis_of
from onnxmerge.graph.nodes import node_refusal
from onnxmerge.onnxio import surgeon as gs

# Operators that join constants with computed values position by position; a constant may hold channels of its own.
_JOINING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "PRelu", "BatchNormalization", "InstanceNormalization"}
    | {"GroupNormalization", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
    | {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "BiasGelu", "FastGelu"}
)


def unary(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """Elementwise on the first input; the other inputs are scalars, and a second output is a mask."""
    return [propagation.ids(node.inputs[0]) for _ in node.outputs]


def join(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """Elementwise on several inputs, with broadcasting.

    Ids that meet are united, a constant becomes a per-channel parameter, and an input without ids pins what it meets.
    """
    inputs = [tensor for tensor in node.inputs if tensor.name]
    rank = max(len(propagation.known_shape(tensor)) for tensor in inputs)
    joined = np.zeros((1,) * rank, np.int64)
    for tensor in inputs:
        ids = with_rank(propagation.ids(tensor), rank)
        propagation.united.unite(joined, ids)
        joined = collapse(np.where(joined > 0, joined, ids))
    for index, tensor in enumerate(node.inputs):
        if tensor.name and (joined > 0).any():
            note_operand(propagation, node, index, joined)
    return [joined]


def note_operand(propagation: ChannelPropagation, node: gs.Node, index: int, joined: Ids) -> None:
    """Note an input of a join that holds values for channels of the result but has no ids for them."""
    tensor, rank = node.inputs[index], joined.ndim
    shape = propagation.known_shape(tensor)
    extents = (1,) * (rank - len(shape)) + shape
    channel_axes = [axis for axis in varying_axes(joined) if extents[axis] > 1]
    result_ids, input_ids = np.broadcast_arrays(joined, with_rank(propagation.ids(tensor), rank))
    without_ids = (result_ids > 0) & (input_ids == 0)
    if not channel_axes or not without_ids.any():
        return
    if propagation.constant(tensor) is None:
        for axis in channel_axes:
            _find_expanded(propagation, tensor, axis - rank)
        _find_tables(propagation, tensor)
        propagation.pin(result_ids[without_ids], node_refusal(node, Reason.JOINED_WITH_FIXED, tensor=tensor.name))
        return
    ids = propagation.unite_except(joined, channel_axes)
    propagation.note_parameter(node, index, ids.reshape(ids.shape[rank - len(shape) :]))


def _find_expanded(propagation: ChannelPropagation, tensor: gs.Tensor, axis: int) -> None:
    """Note what, before a tensor and in its shape, repeats one position along an axis that is counted from the end."""
    pending, seen = [tensor], set[str]()
    while pending:
        current = pending.pop()
        if current.name in seen or not current.inputs or propagation.shape(current) != propagation.shape(tensor):
            continue
        seen.add(current.name)
        node = current.inputs[0]
        before = propagation.shape(node.inputs[0]) if node.op == "Expand" else ()
        if node.op == "ConstantOfShape" or (node.op == "Expand" and before is not None and ((1,) * -axis + before)[axis] == 1):
            propagation.expanded[current.name] = axis
        pending.extend(node.inputs)


def _find_tables(propagation: ChannelPropagation, tensor: gs.Tensor) -> None:
    """Note constants from which a tensor without ids is computed and that hold its channels: frequencies or tables of a rotation.

    A constant that is joined with as many computed values holds none of its own.
    """
    pending, seen = [tensor], set[str]()
    while pending:
        current = pending.pop()
        if current.name in seen or not current.inputs or varying_axes(propagation.ids(current)):
            continue
        seen.add(current.name)
        node = current.inputs[0]
        computed = [each for each in node.inputs if each.name and propagation.constant(each) is None]
        pending.extend(computed)
        for each in node.inputs:
            value = propagation.constant(each)
            if value is None or value.dtype.kind in "biuOSU" or value.size < 2:
                continue
            behind = channel_axis_of(value) - value.ndim
            shapes = [propagation.shape(other) or () for other in computed if node.op in _JOINING]
            if all(len(shape) < -behind or shape[behind] == 1 for shape in shapes):
                propagation.tables.add(each.name)
