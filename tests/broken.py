"""Candidates that are broken on purpose, one way each; what breaks a model says which node it touched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
Change = Callable[[np.ndarray], None]


def layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes with a stored weight, in the order they run."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in stored]


def change(model: onnx.ModelProto, name: str, how: Change) -> None:
    """Edit one initializer in place."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    how(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def wrong_sign(model: onnx.ModelProto, position: int) -> str:
    node = layers(model)[position]
    change(model, node.input[1], lambda weight: np.negative(weight, out=weight))
    return node.name


def swapped_channels(model: onnx.ModelProto, position: int) -> str:
    """The first and the last output channel of a layer change places; its consumers do not know."""
    node = layers(model)[position]
    columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute))
    for name in node.input[1:]:

        def swap(array: np.ndarray) -> None:
            rows = array.T if columns and array.ndim > 1 else array
            rows[[0, -1]] = rows[[-1, 0]]

        change(model, name, swap)
    return node.name


def one_nan(model: onnx.ModelProto, position: int) -> str:
    node = layers(model)[position]
    change(model, node.input[1], lambda weight: weight.reshape(-1).__setitem__(0, np.nan))
    return node.name


def moved_bias(model: onnx.ModelProto, position: int) -> str:
    """One number of one bias, the largest, is 5 % larger."""
    node = [node for node in layers(model) if len(node.input) > 2][position]

    def move(bias: np.ndarray) -> None:
        bias[np.abs(bias).argmax()] *= 1.05

    change(model, node.input[2], move)
    return node.name


def swapped_outputs(model: onnx.ModelProto) -> set[str]:
    """Two outputs of one shape change names."""
    first, second = (value.name for value in model.graph.output[:2])
    touched = set()
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name in (first, second):
                node.output[index] = second if name == first else first
                touched.add(node.name)
    return touched
