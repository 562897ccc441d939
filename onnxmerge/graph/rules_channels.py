"""Rules for operators that compute: which ids come out, and what is noted on the way.

A rule takes (flow, node) and returns one id array for each output, or a reason, and then every id that enters is pinned.
"""

from __future__ import annotations

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_ids import Flow, Partition, along, collapse, padded, varying
from onnxmerge.graph.layers import Ids, Layer, label
from onnxmerge.onnxio import surgeon as gs

Outcome = list[Ids] | Refusal


def refused(node: gs.Node, reason: Reason, **details: object) -> Refusal:
    """A refusal of a node, with its operator among the details."""
    details.setdefault("operator", node.op)
    return refusal(label(node), reason, "", **details)


def none(flow: Flow, tensor: gs.Tensor) -> Ids:
    """No ids, in the rank of the tensor."""
    return np.zeros((1,) * len(flow.shape(tensor) or ()), np.int64)


def opaque(flow: Flow, node: gs.Node) -> Outcome:
    """An operator that mixes whatever enters it."""
    domain = f" of domain {node.domain}" if node.domain not in (None, "", "ai.onnx") else ""
    return refused(node, Reason.UNKNOWN_OPERATOR, operator=f"{node.op}{domain}")


def mixes(flow: Flow, node: gs.Node) -> Outcome:
    """A known operator that mixes channels or carries them through a state."""
    return refused(node, Reason.MIXES_CHANNELS)


def quantised(flow: Flow, node: gs.Node) -> Outcome:
    """Quantised operators carry scales that belong to the whole tensor."""
    return refused(node, Reason.QUANTISED)


def shape_only(flow: Flow, node: gs.Node) -> Outcome:
    """Reads only the shape of its input, or nothing at all."""
    return [none(flow, output) for output in node.outputs]


def unary(flow: Flow, node: gs.Node) -> Outcome:
    """Elementwise on the first input; the other inputs and outputs are scalars or masks."""
    return [flow.ids(node.inputs[0]), *(none(flow, output) for output in node.outputs[1:])]


def join(flow: Flow, node: gs.Node) -> Outcome:
    """Elementwise with broadcasting: ids that meet are united, constants become riders, anything else pins."""
    inputs = [tensor for tensor in node.inputs if tensor.name]
    shapes = [flow.shape(tensor) for tensor in inputs]
    rank = max(len(shape) for shape in shapes if shape is not None)
    parts = [padded(flow.ids(tensor), rank) for tensor in inputs]
    result = np.zeros((1,) * rank, np.int64)
    for part in parts:
        flow.unite(result, part)
        result = collapse(np.where(result > 0, result, part))
    for index, tensor in enumerate(node.inputs):
        if tensor.name and (result > 0).any():
            _meet(flow, node, index, result)
    return [result, *(none(flow, output) for output in node.outputs[1:])]


def _meet(flow: Flow, node: gs.Node, index: int, result: Ids) -> None:
    """One input of a join against the ids of the result."""
    tensor, rank = node.inputs[index], result.ndim
    shape = flow.shape(tensor)
    assert shape is not None
    extents = (1,) * (rank - len(shape)) + shape
    carried = [axis for axis in varying(result) if extents[axis] > 1]
    left, right = np.broadcast_arrays(result, padded(flow.ids(tensor), rank))
    bare = (left > 0) & (right == 0)
    if not carried or not bare.any():
        return
    if flow.constant(tensor) is None:
        flow.pin(left[bare], refused(node, Reason.JOINED_WITH_FIXED, tensor=tensor.name))
        return
    ids = flow.flatten_to(result, carried)
    flow.ride(node, index, ids.reshape(ids.shape[rank - len(shape) :]))


def batch_normalization(flow: Flow, node: gs.Node) -> Outcome:
    """Scale, bias, mean and variance ride along on axis 1."""
    return _per_channel_affine(flow, node, (1, 2, 3, 4))


def instance_normalization(flow: Flow, node: gs.Node) -> Outcome:
    """Each channel is normalised alone, over its own positions."""
    return _per_channel_affine(flow, node, (1, 2))


def _per_channel_affine(flow: Flow, node: gs.Node, inputs: tuple[int, ...]) -> Outcome:
    values = [flow.constant(node.inputs[index]) for index in inputs]
    if any(value is None or value.ndim != 1 for value in values):
        return refused(node, Reason.NOT_PER_CHANNEL)
    channel = flow.per_channel(node.inputs[0], 1)
    for index in inputs:
        flow.ride(node, index, channel)
    rank = len(flow.shape(node.inputs[0]) or ())
    return [along(channel, 1, rank), *(none(flow, output) for output in node.outputs[1:])]


def pool(flow: Flow, node: gs.Node) -> Outcome:
    """Pooling and resampling over the positions of each channel."""
    tensor = node.inputs[0]
    if any(output.outputs for output in node.outputs[1:]):
        return refused(node, Reason.POSITIONS_READ)
    rank = len(flow.shape(tensor) or ())
    ids = along(flow.per_channel(tensor, 1), 1, rank)
    return [collapse(ids), *(none(flow, output) for output in node.outputs[1:])]


