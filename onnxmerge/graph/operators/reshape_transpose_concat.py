"""Rules of operators that lay values out anew: they do to the ids exactly what numpy does to data.

Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Concat, DepthToSpace and SpaceToDepth.
"""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_refusal, non_negative_axis
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit, operand_edit
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


def reshape(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same positions in another shape."""
    if not varying_axes(propagation.ids(node.inputs[0])):
        return [propagation.no_ids(node.outputs[0])]
    ids = collapse(propagation.full_ids(node.inputs[0]).reshape(propagation.known_shape(node.outputs[0])))
    if node.op == "Reshape" and target_shape(propagation.facts, node) is None and not _are_static(propagation.facts, node, ids):
        return node_refusal(node, Reason.SEVERAL_UNKNOWN_DIMENSIONS)
    return [ids]


def _are_static(facts: TensorFacts, node: gs.Node, ids: Ids) -> bool:
    """Whether a target that the graph computes is known, and the extents of all channel axes are the same in both runs."""
    output = node.outputs[0]
    before, after = facts.shape(output), (facts.other_shapes or facts.shapes).get(output.name)
    if before is None or after is None or facts.value(node.inputs[1]) is None:
        return False
    return len(before) == len(after) and all(before[axis] == after[axis] for axis in varying_axes(ids))


def target_shape(facts: TensorFacts, node: gs.Node) -> np.ndarray | None:
    """The target of a Reshape as a constant; None where there is none.

    A target that the graph computes is replaced by the shape seen in the runs, with 0 (copied from the input) or -1 (inferred,
    at most once) in place of dimensions that differ between the runs.
    """
    target = facts.constant(node.inputs[1])
    if target is not None:
        return target
    data, output = node.inputs[0], node.outputs[0]
    others = facts.other_shapes or facts.shapes
    before, after = facts.shape(data), facts.shape(output)
    other_before, other_after = others.get(data.name), others.get(output.name)
    if before is None or after is None or other_before is None or other_after is None or len(after) != len(other_after):
        return None
    target = np.array(after, np.int64)
    dynamic = [axis for axis in range(len(after)) if after[axis] != other_after[axis]]
    for axis in list(dynamic):
        if axis < min(len(before), len(other_before)) and (before[axis], other_before[axis]) == (after[axis], other_after[axis]):
            target[axis] = 0
            dynamic.remove(axis)
    if len(dynamic) > 1 or node.attrs.get("allowzero", 0):
        return None
    target[dynamic] = -1
    return target


def edit_reshape(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Reshape: the channel count in the target shape."""
    if node.op != "Reshape" or (kept.axis_mask(node.outputs[0]) is None and kept.axis_mask(node.inputs[0]) is None):
        return None
    literal = target_shape(kept.facts, node)
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
