"""Pairs of layers with nothing but elementwise operators between them, and at most a pooling at the end."""

from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import is_standard
from onnxmerge.onnxio import surgeon as gs

DIFFERENTIABLE = frozenset(
    {"BatchNormalization", "Identity", "Dropout", "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "Sigmoid"}
    | {"HardSigmoid", "HardSwish", "Swish", "Mish", "Gelu", "Tanh", "Softplus", "Softsign", "Erf", "Add", "Sub", "Mul", "Div"}
)
"""Elementwise operators with a derivative nearly everywhere; those that join take constants, or other values of the path."""


@dataclass(frozen=True, eq=False)
class ElementwisePath:
    """From a producer to the only layer that reads it.

    Attributes
    ----------
    producer, consumer : Layer
        Both convolutions without groups, or both matrix products.
    activation : str
        Name of the last tensor that is an elementwise function of the producer's output.
    pool : tuple of int
        Extents of the windows whose largest values the consumer reads, side by side; () without pooling.
    """

    producer: Layer
    consumer: Layer
    activation: str
    pool: tuple[int, ...] = ()


def elementwise_path(channels: Channels, producer: Layer, consumer: Layer) -> ElementwisePath | None:
    """The path between two layers; None where there is none of this kind, or something else reads it."""
    if not (_is_plain(producer) and _is_plain(consumer)) or (producer.layout == "conv") != (consumer.layout == "conv"):
        return None
    is_conv = producer.layout == "conv"
    shape = channels.shape(producer.data) or ()
    if not is_conv and not producer.output_axis == consumer.input_axis == producer.input_axis == len(shape) - 1 > 0:
        return None
    last, pool = consumer.data, tuple[int, ...]()
    if is_conv and last.inputs and last.inputs[0].op == "MaxPool" and _is_read_by(channels, last, {id(consumer.node)}):
        pool = _side_by_side(last.inputs[0])
        if not pool:
            return None
        last = last.inputs[0].inputs[0]
    nodes, tensors = dict[int, gs.Node](), {consumer.data.name: consumer.data, last.name: last}
    pending = [last]
    while pending:
        tensor = pending.pop()
        if tensor.name == producer.key:
            continue
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or not _is_elementwise(channels, node, tensor, producer):
            return None
        nodes[id(node)] = node
        for each in node.inputs:
            if each.name and channels.constant(each) is None and each.name not in tensors:
                tensors[each.name] = each
                pending.append(each)
    readers = nodes.keys() | {id(consumer.node)} | ({id(consumer.data.inputs[0])} if pool else set())
    closed = producer.key in tensors and all(_is_read_by(channels, tensor, readers) for tensor in tensors.values())
    closed = closed and [id(node) for node in consumer.data.outputs] == [id(consumer.node)]
    return ElementwisePath(producer, consumer, str(last.name), pool) if closed else None


def _is_plain(layer: Layer) -> bool:
    return layer.is_linear and layer.has_patches and layer.groups == 1 and (layer.layout != "conv" or _reads_everywhere(layer))


def _reads_everywhere(layer: Layer) -> bool:
    """Whether every output of a convolution reads some input, and none padding alone."""
    kernel, attributes = layer.kernel_shape, layer.node.attrs
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return True
    reach = [(extent - 1) * apart for extent, apart in zip(kernel, attributes.get("dilations", (1,) * len(kernel)), strict=True)]
    return all(pad <= most for pad, most in zip(attributes.get("pads", (0,) * 2 * len(kernel)), 2 * reach, strict=True))


def _is_read_by(channels: Channels, tensor: gs.Tensor, nodes: set[int]) -> bool:
    """Whether these nodes alone read a tensor."""
    return tensor not in channels.model.graph.outputs and all(id(node) in nodes for node in tensor.outputs)


def _side_by_side(node: gs.Node) -> tuple[int, ...]:
    """Extents of the windows of a MaxPool that meet without gaps or overlaps; () for any other."""
    attributes, kernel = node.attrs, tuple(node.attrs.get("kernel_shape", ()))
    plain = kernel == tuple(attributes.get("strides", (1,) * len(kernel))) and not any(attributes.get("pads", ()))
    plain = plain and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not attributes.get("ceil_mode", 0)
    plain = plain and set(attributes.get("dilations", (1,))) == {1} and len(node.outputs) == 1
    return kernel if plain and is_standard(node) else ()


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
