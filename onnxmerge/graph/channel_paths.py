"""Pairs of layers with nothing between them that mixes channels: elementwise operators, depthwise convolutions and poolings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input, is_standard
from onnxmerge.onnxio import surgeon as gs

DIFFERENTIABLE = frozenset(
    {"BatchNormalization", "Identity", "Dropout", "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "Sigmoid"}
    | {"HardSigmoid", "HardSwish", "Swish", "Mish", "Gelu", "Tanh", "Softplus", "Softsign", "Erf", "Add", "Sub", "Mul", "Div"}
)
"""Elementwise operators with a derivative nearly everywhere; those that join take constants, or other values of the path."""


@dataclass(frozen=True, eq=False)
class ChannelWindow:
    """What gives each channel from windows of its own values: a depthwise convolution, or a pooling.

    Attributes
    ----------
    attributes : mapping
        Of the node: strides, padding, dilations.
    kernel : tuple of int
        Spatial extents of a window.
    weight : ndarray of shape (channels or 1, kernel size or 1)
        What the values of a window are multiplied with and summed; ones for a MaxPool.
    bias : ndarray of shape (channels or 1,)
        What is added to that.
    is_max : bool
        Whether the largest value is taken in the place of the sum; windows lie side by side then.
    """

    attributes: Mapping[str, Any]
    kernel: tuple[int, ...]
    weight: np.ndarray
    bias: np.ndarray
    is_max: bool = False


@dataclass(frozen=True, eq=False)
class PathStage:
    """An elementwise function, and the windows that are taken of what it gives.

    Attributes
    ----------
    source, activation : str
        Names of the tensors that the function reads and gives.
    gates : tuple of str
        Names of the computed tensors (N, channels, 1, ...) that the function reads too.
    window : ChannelWindow or None
        None at the end of the path.
    """

    source: str
    activation: str
    gates: tuple[str, ...] = ()
    window: ChannelWindow | None = None


@dataclass(frozen=True, eq=False)
class ChannelPath:
    """From a producer to the layer that alone passes on what depends on it.

    Attributes
    ----------
    producer, consumer : Layer
        Both convolutions without groups, or both matrix products.
    stages : tuple of PathStage
        In the order of the graph; matrix products have one, without windows.
    """

    producer: Layer
    consumer: Layer
    stages: tuple[PathStage, ...]

    @property
    def gates(self) -> list[str]:
        """Names of the gates of all stages."""
        return [name for stage in self.stages for name in stage.gates]


def channel_path(channels: Channels, producer: Layer, consumer: Layer) -> ChannelPath | None:
    """The path between two layers; None where there is none of this kind, or what depends on the producer leads elsewhere too."""
    if not (_is_plain(producer) and _is_plain(consumer)) or (producer.layout == "conv") != (consumer.layout == "conv"):
        return None
    rank = len(channels.shape(producer.data) or ())
    if producer.layout != "conv" and not producer.output_axis == consumer.input_axis == producer.input_axis == rank - 1 > 0:
        return None
    stages, last, window = list[PathStage](), consumer.data, None
    while not stages or stages[0].source != producer.key:
        found = _function(channels, last, producer)
        if found is None:
            return None
        source, gates = found
        stages.insert(0, PathStage(str(source.name), str(last.name), gates, window))
        if source.name != producer.key:
            last, window = source.inputs[0].inputs[0], _window(channels, source.inputs[0])
    return ChannelPath(producer, consumer, tuple(stages)) if _leads_nowhere_else(channels, producer, consumer) else None


def _is_plain(layer: Layer) -> bool:
    reads = layer.layout != "conv" or _reads_everywhere(layer.node.attrs, layer.kernel_shape)
    return layer.is_linear and layer.has_patches and layer.groups == 1 and reads


def _reads_everywhere(attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> bool:
    """Whether every output of a convolution reads some input, and none padding alone."""
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return True
    reach = [(extent - 1) * apart for extent, apart in zip(kernel, attributes.get("dilations", (1,) * len(kernel)), strict=True)]
    return all(pad <= most for pad, most in zip(attributes.get("pads", (0,) * 2 * len(kernel)), 2 * reach, strict=True))


def _leads_nowhere_else(channels: Channels, producer: Layer, consumer: Layer) -> bool:
    """Whether what depends on the producer reaches the model's outputs through the consumer alone."""
    pending, seen = [producer.node], {id(producer.node), id(consumer.node)}
    while pending:
        for tensor in pending.pop().outputs:
            if tensor in channels.model.graph.outputs:
                return False
            new = [node for node in tensor.outputs if id(node) not in seen]
            seen.update(map(id, new))
            pending.extend(new)
    return True


