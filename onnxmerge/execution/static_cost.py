"""Whether a run of a model is known to be cheap, from the shapes of its tensors alone: nothing is run.

Only where that is certain a model that was never run is run in this process. Everything else is tried in a process of its own
(`trial_run`): operators that are not in `PROPORTIONAL`, and shapes that depend on values which only a run shows.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto
from onnx.reference import ReferenceEvaluator

from onnxmerge.onnxio.external_data import DATA_TYPES, bits_of_value, is_external

CHEAP_BYTES = 1 << 29  # all tensors of one run together
CHEAP_OPERATIONS = 20_000_000_000  # about a second on two cores, and more than a VGG-16 takes for an image of ImageNet
LONGEST_VECTOR = 1_000_000  # elements; onnx's inference for whole models, which export needs, takes 50 bytes for each
SMALL_VALUES = 256  # elements: shapes, axes and bounds have fewer
# What onnx raises for types and shapes that an operator does not take, and for unknown ones
CANNOT_INFER = (
    KeyError,
    ValueError,
    RuntimeError,
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
)
# What the reference evaluator raises for an operator, a type or shapes that it cannot compute
CANNOT_COMPUTE = (ValueError, TypeError, IndexError, ArithmeticError, MemoryError, RuntimeError)

_ELEMENTWISE = """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike
Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"""
_MOVING = """Compress Concat Constant ConstantOfShape DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND OneHot
Pad Range Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
Upsample"""
_REDUCING = """ArgMax ArgMin BatchNormalization CumSum DequantizeLinear DynamicQuantizeLinear GlobalAveragePool GlobalLpPool
GlobalMaxPool GroupNormalization Hardmax InstanceNormalization LayerNormalization LogSoftmax LpNormalization
MeanVarianceNormalization QuantizeLinear ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare RMSNormalization Softmax TopK"""
_RECURRENT = ("GRU", "LSTM", "RNN")
_WEIGHTED = "AveragePool Conv ConvInteger ConvTranspose Gemm LpPool LRN MatMul MatMulInteger MaxPool QLinearConv QLinearMatMul"
PROPORTIONAL = frozenset(f"{_ELEMENTWISE} {_MOVING} {_REDUCING} {_WEIGHTED}".split()).union(_RECURRENT)
"""Operators of ONNX whose memory is that of their tensors, and whose time follows from the shapes of these."""

Shape = tuple[int, ...]
Types = Mapping[str, TypeProto]


class StaticCost:
    """What is known of the cost of a model's runs.

    Shapes are inferred node by node, with the values of small tensors that follow from the file and from sizes. onnx does so for
    whole models too, but writes out any vector of known length on the way, so that a small file fills the memory.

    Parameters
    ----------
    proto : ModelProto
        The model; it is not changed, and its weights are not copied.
    """

    def __init__(self, proto: ModelProto) -> None:
        self._nodes = proto.graph.node
        self._inputs = {value.name: value.type for value in proto.graph.input}
        self._imports = list(proto.opset_import)
        self._opset = next((entry.version for entry in self._imports if entry.domain in ("", "ai.onnx")), 1)
        self._ordinary = not proto.graph.sparse_initializer and all(map(_is_ordinary, self._nodes))
        stored = proto.graph.initializer if self._ordinary else []
        self._types = {tensor.name: _type_of(tensor.data_type, tensor.dims) for tensor in stored}
        self._values = {tensor.name: tensor for tensor in stored if _is_small(tensor)}

    def is_small(self, feeds: Mapping[str, Shape]) -> bool:
        """Whether a run on inputs of these shapes takes at most `CHEAP_BYTES` and `CHEAP_OPERATIONS`, for certain."""
        if not self._ordinary:
            return False
        types = self._types | {name: _type_of(self._inputs[name].tensor_type.elem_type, shape) for name, shape in feeds.items()}
        values = dict(self._values)
        sizes = sum(map(_bytes_of, types.values()))
        operations = 0
        for node in self._nodes:
            outputs = self._outputs(node, types, values)
            if outputs is None or _may_divide_by_minus_one(node, outputs, values):
                return False
            types |= outputs
            sizes += sum(map(_bytes_of, outputs.values()))
            operations += _operations(node, types)
            longest = max((shape[0] for shape in map(_shape_of, outputs.values()) if len(shape) == 1), default=0)
            if sizes > CHEAP_BYTES or longest > LONGEST_VECTOR or operations > CHEAP_OPERATIONS:
                return False
            values |= _small_values(node, types, values)
        return True

    def _outputs(self, node: NodeProto, types: Mapping[str, TypeProto], values: Mapping[str, TensorProto]) -> Types | None:
        """Types of a node's outputs; None where a shape is not known."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            known = {name: types[name] for name in node.input if name}
            given = {name: values[name] for name in known if name in values}
            found = onnx.shape_inference.infer_node_outputs(schema, node, known, given, opset_imports=self._imports)
        except CANNOT_INFER:
            return None
        outputs = {name: found.get(name, TypeProto()) for name in node.output if name}
        return outputs if all(map(_is_known, outputs.values())) else None


