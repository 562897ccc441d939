"""Weights that several nodes read: they shrink in the same way for all of them, or not at all."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from onnxmerge.errors import Reason, refusal
from onnxmerge.graph.channel_ids import Flow
from onnxmerge.graph.layers import Ids, Layer, label
from onnxmerge.onnxio import surgeon as gs

_SMALL = 2  # initializers of fewer elements (scalars) are shared by chance and copied without harm


def unite_shared_weights(flow: Flow) -> None:
    """Unite the ids of all users of a weight; users that read it in another way pin it."""
    leaves = _Leaves(flow)
    uses: dict[str, list[gs.Node]] = defaultdict(list)
    for node in flow.model.graph.nodes:
        if any(output.name and flow.constant(output) is None for output in node.outputs):
            for tensor in node.inputs:
                for leaf in leaves.of(tensor):
                    uses[leaf].append(node)
    by_leaf: dict[str, list[Layer]] = defaultdict(list)
    for layer in flow.layers:
        for leaf in leaves.of(layer.node.inputs[layer.weight_input]):
            by_leaf[leaf].append(layer)
    for leaf, users in by_leaf.items():
        ours = {id(layer.node) for layer in users}
        others = [node for node in uses[leaf] if id(node) not in ours]
        first = users[0]
        for user in users:
            if others:
                _pin(flow, user, Reason.WEIGHT_READ_ELSEWHERE, leaf, label(others[0]))
            elif (user.layout, user.in_ids.shape, user.out_ids.shape) != (first.layout, first.in_ids.shape, first.out_ids.shape):
                _pin(flow, user, Reason.WEIGHT_READ_IN_TWO_WAYS, leaf)
                _pin(flow, first, Reason.WEIGHT_READ_IN_TWO_WAYS, leaf)
            else:
                _same(flow, user.in_ids, first.in_ids, leaf)
                _same(flow, user.out_ids, first.out_ids, leaf)


def _pin(flow: Flow, layer: Layer, reason: Reason, tensor: str, node: str = "") -> None:
    why = refusal(layer.name, reason, tensor=tensor, node=node)
    flow.pin(layer.in_ids, why)
    flow.pin(layer.out_ids, why)


def _same(flow: Flow, left: Ids, right: Ids, leaf: str) -> None:
    """Unite two id arrays; an id that meets 0 stays."""
    flow.unite(left, right)
    why = refusal("", Reason.WEIGHT_SHARED_WITH_FIXED, tensor=leaf)
    flow.pin(left[right == 0], why)
    flow.pin(right[left == 0], why)


class _Leaves:
    """Names of the initializers that a constant tensor is made from."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._found: dict[str, frozenset[str]] = {}

    def of(self, tensor: gs.Tensor) -> frozenset[str]:
        """The leaves, empty for a tensor that is not constant."""
        if tensor.name not in self._found:
            self._found[tensor.name] = self._search(tensor)
        return self._found[tensor.name]

    def _search(self, tensor: gs.Tensor) -> frozenset[str]:
        value = self._flow.constant(tensor) if tensor.name else None
        if value is None:
            return frozenset()
        makers = [] if isinstance(tensor, gs.Constant) else [node for node in tensor.inputs if node.inputs]
        if makers:
            return frozenset().union(*(self.of(source) for source in makers[0].inputs))
        own = value.size >= _SMALL and not np.issubdtype(value.dtype, np.integer)
        return frozenset([tensor.name]) if own else frozenset()
