"""What the first layers of a graph say of its inputs: the ids that an embedding knows, the mean and scale that a first
BatchNormalization expects."""

from dataclasses import dataclass, field, replace

import numpy as np

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.onnxio import surgeon as gs

# Operators that change the shape or the type of a tensor, but none of its values.
SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout")


@dataclass(frozen=True)
class InputProperties:
    """What is known of the values of graph inputs.

    Attributes
    ----------
    id_limits : exclusive upper bound of the ids, by input that indexes an embedding
    mean_and_std : mean and standard deviation (channels,), (channels,) along axis 1, by input of a first BatchNormalization
    """

    id_limits: dict[str, int] = field(default_factory=dict)
    mean_and_std: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def origin(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that another one's values come from, through operators that only change shape or type."""
    while isinstance(tensor, gs.Variable) and len(tensor.inputs) == 1 and tensor.inputs[0].op in SHAPE_ONLY:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def input_properties(channels: Channels) -> InputProperties:
    """What an analysed graph says of its inputs: of Gather along axis 0 of a constant, and of a first BatchNormalization."""
    properties = InputProperties()
    limits = properties.id_limits
    names = {tensor.name for tensor in channels.model.graph.inputs}
    for node in channels.model.graph.nodes:
        if node.op == "Gather" and (table := channels.constant(node.inputs[0])) is not None and not node.attrs.get("axis", 0):
            name = origin(node.inputs[1]).name
            if name in names:
                limits[name] = min(limits.get(name, len(table)), len(table))
        if node.op == "BatchNormalization" and node.inputs[0].name in names:
            mean, variance = channels.constant(node.inputs[3]), channels.constant(node.inputs[4])
            if mean is not None and variance is not None and mean.ndim == 1:
                statistics = mean.astype(np.float64), np.sqrt(variance.astype(np.float64))
                properties.mean_and_std[node.inputs[0].name] = statistics
    return properties


def scaled_for_batchnorm(inputs: Inputs, properties: InputProperties) -> Inputs:
    """Synthetic inputs x of zero mean and unit variance as std x + mean, with mean and std of a first BatchNormalization."""
    if not properties.mean_and_std:
        return inputs

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = inputs.take(indices)
        for name, (mean, std) in properties.mean_and_std.items():
            value = feeds[name]
            shape = (1, -1) + (1,) * (value.ndim - 2)
            feeds[name] = (value * std.reshape(shape) + mean.reshape(shape)).astype(value.dtype)
        return feeds

    return replace(inputs, take=take, description=f"{inputs.description}, scaled as the first BatchNormalization expects")
