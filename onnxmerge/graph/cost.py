"""Multiply-accumulates and parameters, as the graph states them. Predictions, never timings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnxmerge.graph.channel_ids import Flow
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model, constants

Shapes = Mapping[str, tuple[int, ...]]

FLOATING = frozenset(number for name, number in TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE")


def macs_of(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one node for the concrete shapes given; only operators that contract are counted."""
    rule = MACS.get(node.op) if node.domain in (None, "", "ai.onnx") else None
    return 0 if rule is None else rule(node, shapes)


def _shape(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...]:
    if tensor.name in shapes:
        return shapes[tensor.name]
    return tuple(int(n) for n in tensor.shape or ()) if isinstance(tensor, gs.Constant) else ()


def _conv(node: gs.Node, shapes: Shapes) -> int:
    weight = _shape(node.inputs[1], shapes)
    return int(np.prod(_shape(node.outputs[0], shapes))) * int(np.prod(weight[1:]))


def _conv_transpose(node: gs.Node, shapes: Shapes) -> int:
    weight = _shape(node.inputs[1], shapes)
    return int(np.prod(_shape(node.inputs[0], shapes))) * int(np.prod(weight[1:]))


def _gemm(node: gs.Node, shapes: Shapes) -> int:
    left = _shape(node.inputs[0], shapes)
    inner = left[0 if node.attrs.get("transA", 0) else 1] if len(left) == 2 else 0
    return int(np.prod(_shape(node.outputs[0], shapes))) * inner


def _matmul(node: gs.Node, shapes: Shapes) -> int:
    left = _shape(node.inputs[0], shapes)
    return int(np.prod(_shape(node.outputs[0], shapes))) * (left[-1] if left else 0)


MACS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}


def total_macs(model: Model, shapes: Shapes) -> int:
    """Multiply-accumulates of the main graph."""
    return sum(macs_of(node, shapes) for node in model.graph.nodes)


def total_parameters(model: Model) -> int:
    """Floating-point numbers in the initializers and Constant nodes that are read, those of bodies too; each tensor once."""
    found = {
        id(gs.stored_values(tensor)): gs.stored_values(tensor)
        for tensor in [*constants(model.graph), *_constant_nodes(model.graph)]
    }
    return sum(_floats(values) for values in found.values())


def _constant_nodes(graph: gs.Graph) -> Iterator[gs.Constant]:
    for node in graph.nodes:
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            yield node.attrs["value"]
        for body in node.subgraphs():
            yield from _constant_nodes(body)


def _floats(values: gs.StoredValues) -> int:
    """How many numbers, without loading them; 0 where they are integers."""
    if isinstance(values, np.ndarray):
        return values.size if onnx.helper.np_dtype_to_tensor_dtype(values.dtype) in FLOATING else 0
    kind = values.values.data_type if isinstance(values, SparseTensorProto) else values.data_type
    return math.prod(values.dims) if kind in FLOATING else 0


def parameters_of(flow: Flow, node: gs.Node) -> int:
    """Number of constant numbers that a node reads as weights."""
    values = [flow.constant(tensor) for tensor in node.inputs if tensor.name]
    return sum(value.size for value in values if value is not None and np.issubdtype(value.dtype, np.floating))
