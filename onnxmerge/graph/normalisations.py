"""Normalisations along the last axis, as one operator or written out: (x - mean) / sqrt(mean of squares + epsilon) scale + shift.

LayerNormalization subtracts the mean over the channels, RMSNormalization does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.nodes import has_input, is_standard, node_key, non_negative_axis
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs

_CENTRED = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}


@dataclass(frozen=True, eq=False)
class Normalisation:
    """One normalisation.

    Attributes
    ----------
    nodes : tuple of Node
        What computes it, in topological order.
    source, output : Tensor
        What it reads and what it gives.
    scale, shift : ndarray of shape (channels,), float64
        What follows the division.
    epsilon : float
        What is added to the mean of the squares.
    is_centred : bool
        Whether the mean over the channels is subtracted first.
    """

    nodes: tuple[gs.Node, ...]
    source: gs.Tensor
    output: gs.Tensor
    scale: np.ndarray
    shift: np.ndarray
    epsilon: float
    is_centred: bool

    @property
    def means(self) -> frozenset[str]:
        """Keys of the nodes that sum over the channels."""
        return frozenset(node_key(node) for node in self.nodes if node.op in _CENTRED or node.op == "ReduceMean")

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """(n, channels) float64 of what it reads, (..., channels), before scale and shift."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        rows = rows - rows.mean(1, keepdims=True) if self.is_centred else rows
        return np.asarray(rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + self.epsilon))


def normalisations(facts: TensorFacts) -> list[Normalisation]:
    """All of a model, in topological order."""
    found = (_operator(facts, node) or _written_out(facts, node) for node in facts.model.graph.nodes if is_standard(node))
    return [each for each in found if each is not None]


def _operator(facts: TensorFacts, node: gs.Node) -> Normalisation | None:
    """A node that normalises along the last axis, with constant scale and shift, and gives nothing else that is read."""
    shape = facts.shape(node.inputs[0]) if node.op in _CENTRED else None
    if not shape or non_negative_axis(node.attrs.get("axis", -1), len(shape)) != len(shape) - 1:
        return None
    scale = _per_channel(facts, node.inputs[1], shape[-1])
    shift = _per_channel(facts, node.inputs[2], shape[-1]) if has_input(node, 2) else np.zeros(shape[-1])
    if scale is None or shift is None or any(facts.is_read(output) for output in node.outputs[1:]):
        return None
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return Normalisation((node,), node.inputs[0], node.outputs[0], scale, shift, epsilon, _CENTRED[node.op])


def _written_out(facts: TensorFacts, mean: gs.Node) -> Normalisation | None:
    """x / sqrt(mean of squares + epsilon) around the node that takes this mean, with what centres x, scales and shifts."""
    if not _is_mean_of_channels(facts, mean) or not mean.inputs[0].inputs:
        return None
    square, add = mean.inputs[0].inputs[0], _only_reader(facts, mean.outputs[0], "Add")
    root = None if add is None else _only_reader(facts, add.outputs[0], "Sqrt")
    epsilon = None if add is None else _number(facts, *(each for each in add.inputs if each is not mean.outputs[0]))
    x, channels = square.inputs[0], (facts.shape(mean.inputs[0]) or (0,))[-1]
    if add is None or root is None or epsilon is None or not _is_square(facts, square):
        return None
    division = _division(facts, x, root.outputs[0])
    if division is None or _only_reader(facts, square.outputs[0]) is not mean:
        return None
    centring = _centring(facts, x, {id(square), id(division[-1])})
    nodes, output = [*centring, square, mean, add, root, *division], division[-1].outputs[0]
    scale, shift = np.ones(channels), np.zeros(channels)
    for operator, numbers in (("Mul", scale), ("Add", shift)):
        reader = _only_reader(facts, output, operator)
        other = None if reader is None else next((each for each in reader.inputs if each is not output), None)
        value = None if other is None else _per_channel(facts, other, channels)
        if reader is not None and value is not None:
            numbers[:] = value
            nodes, output = [*nodes, reader], reader.outputs[0]
    source = centring[0].inputs[0] if centring else x
    return Normalisation(tuple(nodes), source, output, scale, shift, epsilon, bool(centring))


def _is_mean_of_channels(facts: TensorFacts, node: gs.Node) -> bool:
    """Whether a node takes the mean along the last axis and keeps that."""
    if node.op != "ReduceMean" or not node.attrs.get("keepdims", 1):
        return False
    axes, shape = facts.parameter(node, "axes", 1), facts.shape(node.inputs[0])
    return axes is not None and shape is not None and [non_negative_axis(axis, len(shape)) for axis in axes] == [len(shape) - 1]


def _is_square(facts: TensorFacts, node: gs.Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    return node.op == "Pow" and _number(facts, node.inputs[1]) == 2.0


def _division(facts: TensorFacts, x: gs.Tensor, root: gs.Tensor) -> tuple[gs.Node, ...] | None:
    """The nodes of x / root, or of x times 1 / root."""
    node = _only_reader(facts, root)
    if node is not None and node.op == "Div" and node.inputs[0] is x:
        return (node,)
    if node is None or not (node.op == "Reciprocal" or (node.op == "Div" and _number(facts, node.inputs[0]) == 1.0)):
        return None
    product = _only_reader(facts, node.outputs[0], "Mul")
    return (node, product) if product is not None and any(each is x for each in product.inputs) else None


def _centring(facts: TensorFacts, x: gs.Tensor, readers: set[int]) -> tuple[gs.Node, ...]:
    """The nodes of x = source - mean(source), where nothing but these readers (by `id`) reads x; () where x is no such thing."""
    node = x.inputs[0] if x.inputs else None
    if node is None or node.op != "Sub" or not node.inputs[1].inputs or {id(each) for each in x.outputs} != readers:
        return ()
    mean = node.inputs[1].inputs[0]
    is_mean = _is_mean_of_channels(facts, mean) and mean.inputs[0] is node.inputs[0]
    is_inner = is_mean and _only_reader(facts, mean.outputs[0]) is node and all(x is not each for each in _outputs(facts))
    return (mean, node) if is_inner else ()


def _only_reader(facts: TensorFacts, tensor: gs.Tensor, operator: str = "") -> gs.Node | None:
    """The only node that reads a tensor, where it is one of this operator."""
    if len({id(node) for node in tensor.outputs}) != 1 or any(tensor is each for each in _outputs(facts)):
        return None
    return tensor.outputs[0] if operator in ("", tensor.outputs[0].op) else None


def _outputs(facts: TensorFacts) -> Iterator[gs.Tensor]:
    return iter(facts.model.graph.outputs)


def _number(facts: TensorFacts, *tensors: gs.Tensor) -> float | None:
    """The value of a constant of one entry."""
    value = facts.constant(tensors[0]) if len(tensors) == 1 else None
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _per_channel(facts: TensorFacts, tensor: gs.Tensor, channels: int) -> np.ndarray | None:
    """(channels,) float64 of a constant that holds a number for each channel, or one for all."""
    value = facts.constant(tensor)
    if value is None or value.size not in (1, channels) or (value.ndim and value.shape[-1] != value.size):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), channels)
