"""Attention as one operator: what MatMul, Softmax and MatMul do to the channels of each head, and the scale that stays.

Query and key lose the same channels of a head, value others, which leave the output too; heads keep equally many.
"""

from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, collapse
from onnxmerge.graph.channel_propagation import ChannelPropagation, EqualGroups, HeadsOf
from onnxmerge.graph.nodes import has_input, is_standard, node_refusal
from onnxmerge.graph.operators.conv_gemm_matmul import product
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.onnxio import surgeon as gs

QUERY, KEY, VALUE = 0, 1, 2
LOGITS = ("bhqd", "bhkd", "bhqk")
VALUES = ("bhqk", "bhkd", "bhqd")


@dataclass(frozen=True)
class _Inputs:
    """Where an operator has what beside query, key and value.

    Attributes
    ----------
    past : tuple of int
        Keys and values of earlier positions, (batch, heads, positions, width).
    heads : tuple of str
        The attributes that hold the numbers of heads of query, and of key and value.
    """

    past: tuple[int, int]
    heads: tuple[str, str]


_STANDARD = _Inputs((4, 5), ("q_num_heads", "kv_num_heads"))
_MULTI_HEAD = _Inputs((6, 7), ("num_heads", "num_heads"))


def attention(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Attention, MultiHeadAttention: in every head query and key lose the same channels, value and the output others; the scale
    of the logits stays what it was.

    Channels of values of earlier positions, which are inputs of the model, stay.
    """
    inputs = _STANDARD if is_standard(node) else _MULTI_HEAD
    heads = _heads(propagation, node, inputs)
    if heads is None:
        return node_refusal(node, Reason.PACKED_HEADS)
    ids = [collapse(each.laid_out(propagation.full_ids(node.inputs[each.index]))) for each in heads]
    for index, tensor in enumerate(node.inputs):
        if index > VALUE and tensor.name:
            propagation.pin(propagation.ids(tensor), node_refusal(node, Reason.MIXES_CHANNELS))
    for each, past in zip(heads[1:], inputs.past, strict=True):
        if has_input(node, past):
            why = node_refusal(node, Reason.JOINED_WITH_FIXED, tensor=node.inputs[past].name)
            propagation.pin(propagation.ids(node.inputs[each.index]), why)
    operands = list(zip(ids, (*LOGITS[:2], VALUES[1]), strict=True))
    logits = product(propagation, node, LOGITS, operands[:VALUE], tuple(heads[:VALUE]))
    values = product(propagation, node, VALUES, operands[VALUE:])
    for found, entering in ((logits, ids[:VALUE]), (values, ids[VALUE:])):
        why = found if isinstance(found, Refusal) else node_refusal(node, Reason.MIXES_CHANNELS)
        if isinstance(found, Refusal) or found[0].shape[0] > 1 or found[0].shape[2] > 1:
            propagation.refusals.append(why)
            for own in entering:
                propagation.pin(own, why)
        propagation.equal_groups += [EqualGroups(node, own.reshape(-1, own.shape[-1])) for own in entering if own.any()]
    none = np.zeros((1, 1, 1, 1), np.int64)
    written = none if isinstance(values, Refusal) else values[0]
    if len(propagation.known_shape(node.outputs[0])) == 3:
        written = np.broadcast_to(written, (1, heads[QUERY].count, 1, written.shape[3])).reshape(1, 1, -1)
    present = [collapse(each.laid_out(propagation.full_ids(node.inputs[each.index]), apart=True)) for each in heads[1:]]
    return [collapse(written), *present, none]


def _heads(propagation: ChannelPropagation, node: gs.Node, inputs: _Inputs) -> list[HeadsOf] | None:
    """How the heads of query, key and value stand in these; None where they are packed into one tensor or read from a cache."""
    shapes = [propagation.known_shape(node.inputs[index]) if has_input(node, index) else () for index in (QUERY, KEY, VALUE)]
    ranks = {len(shape) for shape in shapes}
    if ranks != {3} and not (ranks == {4} and is_standard(node)):
        return None
    if not is_standard(node) and has_input(node, 3):
        return None
    if ranks == {4}:
        counts = [shape[1] for shape in shapes]
    else:
        counts = [int(node.attrs[inputs.heads[index > QUERY]]) for index in (QUERY, KEY, VALUE)]
    return [HeadsOf(index, count, counts[QUERY] // count) for index, count in zip((QUERY, KEY, VALUE), counts, strict=True)]


def edit_attention(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """The scale of the logits, which is by default 1 / sqrt(width), written out where the width changes."""
    is_default = "scale" not in node.attrs or (not is_standard(node) and not node.attrs["scale"])
    if not is_default or kept.axis_mask(node.inputs[QUERY]) is None:
        return None
    shape = kept.facts.shape(node.inputs[QUERY]) or ()
    heads = _STANDARD.heads if is_standard(node) else _MULTI_HEAD.heads
    width = shape[-1] if len(shape) == 4 else shape[-1] // int(node.attrs[heads[0]])
    return NodeEdit(attributes={"scale": width**-0.5})


def grouped_query(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """GroupQueryAttention: its kernels run with heads of key and value that are equally wide, in multiples of 8, and as wide as
    those of the past."""
    return node_refusal(node, Reason.WIDTH_OF_KERNEL)


def packed(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """The Attention of ONNX Runtime, which holds its projections: taken apart before, but not one with a past, a
    rotation, or starts in its mask."""
    return node_refusal(node, Reason.PACKED_HEADS)