def _function(channels: Channels, last: gs.Tensor, producer: Layer) -> tuple[gs.Tensor, tuple[str, ...]] | None:
    """The tensor that `last` is an elementwise function of, the producer's output or what windows give, and names of gates."""
    pending, seen, sources, gates = [last], {last.name}, dict[str, gs.Tensor](), list[str]()
    while pending:
        tensor = pending.pop()
        node = tensor.inputs[0] if tensor.inputs else None
        if tensor.name == producer.key or (node is not None and _window(channels, node) is not None):
            sources[tensor.name] = tensor
            continue
        if node is None or not _is_elementwise(channels, node, tensor, producer):
            return None
        for each in node.inputs:
            if not each.name or each.name in seen or channels.constant(each) is not None:
                continue
            seen.add(each.name)
            if producer.layout == "conv" and _is_gate(channels, each, tensor):
                gates.append(str(each.name))
            else:
                pending.append(each)
    return (next(iter(sources.values())), tuple(gates)) if len(sources) == 1 else None


def _is_gate(channels: Channels, tensor: gs.Tensor, output: gs.Tensor) -> bool:
    """Whether a tensor has one value for each channel where what is computed from it has one for each position."""
    shape, whole = channels.shape(tensor) or (), channels.shape(output) or ()
    return len(shape) == len(whole) > 2 and shape[:2] == whole[:2] and math.prod(shape[2:]) == 1 < math.prod(whole[2:])


def _window(channels: Channels, node: gs.Node) -> ChannelWindow | None:
    """What a node takes windows with; None where it is no depthwise convolution and no pooling that a block can hold."""
    attributes, kernel = node.attrs, tuple(node.attrs.get("kernel_shape", ()))
    if not is_standard(node) or len(node.outputs) != 1:
        return None
    if node.op in ("MaxPool", "AveragePool") and _is_plain_pooling(attributes, kernel):
        is_max = node.op == "MaxPool"
        share = np.full((1, 1), 1.0 if is_max else 1.0 / math.prod(kernel))
        are_apart = kernel == tuple(attributes.get("strides", (1,) * len(kernel)))
        return ChannelWindow(attributes, kernel, share, np.zeros(1), is_max) if are_apart or not is_max else None
    if node.op == "Conv":
        weight = channels.constant(node.inputs[1])
        bias = channels.constant(node.inputs[2]) if has_input(node, 2) else np.zeros(1, np.float32)
        if weight is None or bias is None or not len(weight) == attributes.get("group", 1) > weight.shape[1] == 1:
            return None
        kernel = tuple(weight.shape[2:])
        own = weight.reshape(len(weight), -1)
        return ChannelWindow(attributes, kernel, own, bias) if _reads_everywhere(attributes, kernel) else None
    return None


def _is_plain_pooling(attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> bool:
    """Whether every window of a pooling is whole, without padding, and of neighbours."""
    plain = not any(attributes.get("pads", ())) and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return plain and bool(kernel) and not attributes.get("ceil_mode", 0) and set(attributes.get("dilations", (1,))) == {1}


def _is_elementwise(channels: Channels, node: gs.Node, output: gs.Tensor, producer: Layer) -> bool:
    """Whether a node computes every value from one of each of its inputs, with constants that depend on the channel alone."""
    if (
        node.op not in DIFFERENTIABLE
        or not is_standard(node)
        or node.attrs.get("training_mode", 0)
        or (node.op == "Dropout" and len(node.inputs) > 2)  # it may be told to drop
        or output is not node.outputs[0]
    ):
        return False
    if node.op == "BatchNormalization":
        return all(channels.constant(each) is not None for each in node.inputs[1:5]) and producer.output_axis == 1
    constants = [value for value in map(channels.constant, node.inputs) if value is not None]
    return all(_depends_on_channel(value, producer.output_rank - producer.output_axis) for value in constants)


def _depends_on_channel(value: np.ndarray, axis: int) -> bool:
    """Whether all extents are 1 but that of the channel axis, counted from the end."""
    return all(extent == 1 or value.ndim - at == axis for at, extent in enumerate(value.shape))
