"""Weights in one axis order, (groups, out / groups, in / groups, positions), whatever operator holds them.

positions is the flattened kernel of a convolution and 1 elsewhere.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.channel_groups import ChannelGroup, Link
from onnxmerge.graph.channel_ids import Flow, Weighted


def canonical(weighted: Weighted, weight: np.ndarray) -> np.ndarray:
    """The stored weight as (g, out/g, in/g, positions)."""
    groups = len(weighted.in_ids)
    if weighted.layout == "conv":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if weighted.layout == "conv_transpose":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).swapaxes(1, 2)
    return (weight if weighted.layout == "rows" else weight.T)[None, :, :, None]


def stored(weighted: Weighted, array: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """The inverse of `canonical`; kernel: the spatial extents of a convolution."""
    groups, out, inside, _ = array.shape
    if weighted.layout == "conv":
        return array.reshape(groups * out, inside, *kernel)
    if weighted.layout == "conv_transpose":
        return array.swapaxes(1, 2).reshape(groups * inside, out, *kernel)
    matrix = array[0, :, :, 0]
    return np.ascontiguousarray(matrix if weighted.layout == "rows" else matrix.T)


def weight_of(flow: Flow, weighted: Weighted) -> np.ndarray:
    """The stored weight of a node."""
    value = flow.constant(weighted.node.inputs[weighted.weight])
    assert value is not None
    return value


def producer_rows(flow: Flow, group: ChannelGroup, link: Link) -> np.ndarray:
    """(n, d) float64: for each unit the weights that compute it, zeros where this producer has no row for it."""
    weight = canonical(link.weighted, weight_of(flow, link.weighted))
    rows = weight.reshape(weight.shape[0] * weight.shape[1], -1)
    if (link.places < 0).any():
        rows = np.concatenate([rows, np.zeros((1, rows.shape[1]), rows.dtype)])
    return rows[link.places].reshape(group.size, -1).astype(np.float64)


def producer_bias(flow: Flow, link: Link) -> np.ndarray | None:
    """(n, r) float64: the bias inside the producing node, zeros where it has none; None when it is not per channel."""
    node = link.node
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(link.places.shape)
    bias = flow.constant(node.inputs[2])
    if bias is None or bias.size not in (1, link.weighted.out_ids.size):
        return None
    scale = float(node.attrs.get("beta", 1.0)) / float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    values = np.broadcast_to(bias.reshape(-1).astype(np.float64) * scale, link.weighted.out_ids.size)
    return np.append(values, 0.0)[link.places]


def consumer_columns(group: ChannelGroup, link: Link, stored_weight: np.ndarray) -> np.ndarray:
    """(out, n, t * positions) float64: what the consumer does with each unit; zeros where it does not read it.

    A unit that stands at t positions of the consumer's channel axis (Flatten) has t blocks of weights. Grouped
    convolutions come as if dense, with zeros between the groups.
    """
    weight = canonical(link.weighted, stored_weight).astype(np.float64)
    groups, out, inside, positions = weight.shape
    blocks = np.zeros((groups, out, groups, inside, positions))
    blocks[np.arange(groups), :, np.arange(groups)] = weight
    dense = blocks.reshape(groups * out, groups * inside, positions)
    padded = np.concatenate([dense, np.zeros((groups * out, 1, positions))], axis=1)
    return padded[:, link.places].reshape(groups * out, group.size, -1)


def put_columns(link: Link, weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A stored weight with the group's columns, shaped as `consumer_columns` gives them, written into it."""
    array = canonical(link.weighted, weight).copy()
    groups, out, inside, positions = array.shape
    dense = np.zeros((groups * out, groups * inside + 1, positions), columns.dtype)
    dense[:, link.places] = columns.reshape(groups * out, *link.places.shape, positions)
    blocks = dense[:, :-1].reshape(groups, out, groups, inside, positions)[np.arange(groups), :, np.arange(groups)]
    own = np.zeros(groups * inside + 1, bool)
    own[link.places.reshape(-1)] = True
    own = own[:-1].reshape(groups, 1, inside, 1)
    return stored(link.weighted, np.where(own, blocks, array).astype(weight.dtype), kernel_of(link.weighted, weight))


def kernel_of(weighted: Weighted, weight: np.ndarray) -> tuple[int, ...]:
    """Spatial extents of a convolution's weight."""
    return weight.shape[2:] if weighted.layout.startswith("conv") else ()


def parameters_of(flow: Flow, node: gs.Node) -> int:
    """Number of constant numbers that a node reads as weights."""
    values = [flow.constant(tensor) for tensor in node.inputs if tensor.name]
    return sum(value.size for value in values if value is not None and np.issubdtype(value.dtype, np.floating))