def _bias(flow: Flow, node: gs.Node, index: int, ids: Ids) -> bool:
    """Slice the bias along; False when it is computed by the graph, or differs from row to row."""
    if len(node.inputs) <= index or not node.inputs[index].name:
        return True
    value = flow.constant(node.inputs[index])
    if value is None or (value.size > 1 and value.shape[-1] != value.size) or value.size not in (1, ids.size):
        flow.pin(ids, refused(node, Reason.BIAS_NOT_PER_CHANNEL))
        return False
    if value.size > 1:
        flow.ride(node, index, along(ids, value.ndim - 1, value.ndim))
    return True


def conv(flow: Flow, node: gs.Node) -> Outcome:
    """Conv, weight (out, in / groups, *kernel)."""
    weight = flow.constant(node.inputs[1])
    if weight is None:
        return refused(node, Reason.COMPUTED_WEIGHT)
    groups, rank = int(node.attrs.get("group", 1)), weight.ndim
    channels = flow.per_channel(node.inputs[0], 1)
    if groups > 1 and weight.shape[1] == 1 and groups == len(channels):
        out = _depthwise(flow, node, np.repeat(channels, weight.shape[0] // groups), rank)
    else:
        out = _layer(flow, node, 1, "conv", channels.reshape(groups, -1), weight.shape[0])
    if not _bias(flow, node, 2, out):
        return refused(node, Reason.BIAS_NOT_PER_CHANNEL)
    return [along(out, 1, rank)]


def _depthwise(flow: Flow, node: gs.Node, out: Ids, rank: int) -> Ids:
    """The weight rides on the channels that enter."""
    if not out.any():
        flow.refusals.append(refusal(label(node), Reason.DEPTHWISE_INPUT_FIXED))
    flow.ride(node, 1, along(out, 0, rank))
    return out


def conv_transpose(flow: Flow, node: gs.Node) -> Outcome:
    """ConvTranspose, weight (in, out / groups, *kernel)."""
    weight = flow.constant(node.inputs[1])
    if weight is None:
        return refused(node, Reason.COMPUTED_WEIGHT)
    groups, rank = int(node.attrs.get("group", 1)), weight.ndim
    channels = flow.per_channel(node.inputs[0], 1)
    if groups > 1 and weight.shape[1] == 1 and groups == len(channels):
        out = _depthwise(flow, node, channels, rank)
    else:
        out = _layer(flow, node, 1, "conv_transpose", channels.reshape(groups, -1), weight.shape[1] * groups)
    if not _bias(flow, node, 2, out):
        return refused(node, Reason.BIAS_NOT_PER_CHANNEL)
    return [along(out, 1, rank)]


def gemm(flow: Flow, node: gs.Node) -> Outcome:
    """Gemm: alpha A B + beta C with a constant B, stored (in, out) or, with transB, (out, in)."""
    weight = flow.constant(node.inputs[1])
    if weight is None:
        return refused(node, Reason.TWO_COMPUTED_FACTORS)
    axis = 0 if node.attrs.get("transA", 0) else 1
    if varying(flow.ids(node.inputs[0])) not in ([], [axis]):
        return refused(node, Reason.MIXES_ROWS)
    channels = flow.per_channel(node.inputs[0], axis)
    rows = bool(node.attrs.get("transB", 0))
    out = _layer(flow, node, 1, "rows" if rows else "columns", channels[None], weight.shape[0 if rows else 1])
    if not _bias(flow, node, 2, out):
        return refused(node, Reason.BIAS_NOT_PER_CHANNEL)
    return [out[None]]


def matmul(flow: Flow, node: gs.Node) -> Outcome:
    """MatMul with one constant matrix, on either side; channels that it does not contract pass through."""
    index = 1 if flow.constant(node.inputs[1]) is not None else 0
    weight, data = flow.constant(node.inputs[index]), node.inputs[1 - index]
    shape = flow.shape(data)
    if weight is None or shape is None:
        return refused(node, Reason.TWO_COMPUTED_FACTORS)
    if weight.ndim != 2 or len(shape) < 2:
        return refused(node, Reason.NOT_A_MATRIX)
    contracted = len(shape) - (1 if index == 1 else 2)
    free = varying(flow.ids(data))
    if free and contracted not in free:
        flow.refusals.append(refusal(label(node), Reason.MIXES_POSITIONS))
        return [flow.ids(data)]
    channels = flow.per_channel(data, contracted)
    layout = "columns" if index == 1 else "rows"
    out = _layer(flow, node, index, layout, channels[None], weight.shape[1 if index == 1 else 0])
    return [along(out, contracted, len(shape))]


def _data(node: gs.Node, index: int) -> gs.Tensor:
    """What a layer reads beside its weight."""
    return node.inputs[1 - index if node.op == "MatMul" else 0]


def _layer(flow: Flow, node: gs.Node, index: int, layout: str, in_ids: Ids, outputs: int) -> Ids:
    """End the ids that enter, start new ones; grouped convolutions keep equal numbers in every group."""
    groups = len(in_ids)
    out = flow.fresh(outputs)
    weight, shape = flow.constant(node.inputs[index]), flow.shape(_data(node, index))
    assert weight is not None
    assert shape is not None
    flow.layers.append(Layer(node, index, layout, in_ids, out.reshape(groups, -1), weight, len(shape)))
    if groups > 1:
        flow.partitions += [Partition(node, in_ids), Partition(node, out.reshape(groups, -1))]
    return out
