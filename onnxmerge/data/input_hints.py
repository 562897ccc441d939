"""What the graph itself says of its inputs: how many ids an embedding knows, what a first BatchNormalization expects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from onnxmerge.data.input_slots import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.onnxio import surgeon as gs

SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout")


@dataclass(frozen=True)
class Hints:
    """By graph input: ids are below limits; values have mean and standard deviation (channels,) on axis 1."""

    limits: dict[str, int] = field(default_factory=dict)
    spreads: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def origin(tensor: gs.Tensor) -> gs.Tensor:
    """Where a tensor's values come from, behind operators that only change its shape or type."""
    while isinstance(tensor, gs.Variable) and len(tensor.inputs) == 1 and tensor.inputs[0].op in SHAPE_ONLY:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def hints_of(channels: Channels) -> Hints:
    """Read the graph's first layers."""
    found = Hints()
    names = {tensor.name for tensor in channels.model.graph.inputs}
    for node in channels.model.graph.nodes:
        if node.op == "Gather" and (table := channels.constant(node.inputs[0])) is not None and not node.attrs.get("axis", 0):
            name = origin(node.inputs[1]).name
            if name in names:
                found.limits[name] = min(found.limits.get(name, len(table)), len(table))
        if node.op == "BatchNormalization" and node.inputs[0].name in names:
            mean, variance = channels.constant(node.inputs[3]), channels.constant(node.inputs[4])
            if mean is not None and variance is not None and mean.ndim == 1:
                found.spreads[node.inputs[0].name] = mean.astype(np.float64), np.sqrt(variance.astype(np.float64))
    return found


def spread(inputs: Inputs, hints: Hints) -> Inputs:
    """Synthetic inputs of zero mean and unit variance, moved to what a first BatchNormalization expects."""
    if not hints.spreads:
        return inputs

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = inputs.take(indices)
        for name, (mean, deviation) in hints.spreads.items():
            value = feeds[name]
            shape = (1, -1) + (1,) * (value.ndim - 2)
            feeds[name] = (value * deviation.reshape(shape) + mean.reshape(shape)).astype(value.dtype)
        return feeds

    return replace(inputs, take=take, source=f"{inputs.source}, scaled as the first BatchNormalization expects")
