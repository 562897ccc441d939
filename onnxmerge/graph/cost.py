"""Multiply-accumulates and parameters, as the graph states them. Predictions, never timings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.constants import constant
from onnxmerge.graph.model import Model

Shapes = Mapping[str, tuple[int, ...]]


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
    """Numbers in the floating-point initializers and Constant nodes of the main graph, each tensor counted once."""
    total = 0
    for tensor in model.graph.tensors().values():
        if not isinstance(tensor, gs.Constant) and not (tensor.inputs and tensor.inputs[0].op == "Constant"):
            continue
        value = constant(model, tensor)
        if value is not None and value.dtype.kind in "fV":
            total += value.size
    return total
