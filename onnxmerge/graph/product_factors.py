"""Products of query and key whose factors are linear in what layers write: a basis of the channels of both may be changed.

logits = q . k for each pair of positions, so that q' = A^T q and k' = B^T k give them anew where A B^T is near the identity. The
layers that write q and k take A and B in, if nothing but moves, biases and scales that are alike for all channels lies between.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_propagation import Product
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import is_standard
from onnxmerge.onnxio import surgeon as gs

# Operators that move values and change none.
_MOVING = frozenset(
    {
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Split",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "Identity",
        "Concat",
    }
)


@dataclass(frozen=True, eq=False)
class LinearFactor:
    """One factor of a product, as a layer writes it.

    Attributes
    ----------
    layer : Layer
        The layer.
    positions : ndarray of shape (rows, k)
        Where the channels of each row (head) stand on the layer's flattened outputs.
    """

    layer: Layer
    positions: np.ndarray


def channels_of_rows(channels: Channels, group: ChannelGroup, product: Product) -> np.ndarray:
    """(rows, k) which channel of a group stands where in a product, -1 for those of no channel of it."""
    index = np.full(channels.id_count, -1)
    index[group.channel_ids] = np.arange(group.size)
    return np.asarray(np.where(product.ids > 0, index[product.ids], -1))


def linear_factors(channels: Channels, group: ChannelGroup, product: Product) -> tuple[LinearFactor, LinearFactor] | None:
    """The factors of a group's product; None where one is not linear in a layer, or something else reads weight or channels."""
    rows = channels_of_rows(channels, group, product)
    blocks = np.unique(rows, axis=0)
    if len(group.products) > 1 or len(np.unique(blocks)) < blocks.size or (blocks < 0).any():
        return None
    passed: set[int] = {id(product.node)}
    factors = []
    for source, tensor in zip(product.sources, product.node.inputs[:2], strict=True):
        if (
            source is None
            or source[0].key in channels.shared_weight_keys
            or not _passes_linearly(channels, source[0], tensor, passed)
        ):
            return None
        layer, positions = source
        factors.append(LinearFactor(layer, np.broadcast_to(positions, product.factors[0].shape).reshape(rows.shape)))
    query, key = factors
    if query.layer is key.layer and np.isin(query.positions, key.positions).any():
        return None
    for producer in group.producers:  # heads that lose the same channels stand in one row, with positions of only one of them
        written = producer.positions[blocks]
        covered = np.unique(np.concatenate([each.positions[each.layer is producer.layer] for each in factors], axis=None))
        if not np.array_equal(np.unique(written[written >= 0]), covered):
            return None
    own = group.channel_ids[np.unique(blocks)]
    return None if _read_elsewhere(channels, own, passed) else (query, key)


def _read_elsewhere(channels: Channels, own: np.ndarray, passed: set[int]) -> bool:
    """Whether the channels of these ids reach a graph output, or a node that was not passed and does not pick others."""

    is_own = np.zeros(channels.id_count, bool)
    is_own[own] = True

    def carries(tensors: Iterable[gs.Tensor]) -> bool:
        return any(tensor.name in channels.tensor_ids and is_own[channels.tensor_ids[tensor.name]].any() for tensor in tensors)

    others = [
        node for node in channels.model.graph.nodes if id(node) not in passed and node.op != "Shape" and carries(node.inputs)
    ]
    return carries(channels.model.graph.outputs) or any(node.op not in _MOVING or carries(node.outputs) for node in others)


def _passes_linearly(channels: Channels, layer: Layer, tensor: gs.Tensor, passed: set[int]) -> bool:
    """Whether nothing but moves, scales for all channels, and a bias right behind the layer lie before a tensor.

    passed: gets the nodes between, by `id`.
    """
    while tensor.inputs:
        node = tensor.inputs[0]
        if node is layer.node:
            return layer.is_linear and layer.groups == 1
        carrying = [index for index, each in enumerate(node.inputs) if channels.ids(each).any()]
        if not is_standard(node) or len({node.inputs[index].name for index in carrying}) != 1:
            return False
        if node.op in ("Mul", "Div"):
            other = node.inputs[1 - carrying[0]]
            constant = channels.constant(other)
            if (constant is not None and constant.size > 1) or (node.op == "Div" and carrying[0] != 0):
                return False
        elif node.op == "Add":
            if node is not bias_behind(channels, layer):
                return False
        elif node.op not in _MOVING:
            return False
        passed.add(id(node))
        tensor = node.inputs[carrying[0]]
    return False


def bias_behind(channels: Channels, layer: Layer) -> gs.Node | None:
    """The Add right behind a layer that adds a constant for each output."""
    following = layer.node.outputs[0].outputs
    if len(following) != 1 or following[0].op != "Add":
        return None
    sizes = [parameter.ids.size for parameter in channels.parameters if parameter.node is following[0]]
    return following[0] if sizes == [layer.out_ids.size] else None


def constant_behind(channels: Channels, layer: Layer) -> np.ndarray:
    """(out,) float64: what `bias_behind` adds; zeros without one."""
    node = bias_behind(channels, layer)
    values = [] if node is None else [channels.constant(tensor) for tensor in node.inputs]
    return next((value.astype(np.float64).reshape(-1) for value in values if value is not None), np.zeros(layer.out_ids.size))
