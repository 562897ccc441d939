"""Constant folding: the values of initializers, Constant nodes, and whatever is computed from nothing but those, on demand."""

import math

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, SparseTensorProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator

from onnxmerge.graph.nodes import is_standard
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.export import export_node
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.storage import SMALL_TENSOR_BYTES
from onnxmerge.onnxio.tensors import array_of, dense_array_of, read_only, tensor_of

# Largest computed value, and most bytes of computed values that are remembered: 1 GiB, above any weight that exporters leave to
# be computed, and small enough for a machine with 4 GiB of memory.
LIMIT_BYTES = 2**30

# Operators that are folded: deterministic, quick, and with an output shape that shape inference knows beforehand.
# fmt: off
FOLDABLE = frozenset({
    "Constant", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split", "Gather",
    "Expand", "Tile", "Pad", "Cast", "CastLike", "Shape", "Size", "ConstantOfShape", "Range", "Where", "Add", "Sub", "Mul",
    "Div", "Mod", "Pow", "Neg", "Abs", "Sign", "Sqrt", "Reciprocal", "Exp", "Log", "Floor", "Ceil", "Min", "Max", "Sum",
    "Clip", "Not", "And", "Or", "Equal", "Greater", "Less", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax",
    "ReduceMin", "ReduceL2", "ReduceSumSquare", "MatMul", "Gemm", "ScatterND", "ScatterElements", "GatherND", "GatherElements",
    "BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus",
    "Softsign", "Mish", "Gelu", "Erf",
})
# fmt: on
# What the reference evaluator raises for an operator, a type or shapes that it cannot compute. Anything else is a bug.
_CANNOT_COMPUTE = (ValueError, TypeError, IndexError, ArithmeticError, MemoryError, RuntimeError)

# Number of a computation and of its output: two tensors with the same identity hold the same numbers.
Identity = tuple[int, int]
Values = dict[str, tuple[Identity, np.ndarray]]
Varying = dict[int, gs.Tensor]


def constant_value(model: Model, tensor: gs.Tensor, varying: Varying | None = None) -> np.ndarray | None:
    """The value of a tensor that depends on nothing but the file.

    Parameters
    ----------
    model : Model
        The model.
    tensor : Tensor
        A tensor of its graph.
    varying : dict of int to Tensor, optional
        Tensors that depend on a graph input or cannot be followed, by their `id`; those that are found are added. Without it each
        tensor is followed to the graph's inputs anew. What is edited must not make such a tensor constant.

    Returns
    -------
    ndarray or None
        The value, read-only and in its own dtype; None where it depends on a graph input or cannot be computed. An initializer
        that is also a graph input counts as constant, with the value that it has in the file.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { t = Transpose(w)  y = MatMul(x, t) }'''))
    >>> matmul = model.graph.nodes[1]
    >>> constant_value(model, matmul.inputs[1]).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    >>> constant_value(model, matmul.inputs[0]) is None
    True
    """
    if isinstance(tensor, gs.Constant):
        return _value(model, gs.stored_values(tensor))
    nodes = _computed_by(tensor, {} if varying is None else varying) if tensor.name else None
    if nodes is None:
        return None
    if model.folded_bytes > LIMIT_BYTES:
        model.folded.clear()
        model.folded_bytes = 0
    values: Values = {}
    for node in nodes:
        if not _compute(model, node, values):
            return None
    return values[tensor.name][1]


def _value(model: Model, values: gs.StoredValues) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return read_only(values)
    return dense_array_of(values, model.folder) if isinstance(values, SparseTensorProto) else array_of(values, model.folder)


def _computed_by(tensor: gs.Tensor, varying: Varying) -> list[gs.Node] | None:
    """The nodes that compute the tensor, in order; None as soon as one cannot be folded or reads a graph input.

    Then the tensors on the way there are added to `varying`.
    """
    ordered: list[gs.Node] = []
    started: set[int] = set()
    stack: list[tuple[gs.Tensor, bool]] = [(tensor, False)]
    while stack:
        current, done = stack.pop()
        if isinstance(current, gs.Constant) or not current.name:
            continue
        node = current.inputs[0] if len(current.inputs) == 1 else None
        if id(current) in varying or node is None or node.op not in FOLDABLE or not is_standard(node):
            varying.update((id(each), each) for each, is_begun in (*stack, (current, True)) if is_begun)
            return None
        if done:
            ordered.append(node)
        elif id(node) not in started:
            started.add(id(node))
            stack.append((current, True))
            stack.extend((source, False) for source in node.inputs)
    return ordered


