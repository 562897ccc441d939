"""Rules of operators that pick positions of an axis: Slice, Split and Gather."""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import has_input, node_refusal, non_negative_axis
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit, operand_edit
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs

# The bound that means "to the end" when a Slice steps backwards: exporters write the smallest int32 or int64, or one next to it.
_BEFORE_START = -(2**31) + 2


def split(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Split: consecutive pieces, as long as the outputs were in the run."""
    ids = propagation.ids(node.inputs[0])
    axis = non_negative_axis(node.attrs.get("axis", 0), ids.ndim)
    if ids.shape[axis] == 1:
        return [ids for _ in node.outputs]
    if has_input(node, 1) and propagation.facts.static_value(node.inputs[1]) is None:
        return node_refusal(node, Reason.COMPUTED_SPLIT)
    if not all(output.name for output in node.outputs):
        return node_refusal(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    ends = np.cumsum([propagation.known_shape(output)[axis] for output in node.outputs])
    return [collapse(part) for part in np.split(ids, ends[:-1], axis)]


def edit_split(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Split: the sizes, written out."""
    axis = non_negative_axis(node.attrs.get("axis", 0), len(kept.facts.shape(node.inputs[0]) or ()))
    if kept.axis_mask_along(node.inputs[0], axis) is None:
        return None
    sizes = np.array([kept.shape(output)[axis] for output in node.outputs], np.int64)
    if kept.facts.model.opset < 13:
        return NodeEdit(attributes={"split": sizes.tolist()})
    return NodeEdit({1: sizes}, {"num_outputs": None})


def slice_channels(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Slice; of channels only with static bounds."""
    ids = propagation.ids(node.inputs[0])
    if not varying_axes(ids):
        return [ids]
    slices = slices_of(propagation.facts, node)
    if slices is None:
        return node_refusal(node, Reason.COMPUTED_BOUNDS)
    for position, (axis, part) in enumerate(slices):
        if ids.shape[axis] > 1:
            if not all(propagation.facts.is_static(tensor)[position] for tensor in node.inputs[1:] if tensor.name):
                return node_refusal(node, Reason.COMPUTED_BOUNDS)
            if part.step != 1 and len(slices) > 1:
                return node_refusal(node, Reason.SLICE_IN_STEPS)
            ids = ids[(slice(None),) * axis + (part,)]
    return [collapse(ids)]


def slices_of(facts: TensorFacts, node: gs.Node) -> list[tuple[int, slice]] | None:
    """(axis, slice) for each axis that a Slice slices; None where axes are not static, or a bound was not seen."""
    rank = len(facts.shape(node.inputs[0]) or ())
    starts, ends = facts.parameter(node, "starts", 1, may_vary=True), facts.parameter(node, "ends", 2, may_vary=True)
    axes, steps = facts.parameter(node, "axes", 3), facts.parameter(node, "steps", 4)
    is_unknown = [value is None and has_input(node, index) for index, value in ((3, axes), (4, steps))]
    if starts is None or ends is None or any(is_unknown):
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    slices = []
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        stop = None if step < 0 and end < _BEFORE_START else end
        slices.append((non_negative_axis(axis, rank), slice(start, stop, step)))
    return slices


def edit_slice(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Slice: a bound becomes the number of kept channels before it. Bounds along other axes stay, and may be computed.

    What was picked in steps is not evenly spaced any more, so that a Gather picks it.
    """
    removed, slices = kept.axis_mask(node.inputs[0]), slices_of(kept.facts, node)
    if removed is None or slices is None or removed[0] not in [axis for axis, _ in slices]:
        return None
    channel_axis, mask = removed
    if slices[0][1].step != 1 and slices[0][0] == channel_axis:
        picked = np.arange(len(mask))[slices[0][1]]
        indices = (np.cumsum(mask) - 1)[picked[mask[picked]]]
        return NodeEdit({1: indices}, {"axis": channel_axis}, operator="Gather")
    starts, ends = [], []
    for axis, part in slices:
        start, end = part.start, part.stop
        if axis == channel_axis:
            kept_before = np.concatenate([[0], np.cumsum(mask)])
            first, last, _ = part.indices(len(mask))
            start, end = int(kept_before[first]), int(kept_before[max(first, last)])
        starts.append(start)
        ends.append(-(2**31) if end is None else end)
    if "starts" in node.attrs:
        return NodeEdit(attributes={"starts": starts, "ends": ends})
    return operand_edit(kept.facts, node, {1: starts, 2: ends})


def gather(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Gather along an axis; of channels only with static indices.

    The columns of a constant table are channels that it writes: an embedding, which may be added to those of layers.
    """
    ids, table = propagation.ids(node.inputs[0]), propagation.constant(node.inputs[0])
    axis = non_negative_axis(node.attrs.get("axis", 0), ids.ndim)
    if table is not None and table.ndim == 2 and axis == 0:
        columns = propagation.new_channels(node.inputs[0].name, table.shape[1])
        propagation.note_parameter(node, 0, columns[None])
        return [along_axis(columns, -1, len(propagation.known_shape(node.outputs[0])))]
    if not varying_axes(ids):
        return [propagation.no_ids(node.outputs[0])]
    indices = propagation.facts.static_value(node.inputs[1])
    if ids.shape[axis] > 1:
        return node_refusal(node, Reason.COMPUTED_INDICES) if indices is None else [collapse(ids.take(indices, axis))]
    new_axes = len(propagation.known_shape(node.outputs[0])) - ids.ndim + 1
    return [ids.reshape(ids.shape[:axis] + (1,) * new_axes + ids.shape[axis + 1 :])]


def edit_gather(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Gather: the indices of kept channels, counted anew."""
    axis = non_negative_axis(node.attrs.get("axis", 0), len(kept.facts.shape(node.inputs[0]) or ()))
    mask, indices = kept.axis_mask_along(node.inputs[0], axis), kept.facts.static_value(node.inputs[1])
    if mask is None or indices is None:
        return None
    indices = np.where(indices < 0, indices + len(mask), indices)
    is_kept = collapse(mask[indices])
    for axis in varying_axes(is_kept):
        indices = np.compress(is_kept.reshape(-1), indices, axis)
    new_index = (np.cumsum(mask) - 1).astype(indices.dtype)
    return NodeEdit({1: new_index[indices]})
