"""Multiply-accumulates (MACs) and parameters of nodes and models, as the graph states them: predictions, never timings."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnxmerge.graph.nodes import is_standard
from onnxmerge.graph.tensor_facts import Shapes, TensorFacts
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import constants

# Data types whose numbers count as parameters: integers are shapes and indices.
FLOATING_TYPES = frozenset(number for name, number in TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE")


def node_macs(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one node.

    Parameters
    ----------
    node : Node
        The node; only Conv, ConvTranspose, Gemm, MatMul and Einsum count, every other operator counts as 0.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.

    Returns
    -------
    int
        Multiplications of a weight or a computed factor with an activation; biases are not counted.
    """
    count = MACS.get(node.op) if is_standard(node) else None
    return 0 if count is None else count(node, shapes)


def total_macs(model: Model, shapes: Shapes) -> int:
    """Multiply-accumulates of the main graph; the bodies of If, Loop and Scan are not counted.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     linear (float[4, 2] x) => (float[4, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }'''))
    >>> total_macs(model, {"x": (4, 2), "y": (4, 3)})
    24
    """
    return sum(node_macs(node, shapes) for node in model.graph.nodes)


def total_parameters(model: Model) -> int:
    """Floating-point numbers in the initializers and Constant nodes that are read, those of bodies too; each tensor once."""
    stored = map(gs.stored_values, [*constants(model.graph), *_constant_nodes(model.graph)])
    return sum(float_count(values) for values in {id(values): values for values in stored}.values())


def node_parameters(facts: TensorFacts, node: gs.Node) -> int:
    """Floating-point numbers in the constants that one node reads."""
    values = [facts.constant(tensor) for tensor in node.inputs]
    return sum(float_count(value) for value in values if value is not None)


def float_count(values: gs.StoredValues) -> int:
    """How many floating-point numbers there are, without loading them; 0 where they are integers."""
    if isinstance(values, np.ndarray):
        return values.size if onnx.helper.np_dtype_to_tensor_dtype(values.dtype) in FLOATING_TYPES else 0
    data_type = values.values.data_type if isinstance(values, SparseTensorProto) else values.data_type
    return math.prod(values.dims) if data_type in FLOATING_TYPES else 0


def shape_of(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...]:
    """The concrete shape of a tensor; that of a constant also where it was not observed, else ()."""
    if tensor.name in shapes:
        return shapes[tensor.name]
    return tuple(int(extent) for extent in tensor.shape or ()) if isinstance(tensor, gs.Constant) else ()


def _conv(node: gs.Node, shapes: Shapes) -> int:
    """Output elements times (in / groups) times the size of the kernel."""
    return math.prod(shape_of(node.outputs[0], shapes)) * math.prod(shape_of(node.inputs[1], shapes)[1:])


def _conv_transpose(node: gs.Node, shapes: Shapes) -> int:
    """Input elements times (out / groups) times the size of the kernel."""
    return math.prod(shape_of(node.inputs[0], shapes)) * math.prod(shape_of(node.inputs[1], shapes)[1:])


def _gemm(node: gs.Node, shapes: Shapes) -> int:
    left = shape_of(node.inputs[0], shapes)
    contracted = left[0 if node.attrs.get("transA", 0) else 1] if len(left) == 2 else 0
    return math.prod(shape_of(node.outputs[0], shapes)) * contracted


def _matmul(node: gs.Node, shapes: Shapes) -> int:
    left = shape_of(node.inputs[0], shapes)
    return math.prod(shape_of(node.outputs[0], shapes)) * (left[-1] if left else 0)


def _einsum(node: gs.Node, shapes: Shapes) -> int:
    """The product of all extents; 0 where the equation leaves axes out ("...")."""
    terms = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")[0].split(",")
    operands = [shape_of(tensor, shapes) for tensor in node.inputs]
    if [len(term) for term in terms] != [len(operand) for operand in operands] or len(terms) < 2:
        return 0
    pairs = zip("".join(terms), [extent for operand in operands for extent in operand], strict=True)
    return math.prod(dict(pairs).values())


MACS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum}


def _constant_nodes(graph: gs.Graph) -> Iterator[gs.Constant]:
    for node in graph.nodes:
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            yield node.attrs["value"]
        for body in node.subgraphs():
            yield from _constant_nodes(body)