def _compute(model: Model, node: gs.Node, values: Values) -> bool:
    """Add the node's outputs to `values`, from memory where the same was computed before; False where they cannot be computed."""
    if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
        values[node.outputs[0].name] = _stored(model, node.attrs["value"])
        return True
    inputs = [
        _stored(model, tensor) if isinstance(tensor, gs.Constant) else values[tensor.name] if tensor.name else (None, None)
        for tensor in node.inputs
    ]
    proto = export_node(model, node)
    attributes = b"".join(each.SerializeToString() for each in proto.attribute)
    key = (node.op, len(node.outputs), attributes, tuple(identity for identity, _ in inputs))
    if key not in model.folded:
        model.folded[key] = (len(model.folded), evaluate(model, proto, [array for _, array in inputs]))
        model.folded_bytes += sum(array.nbytes for array in model.folded[key][1])
    number, outputs = model.folded[key]
    for position, (tensor, array) in enumerate(zip(node.outputs, outputs, strict=False)):
        values[tensor.name] = ((number, position), array)
    return len(outputs) == len(node.outputs)


def _stored(model: Model, tensor: gs.Constant) -> tuple[Identity, np.ndarray]:
    """A constant of the file. It is remembered, so that the id of its Python object stays its own."""
    stored = gs.stored_values(tensor)
    number, _ = model.folded.setdefault(id(stored), (len(model.folded), stored))
    return (number, 0), _value(model, stored)


def evaluate(model: Model, node: NodeProto, inputs: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The node's outputs; none where their size is not known beforehand or too large, or the reference cannot compute them."""
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    proto = _single_node_model(model, node, feeds)
    try:
        expected = onnx.shape_inference.infer_shapes(proto).graph.output
    except onnx.shape_inference.InferenceError:
        return ()
    if sum(map(_declared_bytes, expected)) > LIMIT_BYTES:
        return ()
    try:
        with np.errstate(all="ignore"):
            is_normalisation = node.op_type == "BatchNormalization" and len(node.output) == 1
            outputs = _normalised(node, *feeds.values()) if is_normalisation else ReferenceEvaluator(proto).run(None, feeds)
    except _CANNOT_COMPUTE:
        return ()
    arrays = [np.asarray(output) for output in outputs]
    fits = all(_declared(value) == (array.shape, array.dtype) for value, array in zip(expected, arrays, strict=False))
    return tuple(map(read_only, arrays)) if fits else ()


def _normalised(
    node: NodeProto, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, *mean_variance: np.ndarray
) -> list[np.ndarray]:
    """BatchNormalization with stored statistics: the reference of onnx 1.23 takes a wrong path for it at opsets 9 to 13."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("training_mode"):
        return []
    shape = (-1, *(1,) * (x.ndim - 2))
    scale, bias, mean, variance = (each.astype(np.float64).reshape(shape) for each in (scale, bias, *mean_variance))
    return [((x - mean) / np.sqrt(variance + attributes.get("epsilon", 1e-5)) * scale + bias).astype(x.dtype)]


def _single_node_model(model: Model, node: NodeProto, feeds: dict[str, np.ndarray]) -> ModelProto:
    """A model of one node; small inputs are initializers too, so that shape inference knows shapes and indices."""
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [onnx.helper.make_tensor_value_info(name, types[name], array.shape) for name, array in feeds.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    small = [tensor_of(array, name) for name, array in feeds.items() if array.nbytes <= SMALL_TENSOR_BYTES]
    graph = onnx.helper.make_graph([node], "fold", inputs, outputs, small)
    return onnx.helper.make_model(graph, ir_version=model.proto.ir_version, opset_imports=model.proto.opset_import)


def _declared(value: ValueInfoProto) -> tuple[tuple[int, ...], np.dtype]:
    kind = value.type.tensor_type
    return tuple(dim.dim_value for dim in kind.shape.dim), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _declared_bytes(value: ValueInfoProto) -> float:
    """Size of an inferred output, infinity where shape inference does not know its shape."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return math.inf
    shape, dtype = _declared(value)
    return math.prod(shape) * dtype.itemsize
