"""Rules of operators that treat channels on their own, or in groups: normalisation over positions, and pooling."""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, collapse
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_refusal
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.onnxio import surgeon as gs


def batch_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """BatchNormalization: scale, bias, mean and variance are parameters of the channels on axis 1."""
    return _with_channel_parameters(propagation, node, (1, 2, 3, 4))


def instance_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """InstanceNormalization: each channel is normalised alone, over its own positions; scale and bias are parameters."""
    return _with_channel_parameters(propagation, node, (1, 2))


def group_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """GroupNormalization: the channels of a group share a mean, so that they go together.

    Scale and bias have one number for each channel, up to opset 20 for each group.
    """
    groups, rank = int(node.attrs["num_groups"]), len(propagation.known_shape(node.inputs[0]))
    channels = propagation.ids_along(node.inputs[0], 1).reshape(groups, -1)
    first = propagation.unite_except(channels, [0])
    united = np.broadcast_to(first, channels.shape).reshape(-1)
    for index in (1, 2):
        value = propagation.constant(node.inputs[index])
        if value is None or value.size not in (channels.size, groups):
            return node_refusal(node, Reason.NOT_PER_CHANNEL)
        propagation.note_parameter(node, index, united if value.size == channels.size else first.reshape(-1))
    return [along_axis(united, 1, rank)]


def edit_group_normalization(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """GroupNormalization: how many groups are left."""
    mask = kept.axis_mask_along(node.inputs[0], 1)
    return None if mask is None else NodeEdit(attributes={"num_groups": int(mask.sum()) * node.attrs["num_groups"] // len(mask)})


def _with_channel_parameters(propagation: ChannelPropagation, node: gs.Node, inputs: tuple[int, ...]) -> list[Ids] | Refusal:
    values = [propagation.constant(node.inputs[index]) for index in inputs]
    if any(value is None or value.ndim != 1 for value in values):
        return node_refusal(node, Reason.NOT_PER_CHANNEL)
    channels = propagation.ids_along(node.inputs[0], 1)
    for index in inputs:
        propagation.note_parameter(node, index, channels)
    rank = len(propagation.known_shape(node.inputs[0]))
    return [along_axis(channels, 1, rank)]


def pool(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """MaxPool, AveragePool and the global ones: over the positions of each channel."""
    rank = len(propagation.known_shape(node.inputs[0]))
    ids = along_axis(propagation.ids_along(node.inputs[0], 1), 1, rank)
    return [collapse(ids)]
