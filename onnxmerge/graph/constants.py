"""The values of constants: initializers, Constant nodes, and what is computed from nothing but those, node by node on demand."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto, SparseTensorProto, TensorProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator

from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.export import standalone
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.storage import SMALL_BYTES
from onnxmerge.onnxio.tensors import array_of, dense_of, frozen, tensor_of

LIMIT_BYTES = 2**30  # of one computed value, and of all that are remembered

# Deterministic, quick, and with an output shape that can be told before computing.
# fmt: off
FOLDABLE = frozenset({
    "Constant", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split", "Gather",
    "Expand", "Tile", "Pad", "Cast", "CastLike", "Shape", "Size", "ConstantOfShape", "Range", "Where", "Add", "Sub", "Mul",
    "Div", "Mod", "Pow", "Neg", "Abs", "Sign", "Sqrt", "Reciprocal", "Exp", "Log", "Floor", "Ceil", "Min", "Max", "Sum",
    "Clip", "Not", "And", "Or", "Equal", "Greater", "Less", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax",
    "ReduceMin", "ReduceL2", "ReduceSumSquare", "MatMul", "Gemm",
})
# fmt: on
QUANTISATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

# Which value: two tensors with the same identity hold the same numbers.
Identity = tuple[int, int]
Known = dict[str, tuple[Identity, np.ndarray]]


def constant(model: Model, tensor: gs.Tensor) -> np.ndarray | None:
    """The tensor's value, read-only and in its own dtype, or None where it depends on a graph input or cannot be computed.

    An initializer that is also a graph input counts as constant with the value it has in the file.
    """
    if isinstance(tensor, gs.Constant):
        return _value(model, gs.stored_values(tensor))
    nodes = _sources(tensor) if tensor.name else None
    if nodes is None:
        return None
    if model.folded_bytes > LIMIT_BYTES:
        model.folded.clear()
        model.folded_bytes = 0
    known: Known = {}
    for node in nodes:
        if not _compute(model, node, known):
            return None
    return known[tensor.name][1]


def is_quantised(tensor: gs.Tensor) -> bool:
    """Whether the tensor is made from quantised values: behind a QuantizeLinear or DequantizeLinear of any domain, or computed
    from (or itself) numbers of at most eight bits. Such weights cannot be written back as plain numbers."""
    pending, seen = [tensor], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, gs.Constant):
            if _few_bits(gs.stored_values(current)):
                return True
            continue
        for node in current.inputs:
            if node.op in QUANTISATION or (
                isinstance(node.attrs.get("value"), gs.Constant) and _few_bits(gs.stored_values(node.attrs["value"]))
            ):
                return True
            if node.op in FOLDABLE and not node.domain and node.op != "Shape":
                pending.extend(node.inputs)
    return False


def _few_bits(values: gs.StoredValues) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype.itemsize == 1 and values.dtype != np.bool_
    data_type = values.values.data_type if isinstance(values, SparseTensorProto) else values.data_type
    if data_type in (TensorProto.BOOL, TensorProto.STRING):
        return False
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize == 1


def _value(model: Model, values: gs.StoredValues) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return frozen(values)
    return dense_of(values, model.folder) if isinstance(values, SparseTensorProto) else array_of(values, model.folder)


def _sources(tensor: gs.Tensor) -> list[gs.Node] | None:
    """The nodes that compute the tensor, in order; None as soon as one cannot be folded or reads a graph input."""
    ordered: list[gs.Node] = []
    started: set[int] = set()
    stack: list[tuple[gs.Tensor, bool]] = [(tensor, False)]
    while stack:
        current, done = stack.pop()
        if isinstance(current, gs.Constant) or not current.name:
            continue
        if len(current.inputs) != 1:
            return None
        node = current.inputs[0]
        if done:
            ordered.append(node)
        elif id(node) not in started:
            if node.op not in FOLDABLE or node.domain not in (None, "", "ai.onnx"):
                return None
            started.add(id(node))
            stack.append((current, True))
            stack.extend((source, False) for source in node.inputs)
    return ordered


def _compute(model: Model, node: gs.Node, known: Known) -> bool:
    """Put the node's outputs into `known`, from memory where the same node was computed from the same values before."""
    if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
        known[node.outputs[0].name] = _leaf(model, node.attrs["value"])
        return True
    inputs = [
        _leaf(model, tensor) if isinstance(tensor, gs.Constant) else known[tensor.name] if tensor.name else (None, None)
        for tensor in node.inputs
    ]
    proto = standalone(model, node)
    attributes = b"".join(each.SerializeToString() for each in proto.attribute)
    key = (node.op, len(node.outputs), attributes, tuple(identity for identity, _ in inputs))
    if key not in model.folded:
        model.folded[key] = (len(model.folded), _evaluated(model, proto, [array for _, array in inputs]))
        model.folded_bytes += sum(array.nbytes for array in model.folded[key][1])
    number, outputs = model.folded[key]
    for position, (tensor, array) in enumerate(zip(node.outputs, outputs, strict=False)):
        known[tensor.name] = ((number, position), array)
    return len(outputs) == len(node.outputs)


def _leaf(model: Model, tensor: gs.Constant) -> tuple[Identity, np.ndarray]:
    values = gs.stored_values(tensor)
    number, _ = model.folded.setdefault(id(values), (len(model.folded), values))  # held there, so that its id stays its own
    return (number, 0), _value(model, values)


def _evaluated(model: Model, node: NodeProto, inputs: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The node's outputs; none where the size cannot be told beforehand, is too large, or the reference cannot compute it."""
    given = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    small = [tensor_of(array, name) for name, array in given.items() if array.nbytes <= SMALL_BYTES]
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
    declared = [onnx.helper.make_tensor_value_info(name, types[name], array.shape) for name, array in given.items()]
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "fold", declared, results, small)
    proto = onnx.helper.make_model(graph, ir_version=model.proto.ir_version, opset_imports=model.proto.opset_import)
    try:
        expected = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output
        if sum(map(_declared_bytes, expected)) > LIMIT_BYTES:
            return ()
        with np.errstate(all="ignore"):
            outputs = ReferenceEvaluator(proto).run(None, given)
    except Exception:  # whatever the reference stumbles over, the tensor then counts as not constant
        return ()
    arrays = [np.asarray(output) for output in outputs]
    fits = all(_declared(value) == (array.shape, array.dtype) for value, array in zip(expected, arrays, strict=True))
    return tuple(map(frozen, arrays)) if fits else ()


def _declared(value: ValueInfoProto) -> tuple[tuple[int, ...], np.dtype]:
    kind = value.type.tensor_type
    return tuple(dim.dim_value for dim in kind.shape.dim), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _declared_bytes(value: ValueInfoProto) -> float:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return math.inf
    shape, dtype = _declared(value)
    return math.prod(shape) * dtype.itemsize
