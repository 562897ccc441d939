"""Propagation rules of layers: Conv, ConvTranspose, Gemm and MatMul end the channels that enter them and start new ones."""

from __future__ import annotations

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation, EqualGroups
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input, node_name, node_refusal
from onnxmerge.onnxio import surgeon as gs


def conv(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Conv, weight (out, in / groups, *kernel), and ConvTranspose, weight (in, out / groups, *kernel).

    The channels that enter a depthwise convolution go on, and its weight is a parameter of theirs.
    """
    weight = propagation.constant(node.inputs[1])
    if weight is None:
        return node_refusal(node, Reason.COMPUTED_WEIGHT)
    groups, channels = int(node.attrs.get("group", 1)), propagation.ids_along(node.inputs[0], 1)
    out_count = weight.shape[1] * groups if node.op == "ConvTranspose" else weight.shape[0]
    if groups > 1 and weight.shape[1] == 1 and groups == len(channels):
        out = np.repeat(channels, out_count // groups)
        if not out.any():
            propagation.refusals.append(refusal(node_name(node), Reason.DEPTHWISE_INPUT_FIXED))
        propagation.note_parameter(node, 1, along_axis(out, 0, weight.ndim))
    else:
        layout = "conv_transpose" if node.op == "ConvTranspose" else "conv"
        out = _start_layer(propagation, node, 1, layout, channels.reshape(groups, -1), weight, out_count)
    return _with_bias(propagation, node, out, along_axis(out, 1, weight.ndim))


def gemm(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Gemm: alpha A B + beta C with a constant B, stored (in, out) or, with transB, (out, in)."""
    weight = propagation.constant(node.inputs[1])
    if weight is None:
        return node_refusal(node, Reason.TWO_COMPUTED_FACTORS)
    axis = 0 if node.attrs.get("transA", 0) else 1
    if varying_axes(propagation.ids(node.inputs[0])) not in ([], [axis]):
        return node_refusal(node, Reason.MIXES_ROWS)
    channels = propagation.ids_along(node.inputs[0], axis)
    layout, count = ("rows", weight.shape[0]) if node.attrs.get("transB", 0) else ("columns", weight.shape[1])
    out = _start_layer(propagation, node, 1, layout, channels[None], weight, count)
    return _with_bias(propagation, node, out, out[None])


def matmul(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """MatMul with one constant matrix, on either side; channels that it does not contract pass through."""
    index = 1 if propagation.constant(node.inputs[1]) is not None else 0
    weight, data = propagation.constant(node.inputs[index]), node.inputs[1 - index]
    if weight is None:
        return node_refusal(node, Reason.TWO_COMPUTED_FACTORS)
    rank = len(propagation.known_shape(data))
    if weight.ndim != 2 or rank < 2:
        return node_refusal(node, Reason.NOT_A_MATRIX)
    contracted = rank - (1 if index == 1 else 2)
    channel_axes = varying_axes(propagation.ids(data))
    if channel_axes and contracted not in channel_axes:
        propagation.refusals.append(refusal(node_name(node), Reason.MIXES_POSITIONS))
        return [propagation.ids(data)]
    channels = propagation.ids_along(data, contracted)
    layout, count = ("columns", weight.shape[1]) if index == 1 else ("rows", weight.shape[0])
    out = _start_layer(propagation, node, index, layout, channels[None], weight, count)
    return [along_axis(out, contracted, rank)]


def _start_layer(
    propagation: ChannelPropagation, node: gs.Node, index: int, layout: str, in_ids: Ids, weight: np.ndarray, out_count: int
) -> Ids:
    """Note a layer that reads `in_ids` (groups, inputs per group), and return the new ids (out_count,) that it writes."""
    out = propagation.united.new_ids(out_count)
    out_ids = out.reshape(len(in_ids), -1)
    data = node.inputs[1 - index if node.op == "MatMul" else 0]
    propagation.layers.append(Layer(node, index, layout, in_ids, out_ids, weight, len(propagation.known_shape(data))))
    if len(in_ids) > 1:
        propagation.equal_groups += [EqualGroups(node, in_ids), EqualGroups(node, out_ids)]
    return out


def _with_bias(propagation: ChannelPropagation, node: gs.Node, out: Ids, result: Ids) -> list[Ids] | Refusal:
    """`result`, with the bias (input 2) noted as a parameter of the output channels `out`.

    A bias that the graph computes, or that differs from row to row, pins them.
    """
    if not has_input(node, 2):
        return [result]
    bias = propagation.constant(node.inputs[2])
    if bias is None or (bias.size > 1 and bias.shape[-1] != bias.size) or bias.size not in (1, out.size):
        why = node_refusal(node, Reason.BIAS_NOT_PER_CHANNEL)
        propagation.pin(out, why)
        return why
    if bias.size > 1:
        propagation.note_parameter(node, 2, along_axis(out, bias.ndim - 1, bias.ndim))
    return [result]
