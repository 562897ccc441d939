"""Rules of operators that write how large a tensor is, or values of that size: numbers that must not change with the channels."""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_refusal
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.graph.operators.slice_split_gather import slices_of
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


def writes_no_channels(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """An operator whose output does not depend on how many channels there are, or is edited so: Shape, Range, ConstantOfShape."""
    return [propagation.no_ids(output) for output in node.outputs]


def reads_size(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """An operator whose output would be another one with fewer channels: Size, EyeLike, RandomNormalLike."""
    if any(varying_axes(propagation.ids(tensor)) for tensor in node.inputs):
        return node_refusal(node, Reason.SHAPE_READ)
    return writes_no_channels(propagation, node)


def edit_shape(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Shape: the number of removed channels is added where the entry is read.

    The graph then computes from it what it computed before: a scale 1 / sqrt(channels) keeps its value, and so does the shape of
    another branch. The edit rules of operators that read shapes count on it.
    """
    removed, shape = kept.axis_mask(node.inputs[0]), kept.facts.shape(node.inputs[0])
    if removed is None or shape is None:
        return None
    missing = np.array(shape, np.int64) - kept.shape(node.inputs[0])
    missing = missing[node.attrs.get("start", 0) : node.attrs.get("end")]
    return NodeEdit(added_to_output=missing) if _is_read(kept.facts, node.outputs[0], missing) else None


def _is_read(facts: TensorFacts, shape: gs.Tensor, missing: np.ndarray) -> bool:
    """Whether anything reads an entry of a shape that is not zero in `missing`: a Gather or a Slice may pick others."""
    for reader in shape.outputs:
        picked, bounds = missing, reader.inputs[1:]
        if any(tensor.name == shape.name for tensor in bounds):
            return bool(missing.any())  # the shape itself says what is picked
        if reader.op == "Gather" and (indices := facts.constant(bounds[0])) is not None:
            picked = missing[indices]
        elif reader.op == "Slice" and all(facts.static_value(bound) is not None for bound in bounds if bound.name):
            slices = slices_of(facts, reader)
            picked = missing[slices[0][1]] if slices else missing
        if picked.any():
            return True
    return bool(missing.any()) and any(shape is output for output in facts.model.graph.outputs)
