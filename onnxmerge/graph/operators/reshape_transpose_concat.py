"""Rules of operators that lay values out anew: they do to the ids exactly what numpy does to data.

Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Concat, DepthToSpace and SpaceToDepth.
"""

import numpy as np

from onnxmerge.errors import ModelError, Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import has_input, node_name, node_refusal, non_negative_axis
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit, operand_edit
from onnxmerge.graph.symbolic_shapes import STATIC
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


def reshape(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same positions in another shape.

    Of a target that the graph computes, the extents of channel axes must be static, or inferred.
    """
    if not varying_axes(propagation.ids(node.inputs[0])):
        return [propagation.no_ids(node.outputs[0])]
    ids = collapse(propagation.full_ids(node.inputs[0]).reshape(propagation.known_shape(node.outputs[0])))
    extents = propagation.facts.symbols.extents(node.outputs[0])
    fixed = [axis for axis in varying_axes(ids) if extents[axis] == STATIC]
    if fixed:  # heads that share their axis with a batch of any size lose the same channels
        ids = propagation.unite_except(ids, fixed)
    if node.op == "Reshape" and propagation.constant(node.inputs[1]) is None:
        literal, is_static = literal_target(propagation.facts, node), propagation.facts.is_static(node.inputs[1])
        if not all(is_static[axis] or (literal is not None and literal[axis] == -1) for axis in varying_axes(ids)):
            return node_refusal(node, Reason.COMPUTED_SHAPE)
    return [ids]


def literal_target(facts: TensorFacts, node: gs.Node) -> np.ndarray | None:
    """The target of a Reshape as a constant; None where there is none.

    In a target that the graph computes, 0 stands for entries that copy an extent of the input, and -1 for one other that is not
    static.
    """
    data, target = node.inputs[:2]
    value, symbols = facts.value(target), facts.symbols.entries(target)
    if facts.constant(target) is not None or value is None:
        return value
    extents = np.full(len(symbols), STATIC, object)
    extents[: len(facts.symbols.extents(data))] = facts.symbols.extents(data)[: len(symbols)]
    is_static = symbols == STATIC
    others = ~is_static & (symbols != extents)
    if others.sum() + (value[is_static] == -1).sum() > 1 or (node.attrs.get("allowzero", 0) and not is_static.all()):
        return None
    return np.where(is_static, value, np.where(others, -1, 0))


def edit_reshape(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Reshape: the channel count in the target shape."""
    if node.op != "Reshape" or (kept.axis_mask(node.outputs[0]) is None and kept.axis_mask(node.inputs[0]) is None):
        return None
    literal = literal_target(kept.facts, node)
    target = kept.facts.value(node.inputs[1]) if literal is None else literal
    if target is None:
        return None
    old_shape, new_shape = kept.facts.shape(node.outputs[0]) or (), kept.shape(node.outputs[0])
    new_input = kept.shape(node.inputs[0])
    new_target = target.copy()
    for axis, extent in enumerate(target):
        is_copied = extent == 0 and not node.attrs.get("allowzero", 0)
        if (extent > 0 and old_shape[axis] != new_shape[axis]) or (is_copied and new_input[axis] != new_shape[axis]):
            new_target[axis] = new_shape[axis]
    return operand_edit(kept.facts, node, {1: new_target}) if literal is None else NodeEdit({1: new_target})


def edit_squeeze(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Squeeze without axes: those that it removed are written out where the axis of the channels would now be one of them."""
    data, shape = node.inputs[0], kept.facts.shape(node.inputs[0]) or ()
    removed = kept.axis_mask(data)
    if removed is None or removed[1].sum() > 1 or "axes" in node.attrs or has_input(node, 1):
        return None
    if (kept.facts.symbols.extents(data) != STATIC).any():
        raise ModelError(f"{node_name(node)} without axes would also remove the axis of the only channel left of {data.name}")
    axes = np.array([axis for axis, extent in enumerate(shape) if extent == 1], np.int64)
    return NodeEdit({1: axes}) if kept.facts.model.opset >= 13 else NodeEdit(attributes={"axes": axes.tolist()})


def transpose(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """Transpose; by default all axes are reversed."""
    ids = propagation.ids(node.inputs[0])
    return [ids.transpose(node.attrs.get("perm", list(range(ids.ndim))[::-1]))]


def concat(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """Concat: the ids one after the other."""
    shapes = [propagation.known_shape(tensor) for tensor in node.inputs]
    rank = len(shapes[0])
    axis = non_negative_axis(node.attrs["axis"], rank)
    parts = [propagation.ids(tensor) for tensor in node.inputs]
    widest = [max(part.shape[each] for part in parts) for each in range(rank)]
    parts = [
        np.broadcast_to(part, [shape[each] if each == axis else widest[each] for each in range(rank)])
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return [collapse(np.concatenate(parts, axis))]


def depth_to_space(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """DepthToSpace and SpaceToDepth as the Reshape, Transpose, Reshape that define them."""
    n, c, h, w = propagation.known_shape(node.inputs[0])
    ids = propagation.full_ids(node.inputs[0])
    b = int(node.attrs["blocksize"])
    if node.op == "SpaceToDepth":
        moved = ids.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
        return [collapse(moved.reshape(n, c * b * b, h // b, w // b))]
    if node.attrs.get("mode", "DCR") in ("CRD", b"CRD"):
        moved = ids.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = ids.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return [collapse(moved.reshape(n, c // (b * b), h * b, w * b))]