def _small_values(node: NodeProto, types: Types, values: Mapping[str, TensorProto]) -> dict[str, TensorProto]:
    """The values of a node's outputs, where these are small and those of its inputs are known."""
    names = [name for name in node.output if name]
    if sum(math.prod(_shape_of(types[name])) for name in names) > SMALL_VALUES:
        return {}
    if node.op_type in ("Shape", "Size"):
        feeds = {node.input[0]: np.broadcast_to(np.float32(0), _shape_of(types[node.input[0]]))}
    elif all(name in values for name in node.input if name):
        feeds = {name: onnx.numpy_helper.to_array(values[name]) for name in node.input if name}
    else:
        return {}
    try:
        with np.errstate(all="ignore"):
            computed = ReferenceEvaluator(node).run(None, feeds)
        return {name: onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, computed, strict=True)}
    except CANNOT_COMPUTE:
        return {}


def _may_divide_by_minus_one(node: NodeProto, outputs: Types, values: Mapping[str, TensorProto]) -> bool:
    """Whether integers are divided by what may be -1: with the least of them that ends the process."""
    kinds = {kind.tensor_type.elem_type for kind in outputs.values()}
    if node.op_type not in ("Div", "Mod") or not kinds & {TensorProto.INT32, TensorProto.INT64}:
        return False
    return node.input[1] not in values or bool((onnx.numpy_helper.to_array(values[node.input[1]]) < 0).any())


def _is_ordinary(node: NodeProto) -> bool:
    """Whether an operator's cost follows from shapes, and no attribute makes inference divide by zero."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in PROPORTIONAL or not node.output:
        return False
    positive = ("strides", "dilations", "kernel_shape", "group", "blocksize", "num_outputs", "num_groups", "block_size")
    numbers = [number for each in node.attribute if each.name in positive for number in (*each.ints, each.i or 1)]
    return all(number > 0 for number in numbers)


def _operations(node: NodeProto, types: Types) -> int:
    """Multiplications of a node, or values that it reads and writes, whichever is more: at most so many."""
    read = [_shape_of(types[name]) for name in node.input if name]
    written = sum(math.prod(_shape_of(types[name])) for name in node.output if name)
    moved = written + sum(map(math.prod, read))
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weight = read[3 if node.op_type == "QLinearConv" else 1]
        return moved + written * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return moved + math.prod(read[0]) * math.prod(read[1][1:])
    if node.op_type in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        return moved + written * max(read[0], default=1)
    if node.op_type in _RECURRENT:  # (sequence, batch, inputs), and two matrices that each step multiplies by
        return moved + math.prod(read[0][:2]) * (math.prod(read[1]) + math.prod(read[2]))
    sizes = [each for each in node.attribute if each.name in ("kernel_shape", "size")]
    kernel = math.prod(number for each in sizes for number in (*each.ints, each.i or 1))
    return moved + written * kernel


def _type_of(data_type: int, shape: Sequence[int]) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(data_type, shape)


def _is_known(kind: TypeProto) -> bool:
    """Whether the type of the values is known, and every size is a number."""
    tensor = kind.tensor_type
    sizes_known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim)
    return tensor.elem_type in DATA_TYPES and tensor.HasField("shape") and sizes_known


def _shape_of(kind: TypeProto) -> Shape:
    return tuple(dim.dim_value for dim in kind.tensor_type.shape.dim)


def _bytes_of(kind: TypeProto) -> int:
    return math.prod(_shape_of(kind)) * bits_of_value(kind.tensor_type.elem_type) // 8


def _is_small(tensor: TensorProto) -> bool:
    return math.prod(tensor.dims) <= SMALL_VALUES and not is_external(tensor)
