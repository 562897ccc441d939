"""Weights that several nodes read: they shrink in the same way for all of them, or not at all.

Identity of initializers decides, not equality of values: two layers that were initialised alike share nothing.
"""

from collections import defaultdict

import numpy as np

from onnxmerge.errors import Reason, refusal
from onnxmerge.graph.channel_ids import Ids
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import node_name
from onnxmerge.onnxio import surgeon as gs

# Initializers of fewer elements are not counted as shared: exporters give many nodes one scalar, and it is copied without harm.
_SMALLEST_SHARED = 2


class SharedWeights:
    """Which initializers the weights of layers are made from, and which other nodes read those."""

    def __init__(self, propagation: ChannelPropagation) -> None:
        self._propagation = propagation
        self._initializers: dict[str, frozenset[str]] = {}
        self._readers: dict[str, list[gs.Node]] = defaultdict(list)
        for node in propagation.facts.model.graph.nodes:
            if any(output.name and propagation.constant(output) is None for output in node.outputs):
                for tensor in node.inputs:
                    for name in self._initializers_of(tensor):
                        self._readers[name].append(node)
        self._layers: dict[str, list[Layer]] = defaultdict(list)
        for layer in propagation.layers:
            for name in self._initializers_of(layer.node.inputs[layer.weight_input]):
                self._layers[name].append(layer)

    @property
    def layer_keys(self) -> frozenset[str]:
        """Keys of the layers whose weight is made from an initializer that the weight of another layer is made from too."""
        return frozenset(layer.key for layers in self._layers.values() if len(layers) > 1 for layer in layers)

    def unite_channels(self) -> None:
        """Unite the channels of all layers that share a weight; where something reads the weight in another way, pin them."""
        for name, layers in self._layers.items():
            nodes = {id(layer.node) for layer in layers}
            other = next((node for node in self._readers[name] if id(node) not in nodes), None)
            if other is not None:
                for layer in layers:
                    self._pin(layer, Reason.WEIGHT_READ_ELSEWHERE, name, node_name(other))
                continue
            first = layers[0]
            for layer in layers[1:]:
                if _is_transposed(layer, first):
                    self._unite(layer.in_ids, first.out_ids, name)
                    self._unite(layer.out_ids, first.in_ids, name)
                elif _way_of_reading(layer) == _way_of_reading(first):
                    self._unite(layer.in_ids, first.in_ids, name)
                    self._unite(layer.out_ids, first.out_ids, name)
                else:
                    self._pin(layer, Reason.WEIGHT_READ_IN_TWO_WAYS, name)
                    self._pin(first, Reason.WEIGHT_READ_IN_TWO_WAYS, name)

    def _pin(self, layer: Layer, reason: Reason, initializer: str, node: str = "") -> None:
        why = refusal(layer.name, reason, tensor=initializer, node=node)
        self._propagation.pin(layer.in_ids, why)
        self._propagation.pin(layer.out_ids, why)

    def _unite(self, left: Ids, right: Ids, initializer: str) -> None:
        """Unite two id arrays; an id that meets 0 stays."""
        self._propagation.united.unite(left, right)
        why = refusal("", Reason.WEIGHT_SHARED_WITH_FIXED, tensor=initializer)
        self._propagation.pin(left[right == 0], why)
        self._propagation.pin(right[left == 0], why)

    def _initializers_of(self, tensor: gs.Tensor) -> frozenset[str]:
        """Names of the initializers that a constant tensor is made from; none for a tensor that is not constant."""
        if tensor.name not in self._initializers:
            self._initializers[tensor.name] = self._search(tensor)
        return self._initializers[tensor.name]

    def _search(self, tensor: gs.Tensor) -> frozenset[str]:
        value = self._propagation.constant(tensor)
        if value is None:
            return frozenset()
        computed_by = [] if isinstance(tensor, gs.Constant) else [node for node in tensor.inputs if node.inputs]
        if computed_by:
            return frozenset().union(*(self._initializers_of(source) for source in computed_by[0].inputs))
        counts = value.size >= _SMALLEST_SHARED and not np.issubdtype(value.dtype, np.integer)
        return frozenset([tensor.name]) if counts else frozenset()


def _is_transposed(one: Layer, other: Layer) -> bool:
    """Whether the outputs of one are the inputs of the other and the reverse: a decoder tied with its encoder."""
    left, right = (layer.canonical(layer.stored_weight) for layer in (one, other))
    if left.shape[::3] != (1, 1) or left.shape != right.swapaxes(1, 2).shape or np.array_equal(left, right):
        return False
    return np.array_equal(left, right.swapaxes(1, 2))


def _way_of_reading(layer: Layer) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return layer.layout, layer.in_ids.shape, layer.out_ids.shape
