"""Multiply-accumulates (MACs) and parameters of nodes and models, as the graph states them: predictions, never timings."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnxmerge.graph.nodes import has_input, operator_key
from onnxmerge.graph.tensor_facts import Shapes, TensorFacts
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import constants

# Data types whose numbers count as parameters. Integers of up to 8 bits are quantised weights, wider ones shapes and indices.
_PARAMETER_TYPES = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if "FLOAT" in name or name in ("DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
)


CountMacs = Callable[[gs.Node, Shapes], int]


def node_macs(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one node.

    Parameters
    ----------
    node : Node
        The node; only operators of `MACS` count, every other one counts as 0.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.

    Returns
    -------
    int
        Multiplications of a weight or a computed factor with an activation; biases are not counted.
    """
    count = MACS.get(operator_key(node))
    return 0 if count is None else count(node, shapes)


def total_macs(model: Model, shapes: Shapes) -> int:
    """Multiply-accumulates, those in bodies included where the shapes inside are known: of all bodies of an If, of one round.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     linear (float[4, 2] x) => (float[4, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }'''))
    >>> total_macs(model, {"x": (4, 2), "y": (4, 3)})
    24
    """
    return sum(node_macs(node, shapes) for node in [*model.graph.nodes, *nodes_in_bodies(model, shapes)])


def nodes_in_bodies(model: Model, shapes: Shapes) -> list[gs.Node]:
    """The nodes of all bodies, of which the shape of an output is known."""
    inside = [inner for node in model.graph.nodes for body in node.subgraphs(recursive=True) for inner in body.nodes]
    return [node for node in inside if any(output.name in shapes for output in node.outputs)]


def total_parameters(model: Model) -> int:
    """Numbers in the initializers and Constant nodes that are read, those of bodies too, but shapes; each tensor once."""
    stored = map(gs.stored_values, [*constants(model.graph), *_constant_nodes(model.graph)])
    return sum(parameter_count(values) for values in {id(values): values for values in stored}.values())


def input_parameters(facts: TensorFacts, node: gs.Node) -> dict[str, int]:
    """Numbers in the constants that one node reads, but shapes and indices, by name of the tensor."""
    values = {tensor.name: facts.constant(tensor) for tensor in node.inputs}
    return {name: parameter_count(value) for name, value in values.items() if value is not None}


def parameter_count(values: gs.StoredValues) -> int:
    """How many floating-point or quantised numbers there are, without loading them; 0 for shapes and indices."""
    if isinstance(values, np.ndarray):
        return values.size if onnx.helper.np_dtype_to_tensor_dtype(values.dtype) in _PARAMETER_TYPES else 0
    data_type = values.values.data_type if isinstance(values, SparseTensorProto) else values.data_type
    return math.prod(values.dims) if data_type in _PARAMETER_TYPES else 0


def shape_of(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...]:
    """The concrete shape of a tensor; that of a constant also where it was not observed, else ()."""
    if tensor.name in shapes:
        return shapes[tensor.name]
    return tuple(int(extent) for extent in tensor.shape or ()) if isinstance(tensor, gs.Constant) else ()


def _conv(weight: int) -> CountMacs:
    """Output elements times (in / groups) times the size of the kernel; weight: which of the inputs that is."""
    return lambda node, shapes: (
        math.prod(shape_of(node.outputs[0], shapes)) * math.prod(shape_of(node.inputs[weight], shapes)[1:])
    )


def _conv_transpose(node: gs.Node, shapes: Shapes) -> int:
    """Input elements times (out / groups) times the size of the kernel."""
    return math.prod(shape_of(node.inputs[0], shapes)) * math.prod(shape_of(node.inputs[1], shapes)[1:])


def _recurrent(node: gs.Node, shapes: Shapes) -> int:
    """Steps times batch times the numbers of both weights, of the inputs and of the state."""
    steps = shape_of(node.inputs[0], shapes)[:2]
    return math.prod(steps) * sum(math.prod(shape_of(tensor, shapes)) for tensor in node.inputs[1:3])


def _gemm(node: gs.Node, shapes: Shapes) -> int:
    left = shape_of(node.inputs[0], shapes)
    contracted = left[-2 if node.attrs.get("transA", 0) else -1] if len(left) > 1 else 0
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


def _attention(node: gs.Node, shapes: Shapes) -> int:
    """The numbers of query and output, times the positions of the key, those of the past included; as many of the query and its
    positions as of the output where query, key and value are one tensor."""
    written, past = node.outputs[0], PAST_KEYS[operator_key(node)]
    query, key = node.inputs[:2] if has_input(node, 1) else (written, written)
    positions = sum(shape_of(each, shapes)[-2] for each in (key, *node.inputs[past : past + 1]) if shape_of(each, shapes))
    return positions * (math.prod(shape_of(query, shapes)) + math.prod(shape_of(written, shapes)))


def _packed_attention(node: gs.Node, shapes: Shapes) -> int:
    """The projection of every position, and what `_attention` says of it."""
    read, weight, written = (shape_of(tensor, shapes) for tensor in (*node.inputs[:2], node.outputs[0]))
    if len(read) != 3 or len(weight) != 2 or len(written) != 3:
        return 0
    rows, queries = math.prod(read[:2]), int((node.attrs.get("qkv_hidden_sizes") or [weight[1] // 3])[0])
    past = shape_of(node.inputs[4], shapes)[-2:-1] if has_input(node, 4) else ()
    return rows * (math.prod(weight) + (read[1] + sum(past)) * (queries + written[2]))


PAST_KEYS = {"Attention": 4, "com.microsoft.MultiHeadAttention": 6, "com.microsoft.GroupQueryAttention": 3}
"""Attention as one operator, and which of its inputs are the keys of earlier positions."""
MACS: dict[str, CountMacs] = {
    **dict.fromkeys(["Conv", "ConvInteger", "com.microsoft.FusedConv"], _conv(1)),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(["Gemm", "com.microsoft.FusedGemm", "com.microsoft.QGemm", "com.microsoft.FusedMatMul"], _gemm),
    **dict.fromkeys(["MatMul", "MatMulInteger", "QLinearMatMul"], _matmul),
    **dict.fromkeys(["com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat"], _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(PAST_KEYS, _attention),
    "com.microsoft.Attention": _packed_attention,
    **dict.fromkeys(["LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM"], _recurrent),
}
"""Of a node and the shapes of all tensors its multiply-accumulates, by `operator_key`."""


def _constant_nodes(graph: gs.Graph) -> Iterator[gs.Constant]:
    for node in graph.nodes:
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            yield node.attrs["value"]
        for body in node.subgraphs():
            yield from _constant_nodes(body)
