"""Propagation rules of layers (Conv, ConvTranspose, Gemm, MatMul, Einsum): channels that enter them end, and new ones start."""

from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation, EqualGroups, HeadsOf, Product
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input, node_key, node_name, node_refusal
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
        out = _start_layer(propagation, node, 1, layout, channels.reshape(groups, -1), weight, out_count, (1, 1))
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
    out = _start_layer(propagation, node, 1, layout, channels[None], weight, count, (axis, 1))
    return _with_bias(propagation, node, out, out[None])


def matmul(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """MatMul with a constant matrix on either side, or a vector on the right, or of two computed tensors; channels that it does
    not contract pass through."""
    index = 1 if propagation.constant(node.inputs[1]) is not None else 0
    weight = propagation.constant(node.inputs[index])
    if weight is None:
        ranks = [len(propagation.known_shape(tensor)) for tensor in node.inputs]
        batch = ascii_uppercase[: max(0, *ranks, 2) - 2]
        left, right = (
            terms[-rank:] if rank > 1 else "k" for terms, rank in zip((batch + "mk", batch + "kn"), ranks, strict=True)
        )
        return product(propagation, node, (left, right, batch + left[-2:-1] + right[1:][-1:]))
    rank = len(propagation.known_shape(node.inputs[1 - index]))
    is_matrix = weight.ndim > 1 and set(weight.shape[:-2]) <= {1}
    if not (is_matrix or (weight.ndim == 1 and index == 1)) or rank < max(2, weight.ndim):
        return node_refusal(node, Reason.NOT_A_MATRIX)
    axis = rank - (1 if index == 1 else 2)
    return _contraction(propagation, node, index, "columns" if index == 1 else "rows", weight, (axis, axis))


def einsum(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Einsum of a tensor with one constant matrix, such as bchw,oc->bohw or bsd,dh->bsh, or of two computed tensors."""
    values = [propagation.constant(tensor) for tensor in node.inputs]
    index = 0 if values[0] is not None else len(values) - 1
    weight = values[index]
    terms, _, result = str(node.attrs["equation"]).replace(" ", "").partition("->")
    if len(values) == 2 and weight is None and "." not in terms and len(set(result)) == len(result):
        left, right = terms.split(",")
        return product(propagation, node, (left, right, result))
    if len(values) != 2 or weight is None or values[1 - index] is not None:
        return node_refusal(node, Reason.MIXES_CHANNELS)
    weight_letters, data = (terms.split(",")[at] for at in (index, 1 - index))
    summed = "".join(letter for letter in weight_letters if letter in data and letter not in result)
    new = "".join(letter for letter in weight_letters if letter not in data and letter in result)
    is_product = len(weight_letters) == 2 and len(summed) == len(new) == 1 and len(set(data)) == len(data)
    if not is_product or "." in terms or data.replace(summed, "") != result.replace(new, ""):
        return node_refusal(node, Reason.MIXES_CHANNELS)
    axes = data.index(summed), result.index(new)
    return _contraction(propagation, node, index, "rows" if weight_letters[0] == new else "columns", weight, axes)


def product(
    propagation: ChannelPropagation,
    node: gs.Node,
    terms: tuple[str, str, str],
    operands: Sequence[tuple[Ids, str]] = (),
    heads: tuple[HeadsOf, ...] = (),
) -> list[Ids] | Refusal:
    """A product of two tensors that the graph computes; terms: a letter for each axis of both and of the result, as in Einsum.

    Channels on an axis that only one of them has pass (values of an attention); those on the axis that is summed end, and go in
    pairs (query and key). Both may differ from position to position of the axes that all three share (heads); where whole heads
    go, these axes are those of the channels, which pass.

    operands: ids and letters of those with channels, where the node is a whole attention; heads: how it reads them.
    """
    left, right, result = terms
    shared = "".join(letter for letter in result if letter in left and letter in right)
    found: list[tuple[str, Ids]] = []
    operands = operands or list(zip(map(propagation.ids, node.inputs), terms, strict=False))
    if propagation.whole_heads and any(letters[axis] in shared for ids, letters in operands for axis in varying_axes(ids)):
        return [_whole_heads(propagation, node, operands, shared, result)]
    for ids, letters in operands:
        own = [letters[axis] for axis in varying_axes(ids) if letters[axis] not in shared]
        if not own:  # whole heads, which stay: a bias for each, from a table
            propagation.pin(ids, node_refusal(node, Reason.TWO_COMPUTED_FACTORS))
        elif len(own) != 1 or any(len(set(each)) < len(each) for each in terms):
            return node_refusal(node, Reason.TWO_COMPUTED_FACTORS)
        found += [(own[0], _with_axes(ids, letters, shared + own[0]))] if own else []
    none = np.zeros((1,) * len(result), np.int64)
    if not found:
        return [none]
    (letter, ids), (other_letter, others) = found[0], found[-1]
    is_summed = letter in left and letter in right
    if letter != other_letter or (len(found) < 2 and letter not in result):
        return node_refusal(node, Reason.TWO_COMPUTED_FACTORS)
    ids, others = np.broadcast_arrays(ids, others)
    propagation.united.unite(ids, others)
    propagation.pin(np.where((ids > 0) == (others > 0), 0, ids + others), node_refusal(node, Reason.TWO_COMPUTED_FACTORS))
    propagation.products.append(Product(node, (ids, others)[: 1 + is_summed], terms, letter, heads=heads))
    return [none if is_summed else _with_axes(ids, shared + letter, result)]


def _whole_heads(
    propagation: ChannelPropagation, node: gs.Node, operands: Sequence[tuple[Ids, str]], shared: str, result: str
) -> Ids:
    """The ids of a product whose channels are the heads: each with all of its positions on other axes, in both operands."""
    heads = np.zeros((1,) * len(shared), np.int64)
    for ids, letters in operands:
        rows = np.moveaxis(ids, [axis for axis, each in enumerate(letters) if each in shared], range(len(shared)))
        propagation.head_ids.append(rows.reshape(np.prod(rows.shape[: len(shared)]), -1))
        own = _with_axes(
            propagation.unite_except(ids, [axis for axis, each in enumerate(letters) if each in shared]), letters, shared
        )
        propagation.united.unite(heads, own)
        why = node_refusal(node, Reason.TWO_COMPUTED_FACTORS)
        propagation.pin(np.where(((heads > 0) == (own > 0)) | ~heads.any(), 0, heads + own), why)
        heads = np.where(heads > 0, heads, own)
    for tensor, (ids, letters) in zip(node.inputs, operands, strict=False):
        shape = propagation.known_shape(tensor)
        is_whole = len(shape) != len(letters) or any(shape[letters.index(shared[axis])] > 1 for axis in varying_axes(heads))
        if not ids.any() and is_whole:  # its heads are positions of something else, and stay
            propagation.pin(heads, node_refusal(node, Reason.TWO_COMPUTED_FACTORS))
    return _with_axes(heads, shared, result)


def _with_axes(ids: Ids, terms: str, letters: str) -> Ids:
    """Ids with an axis for each of `letters`, of extent 1 where they have none; they do not vary along any other."""
    present = "".join(letter for letter in letters if letter in terms)
    extents = [ids.shape[terms.index(letter)] if letter in terms else 1 for letter in letters]
    return np.asarray(np.einsum(f"{terms}->{present}", ids).reshape(extents))


def _contraction(
    propagation: ChannelPropagation, node: gs.Node, index: int, layout: str, weight: np.ndarray, axes: tuple[int, int]
) -> list[Ids] | Refusal:
    """A layer that sums over one axis, and writes another in its place; axes: both. Channels on other axes pass it."""
    data, rank = node.inputs[1 - index], len(propagation.known_shape(node.outputs[0]))
    channel_axes = varying_axes(propagation.ids(data))
    if channel_axes and axes[0] not in channel_axes:
        if axes[0] != axes[1] or weight.ndim == 1:
            return node_refusal(node, Reason.MIXES_CHANNELS)
        propagation.refusals.append(refusal(node_name(node), Reason.MIXES_POSITIONS))
        return [propagation.ids(data)]
    channels = propagation.ids_along(data, axes[0])
    count = weight.size // len(channels)
    out = _start_layer(propagation, node, index, layout, channels[None], weight, count, axes)
    return [propagation.no_ids(node.outputs[0]) if weight.ndim == 1 else along_axis(out, axes[1], rank)]


def _start_layer(
    propagation: ChannelPropagation,
    node: gs.Node,
    index: int,
    layout: str,
    in_ids: Ids,
    weight: np.ndarray,
    out_count: int,
    axes: tuple[int, int],
) -> Ids:
    """Note a layer that reads `in_ids` (groups, inputs per group), and return the new ids (out_count,) that it writes.

    index: of the weight among the inputs; axes: of the channels in what it reads and writes.
    """
    numbers = propagation.heads_of_layers.get(node_key(node), np.arange(out_count))
    out: Ids = propagation.united.new_ids(int(numbers.max()) + 1)[numbers]
    out_ids = out.reshape(len(in_ids), -1)
    rank = len(propagation.known_shape(node.outputs[0]))
    propagation.layers.append(Layer(node, index, layout, in_ids, out_ids, weight, *axes, rank))
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
