"""Propagation rules of operators that treat each channel on its own: BatchNormalization, InstanceNormalization and pooling."""

from __future__ import annotations

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, collapse
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_refusal
from onnxmerge.onnxio import surgeon as gs


def batch_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """BatchNormalization: scale, bias, mean and variance are parameters of the channels on axis 1."""
    return _with_channel_parameters(propagation, node, (1, 2, 3, 4))


def instance_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """InstanceNormalization: each channel is normalised alone, over its own positions; scale and bias are parameters."""
    return _with_channel_parameters(propagation, node, (1, 2))


def _with_channel_parameters(propagation: ChannelPropagation, node: gs.Node, inputs: tuple[int, ...]) -> list[Ids] | Refusal:
    values = [propagation.constant(node.inputs[index]) for index in inputs]
    if any(value is None or value.ndim != 1 for value in values):
        return node_refusal(node, Reason.NOT_PER_CHANNEL)
    channels = propagation.ids_along(node.inputs[0], 1)
    for index in inputs:
        propagation.note_parameter(node, index, channels)
    rank = len(propagation.known_shape(node.inputs[0]))
    return [along_axis(channels, 1, rank), *(propagation.no_ids(output) for output in node.outputs[1:])]


def pool(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """MaxPool, AveragePool and the global ones: over the positions of each channel."""
    if any(output.outputs for output in node.outputs[1:]):
        return node_refusal(node, Reason.POSITIONS_READ)
    rank = len(propagation.known_shape(node.inputs[0]))
    ids = along_axis(propagation.ids_along(node.inputs[0], 1), 1, rank)
    return [collapse(ids), *(propagation.no_ids(output) for output in node.outputs[1:])]
