"""Whether a run of a model is known to be cheap, from the shapes of its tensors alone: nothing is run.

Only where that is certain a model that was never run is run in this process. Everything else is tried in a process of its own
(`trial_run`): operators that are not in `PROPORTIONAL`, and shapes that depend on values which only a run shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from onnxmerge.onnxio.external_data import DATA_TYPES, bits_of_value, byte_count, is_external
from onnxmerge.onnxio.quiet import nothing_on_stdout

CHEAP_BYTES = 1 << 29  # all tensors of one run together
CHEAP_OPERATIONS = 20_000_000_000  # about a second on two cores, and more than a VGG-16 takes for an image of ImageNet
SMALL_TENSOR_BYTES = 1 << 10  # inference reads shapes, axes and bounds, which are smaller

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


class StaticCost:
    """What is known of the cost of a model's runs.

    Parameters
    ----------
    proto : ModelProto
        The model; it is not changed, and its weights are not copied.
    """

    def __init__(self, proto: ModelProto) -> None:
        self._nodes = [node for node in proto.graph.node if not _is_large_constant(node)]
        self._ordinary = not proto.graph.sparse_initializer and all(map(_is_ordinary, proto.graph.node))
        self._shaped = ModelProto()
        if not self._ordinary:
            return
        large = [node for node in proto.graph.node if _is_large_constant(node)]
        graph = GraphProto(name="g", node=self._nodes, input=proto.graph.input)
        graph.initializer.extend(_without_data(tensor, tensor.name) for tensor in proto.graph.initializer)
        graph.initializer.extend(_without_data(node.attribute[0].t, node.output[0]) for node in large)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in [each.name for each in proto.graph.output])
        self._shaped = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)

    def is_small(self, feeds: Mapping[str, Shape]) -> bool:
        """Whether a run on inputs of these shapes takes at most `CHEAP_BYTES` and `CHEAP_OPERATIONS`, for certain."""
        if not self._ordinary:
            return False
        for value in self._shaped.graph.input:
            if value.name in feeds:
                kind = value.type.tensor_type
                kind.ClearField("shape")
                kind.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in feeds[value.name])
                kind.shape.SetInParent()  # a scalar has a shape, an empty one
        try:
            with nothing_on_stdout():
                graph = onnx.shape_inference.infer_shapes(self._shaped, data_prop=True).graph
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            return False
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        size = 0
        for value in (*graph.input, *graph.value_info, *graph.output):
            shape = _known_shape(value.type)
            if shape is not None:
                size += math.prod(shape) * bits_of_value(value.type.tensor_type.elem_type) // 8
                shapes[value.name] = shape
        if not all(name in shapes for node in self._nodes for name in (*node.input, *node.output) if name):
            return False
        operations = sum(_operations(node, shapes) for node in self._nodes)
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        return (
            size <= CHEAP_BYTES
            and operations <= CHEAP_OPERATIONS
            and not any(self._may_divide(node, types) for node in self._nodes)
        )

    def _may_divide(self, node: NodeProto, types: Mapping[str, int]) -> bool:
        """Whether integers are divided by a number that may be -1: the least of them ends the process then."""
        if node.op_type not in ("Div", "Mod") or types.get(node.output[0]) not in (TensorProto.INT32, TensorProto.INT64):
            return False
        divisors = [
            tensor for tensor in self._shaped.graph.initializer if tensor.name == node.input[1] and not is_external(tensor)
        ]
        divisors += [each.attribute[0].t for each in self._nodes if each.output[0] == node.input[1] and _is_constant(each)]
        return not divisors or bool((onnx.numpy_helper.to_array(divisors[0]) <= 0).any())


def _is_ordinary(node: NodeProto) -> bool:
    """Whether an operator's cost follows from shapes, and no attribute makes inference divide by zero."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in PROPORTIONAL or not node.output:
        return False
    positive = ("strides", "dilations", "kernel_shape", "group", "blocksize", "num_outputs", "num_groups", "block_size")
    numbers = [number for each in node.attribute if each.name in positive for number in (*each.ints, each.i or 1)]
    return all(number > 0 for number in numbers)


def _operations(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Multiplications of a node, or values that it reads and writes, whichever is more: at most so many."""
    read = [shapes[name] for name in node.input if name]
    written = sum(math.prod(shapes[name]) for name in node.output if name)
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


def _known_shape(kind: TypeProto) -> Shape | None:
    """The shape of a tensor type; None where a size is not a number, or the type of the values is unknown."""
    if kind.tensor_type.elem_type not in DATA_TYPES or not kind.tensor_type.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim):
        return None
    shape = tuple(dim.dim_value for dim in kind.tensor_type.shape.dim)
    return shape if min(shape, default=0) >= 0 else None


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t")


def _is_large_constant(node: NodeProto) -> bool:
    return _is_constant(node) and byte_count(node.attribute[0].t) > SMALL_TENSOR_BYTES


def _without_data(tensor: TensorProto, name: str) -> TensorProto:
    if byte_count(tensor) <= SMALL_TENSOR_BYTES:
        small = TensorProto()
        small.CopyFrom(tensor)
        small.name = name
        return small
    return TensorProto(name=name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL)
