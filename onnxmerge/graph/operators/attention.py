"""Attention as one operator: what MatMul, Softmax and MatMul do to the channels of each head, and the scale that stays.

Query and key lose the same channels of a head, value others, which leave the output too; heads keep equally many.
"""

from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, collapse, with_rank
from onnxmerge.graph.channel_propagation import ChannelPropagation, EqualGroups, HeadsOf
from onnxmerge.graph.nodes import has_input, is_standard, node_refusal
from onnxmerge.graph.operators.conv_gemm_matmul import product
from onnxmerge.graph.operators.elementwise import note_operand
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
    summand : int
        What is added to the logits, with an axis for each of theirs.
    """

    past: tuple[int, int]
    heads: tuple[str, str]
    summand: int


_STANDARD = _Inputs((4, 5), ("q_num_heads", "kv_num_heads"), 3)
_MULTI_HEAD = _Inputs((6, 7), ("num_heads", "num_heads"), 5)


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
        if index > VALUE and tensor.name and not (propagation.whole_heads and index == inputs.summand):
            propagation.pin(propagation.ids(tensor), node_refusal(node, Reason.MIXES_CHANNELS))
    for each, past in zip(heads[1:], inputs.past, strict=True):
        if has_input(node, past):
            why = node_refusal(node, Reason.JOINED_WITH_FIXED, tensor=node.inputs[past].name)
            propagation.pin(propagation.ids(node.inputs[each.index]), why)
    none = np.zeros((1, 1, 1, 1), np.int64)
    logits = product(propagation, node, LOGITS, list(zip(ids, LOGITS[:2], strict=False)), tuple(heads[:VALUE]))
    of_heads = none if isinstance(logits, Refusal) else logits[0]
    if has_input(node, inputs.summand) and of_heads.any():
        propagation.united.unite(of_heads, with_rank(propagation.ids(node.inputs[inputs.summand]), 4))
        note_operand(propagation, node, inputs.summand, of_heads)
    values = product(propagation, node, VALUES, [(of_heads, VALUES[0]), (ids[VALUE], VALUES[1])])
    for found, entering in ((logits, ids[:VALUE]), (values, ids[VALUE:])):
        why = found if isinstance(found, Refusal) else node_refusal(node, Reason.MIXES_CHANNELS)
        if isinstance(found, Refusal) or found[0].shape[0] > 1 or found[0].shape[2] > 1:
            propagation.refusals.append(why)
            for own in entering:
                propagation.pin(own, why)
        if not propagation.whole_heads:
            propagation.equal_groups += [EqualGroups(node, own.reshape(-1, own.shape[-1])) for own in entering if own.any()]
    written = none if isinstance(values, Refusal) else values[0]
    if len(propagation.known_shape(node.outputs[0])) == 3:
        width = propagation.known_shape(node.outputs[0])[2] // heads[QUERY].count
        written = np.broadcast_to(written, (1, heads[QUERY].count, 1, width)).reshape(1, 1, -1)
    present = [collapse(each.laid_out(propagation.full_ids(node.inputs[each.index]), apart=True)) for each in heads[1:]]
    return [collapse(written), *present, of_heads]


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
    """How many heads are left; and the scale of the logits, by default 1 / sqrt(width), written out where the width changes."""
    names = (_STANDARD if is_standard(node) else _MULTI_HEAD).heads
    attributes: dict[str, float] = {}
    for index, name in zip((KEY, QUERY), names[::-1], strict=True):
        removed, shape = kept.axis_mask(node.inputs[index]), kept.facts.shape(node.inputs[index]) or ()
        if removed is None or (len(shape) == 4 and removed[0] == 1):
            continue
        by_head = removed[1].reshape(1 if len(shape) == 4 else int(node.attrs[name]), -1)
        heads = by_head.any(1)
        if not heads.all():
            attributes[name] = int(heads.sum())
        is_default = "scale" not in node.attrs or not (is_standard(node) or node.attrs["scale"])
        if is_default and not by_head[heads].all():
            attributes["scale"] = by_head.shape[1] ** -0.5
    return NodeEdit(attributes=attributes) if attributes else None


def grouped_query(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """GroupQueryAttention: whole heads of the query, equally many of those that share a key and value; widths stay, since its
    kernels run with heads that are equally wide, in multiples of 8, and as wide as those of the caches."""
    graph, cached = propagation.facts.model.graph, {tensor.name for tensor in (*node.inputs[3:5], *node.outputs[1:3])} - {""}
    is_cached = any(tensor.name in cached for tensor in (*graph.inputs, *graph.outputs))
    why = node_refusal(node, Reason.CACHED if is_cached else Reason.WIDTH_OF_KERNEL)
    count, shared, total = _grouped_heads(node)
    if not propagation.whole_heads or count == shared:
        return why
    query = propagation.unite_except(propagation.ids(node.inputs[QUERY]), [2])
    width = propagation.known_shape(node.inputs[QUERY])[2] // total
    rows = np.broadcast_to(query, (1, 1, total * width)).reshape(total, width)
    for ids in (rows[count:], *map(propagation.ids, node.inputs[KEY : VALUE + 1])):
        propagation.pin(ids, why)
    parts = [rows[:count]]
    if total > count:  # key and value are of one layer with the query: one channel for each head of both that queries share
        parts.append(rows[count:].reshape(2, shared, width).swapaxes(0, 1).reshape(shared, -1))
    propagation.head_ids += parts
    heads, *fixed = (propagation.unite_except(each, [0])[:, :1] for each in parts)
    propagation.equal_groups.append(EqualGroups(node, np.concatenate([heads.reshape(shared, -1), *fixed], axis=1)))
    for index, shape in _OF_QUERY_HEADS.items():
        if has_input(node, index):
            note_operand(propagation, node, index, heads.reshape(shape))
    return [np.broadcast_to(heads, (count, width)).reshape(1, 1, -1), *[np.zeros((1, 1, 1, 1), np.int64)] * 2]


_OF_QUERY_HEADS = {10: (1, -1, 1, 1), 11: (-1,)}
"""Inputs of a GroupQueryAttention with values for each head of the query, a summand and a sink, and the shape of these heads."""


def _grouped_heads(node: gs.Node) -> tuple[int, int, int]:
    """Heads of the query, of the key, and of what input 0 holds, which may be query, key and value one behind the other."""
    count, shared = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    return count, shared, count if has_input(node, KEY) else count + 2 * shared


def edit_grouped_query(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """GroupQueryAttention: how many heads of the query are left."""
    stays = kept.axis_mask_along(node.inputs[QUERY], 2)
    count, _, total = _grouped_heads(node)
    return None if stays is None else NodeEdit(attributes={"num_heads": int(stays.reshape(total, -1)[:count, 0].sum())})


def packed(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """The Attention of ONNX Runtime, which holds its projections: taken apart before, but not one with a past, a
    rotation, or starts in its mask."""
    return node_refusal(node, Reason.PACKED_HEADS)
