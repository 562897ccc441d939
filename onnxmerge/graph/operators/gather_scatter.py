"""Propagation rules of GatherElements, GatherND, ScatterElements and ScatterND: channels pass on axes that are not indexed."""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_refusal, non_negative_axis
from onnxmerge.graph.operators.elementwise import note_operand
from onnxmerge.onnxio import surgeon as gs


def elements(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """GatherElements, ScatterElements, Scatter: indices, and what is written, have a value for every channel."""
    data, operands = node.inputs[0], range(1, len(node.inputs))
    ids = _united(propagation, [propagation.ids(data), *(propagation.ids(node.inputs[index]) for index in operands if index > 1)])
    axis = non_negative_axis(node.attrs.get("axis", 0), ids.ndim)
    if not ids.any():
        return [propagation.no_ids(node.outputs[0])]
    shapes = [propagation.known_shape(tensor) for tensor in node.inputs]
    if ids.shape[axis] > 1 or any(shape[each] != shapes[0][each] for shape in shapes for each in varying_axes(ids)):
        return node_refusal(node, Reason.NOT_FOLLOWED)
    for index in (0, *operands):
        note_operand(propagation, node, index, ids)
    return [ids]


def gather_nd(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """GatherND: the axes behind those that the indices name stay as they are."""
    ids, indices = propagation.ids(node.inputs[0]), propagation.known_shape(node.inputs[1])
    named = int(node.attrs.get("batch_dims", 0)) + indices[-1]
    if any(axis < named for axis in varying_axes(ids)):
        return node_refusal(node, Reason.NOT_FOLLOWED)
    return [ids.reshape((1,) * (len(indices) - 1) + ids.shape[named:])]


def scatter_nd(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """ScatterND: what is written has the same axes as the data behind those that the indices name."""
    data, updates, named = node.inputs[0], node.inputs[2], propagation.known_shape(node.inputs[1])[-1]
    ids, written = propagation.ids(data), propagation.ids(updates)
    shared = len(propagation.known_shape(data)) - named
    first = written.ndim - shared
    if any(axis < named for axis in varying_axes(ids)) or any(axis < first for axis in varying_axes(written)):
        return node_refusal(node, Reason.NOT_FOLLOWED)
    joined = _united(propagation, [ids.reshape(ids.shape[named:]), written.reshape(written.shape[first:])])
    if not joined.any():
        return [propagation.no_ids(node.outputs[0])]
    note_operand(propagation, node, 0, joined.reshape((1,) * named + joined.shape))
    note_operand(propagation, node, 2, joined.reshape((1,) * first + joined.shape))
    return [joined.reshape((1,) * named + joined.shape)]


def _united(propagation: ChannelPropagation, parts: list[Ids]) -> Ids:
    """The ids of tensors of one shape, where any of them has some; those that meet are united."""
    found = parts[0]
    for part in parts[1:]:
        propagation.united.unite(found, part)
        found = collapse(np.where(found > 0, found, part))
    return found
