"""What a node was given besides data: attributes in older opsets, inputs in newer ones."""

from __future__ import annotations

import numpy as np

from onnxmerge.graph.channel_ids import Flow
from onnxmerge.graph.layers import Ids
from onnxmerge.onnxio import surgeon as gs


def parameter(flow: Flow, node: gs.Node, name: str, index: int | None) -> np.ndarray | None:
    """A parameter that older opsets keep in an attribute and newer ones in an input."""
    if name in node.attrs:
        return np.atleast_1d(np.asarray(node.attrs[name]))
    if index is not None and len(node.inputs) > index and node.inputs[index].name:
        value = flow.value(node.inputs[index])
        return None if value is None else np.atleast_1d(value)
    return None


def normalised(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return int(axis) + rank if axis < 0 else int(axis)


def expanded(flow: Flow, tensor: gs.Tensor) -> Ids | None:
    """The ids of every position."""
    shape = flow.shape(tensor)
    return None if shape is None else np.broadcast_to(flow.ids(tensor), shape)


def is_computed(flow: Flow, node: gs.Node) -> bool:
    return len(node.inputs) > 1 and bool(node.inputs[1].name) and flow.constant(node.inputs[1]) is None
