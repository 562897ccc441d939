"""Models with known answers for merging: half of a producer's channels are positive multiples of the other half."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

AFFINE = ("BatchNormalization", "Add", "Mul", "Sub", "Div")


@dataclass(frozen=True)
class Duplicates:
    """`model` in which channel `copy` of every named producer gives `factor` times channel `base`, after its affine steps.

    The pairs are neighbours: (0, 1), (2, 3), ..., counted anew in every group of a grouped producer; an odd channel at the
    end stays alone. So they also lie in one group of a grouped consumer with an even number of channels a group.
    Rows of the bases have norm 1 and those of the copies |row_factor| in 0.3..0.6: a norm criterion keeps the bases.
    `tensors` are the names of the tensors (one a producer) in which the factor holds.
    """

    model: onnx.ModelProto
    base: np.ndarray
    copy: np.ndarray
    factor: np.ndarray
    row_factor: np.ndarray
    tensors: tuple[str, ...]


def scaled_duplicates(
    model: onnx.ModelProto, *producers: str, seed: int = 0, same_factor: bool = False, negative: bool = False
) -> Duplicates:
    """A copy of `model` with duplicated channels; several `producers` are tied and get the same factors.

    A producer may be followed by BatchNormalization and by Add, Sub, Mul or Div with a constant; behind a
    BatchNormalization the factor of the activation differs from that of the row. `same_factor`: one factor for all pairs.
    `negative`: the copies are negative multiples, which no method may merge through Relu.
    Weights that are no initializer, or have several consumers, raise ValueError.
    """
    weights = Weights(onnx.ModelProto.FromString(model.SerializeToString()))
    nodes = [weights.node(name) for name in producers]
    channels = len(weights.rows(nodes[0]))
    size = channels // max(read_attributes(node).get("group", 1) for node in nodes)
    base = np.array([start + i for start in range(0, channels, size) for i in range(0, size - 1, 2)])
    copy = base + 1
    rng, count = np.random.default_rng(seed), 1 if same_factor else len(base)
    row_factor = rng.uniform(0.3, 0.6, count) * np.ones(len(base)) * (-1 if negative else 1)
    factor = rng.uniform(0.3, 0.6, count) * np.ones(len(base)) * (-1 if negative else 1)
    if not any(step.op_type == "BatchNormalization" for node in nodes for step in weights.affine_steps(node)):
        factor = row_factor
    for node in nodes:
        weights.duplicate(node, Pairs(channels, base, copy), row_factor, factor)
    tensors = tuple([node, *weights.affine_steps(node)][-1].output[0] for node in nodes)
    return Duplicates(weights.model, base, copy, factor, row_factor, tensors)


@dataclass(frozen=True)
class Pairs:
    channels: int
    base: np.ndarray
    copy: np.ndarray


class Weights:
    """The initializers of a model by name, with writes that go through."""

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants = set(self.tensors)
        for node in self.nodes:
            if self.constants.issuperset(node.input):
                self.constants.update(node.output)

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def get(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f"{name!r} is no initializer")
        return numpy_helper.to_array(self.tensors[name]).astype(np.float64)

    def put(self, name: str, values: np.ndarray) -> None:
        if sum(list(node.input).count(name) for node in self.nodes) > 1:
            raise ValueError(f"initializer {name!r} has several consumers")
        kind = numpy_helper.to_array(self.tensors[name]).dtype
        self.tensors[name].CopyFrom(numpy_helper.from_array(values.astype(kind), name))

    def weight_name(self, node: onnx.NodeProto) -> str:
        """Of a MatMul with the weight on the left it is the first input."""
        return node.input[0] if node.op_type == "MatMul" and node.input[0] in self.constants else node.input[1]

    def rows_are_columns(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Gemm":
            return not read_attributes(node).get("transB", 0)
        return node.op_type == "MatMul" and node.input[0] not in self.constants

    def rows(self, node: onnx.NodeProto) -> np.ndarray:
        """The producer's weights as (out, ...), a new array."""
        weight = self.get(self.weight_name(node))
        if node.op_type == "ConvTranspose":
            group = read_attributes(node).get("group", 1)
            apart = weight.reshape(group, -1, *weight.shape[1:])
            return np.swapaxes(apart, 1, 2).reshape(-1, apart.shape[1], *weight.shape[2:])
        return weight.T if self.rows_are_columns(node) else weight

    def put_rows(self, node: onnx.NodeProto, rows: np.ndarray) -> None:
        if node.op_type == "ConvTranspose":
            group = read_attributes(node).get("group", 1)
            apart = np.swapaxes(rows.reshape(group, -1, *rows.shape[1:]), 1, 2)
            rows = apart.reshape(-1, *apart.shape[2:])
        self.put(self.weight_name(node), rows.T if self.rows_are_columns(node) else rows)

    def affine_steps(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The chain of affine nodes with constants directly after the producer."""
        steps: list[onnx.NodeProto] = []
        while True:
            layers = [other for other in self.nodes if node.output[0] in other.input]
            if len(layers) != 1 or not self.is_affine(layers[0], node.output[0]):
                return steps
            node = layers[0]
            steps.append(node)

    def is_affine(self, node: onnx.NodeProto, tensor: str) -> bool:
        known = all(name in self.constants for name in node.input if name != tensor)
        turned = node.op_type in ("Sub", "Div") and node.input[0] != tensor
        return known and node.op_type in AFFINE and not turned

    def duplicate(self, node: onnx.NodeProto, pairs: Pairs, row_factor: np.ndarray, factor: np.ndarray) -> None:
        rows = self.rows(node)
        shape = rows.shape
        rows = rows.reshape(len(rows), -1)
        rows[pairs.base] /= np.linalg.norm(rows[pairs.base], axis=1, keepdims=True)
        rows[pairs.copy] = rows[pairs.base] * row_factor[:, None]
        self.put_rows(node, rows.reshape(shape))
        if len(node.input) > 2:
            self.repeat(node.input[2], pairs, row_factor)
        current = row_factor
        for step in self.affine_steps(node):
            current = self.repeat_step(step, pairs, current, factor)
        if not np.allclose(current, factor):
            raise ValueError(f"{node.name}: tied producers with and without BatchNormalization")

    def repeat_step(self, step: onnx.NodeProto, pairs: Pairs, current: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Keep the copies at `current` times the bases, or lead them to `factor` in BatchNormalization; the new factor."""
        if step.op_type != "BatchNormalization":
            name = next(name for name in step.input if name in self.constants)
            values = self.get(name)
            if step.op_type in ("Add", "Sub"):
                self.repeat(name, pairs, current)
            elif values.size > 1:
                self.repeat(name, pairs, np.ones_like(current))
            return current
        epsilon = read_attributes(step).get("epsilon", 1e-5)
        scale, shift, mean, variance = step.input[1:5]
        self.repeat(scale, pairs, factor * np.sign(current))
        self.repeat(shift, pairs, factor)
        self.repeat(mean, pairs, current)
        values = self.get(variance)
        values[pairs.copy] = current**2 * (values[pairs.base] + epsilon) - epsilon
        self.put(variance, values)
        return factor

    def repeat(self, name: str, pairs: Pairs, factor: np.ndarray) -> None:
        """Write factor * values[base] to values[copy] in a vector or a (1, C, 1, 1)-like tensor."""
        values = self.get(name)
        if values.size == 1:
            raise ValueError(f"{name!r} is one number for all channels")
        flat = values.reshape(pairs.channels)
        flat[pairs.copy] = flat[pairs.base] * factor
        self.put(name, flat.reshape(values.shape))


def read_attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
