"""The table of operators: how each one treats channel ids, which literals it holds, and whether merging may cross it.

A new operator is one row here and one test. What is not in the table pins whatever enters it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from onnxmerge.graph import literals
from onnxmerge.graph import rules_axes as axis
from onnxmerge.graph import rules_channels as channel
from onnxmerge.graph import rules_shapes as shape
from onnxmerge.graph.channel_ids import Flow
from onnxmerge.onnxio import surgeon as gs

Rule = Callable[[Flow, gs.Node], channel.Outcome]
EditRule = Callable[[Flow, gs.Node, literals.Kept], literals.Edit | None]


class Path(Enum):
    """What a positive scale of a channel does when it crosses the operator; merging depends on it."""

    HOMOGENEOUS = "f(s x) = s f(x) for s > 0, alike for every channel"
    JOIN = "homogeneous in all of its computed inputs together; a constant input makes it affine"
    PRODUCT = "multiplies: homogeneous only when all but one input are the same for every channel"
    AFFINE = "per-channel scale and offset"
    SLOPE = "homogeneous when every channel has the same slope"
    PAD = "homogeneous when it pads with zeros"
    OTHER = "not homogeneous"


@dataclass(frozen=True)
class Operator:
    """One row of the table."""

    rule: Rule
    path: Path = Path.OTHER
    edit: EditRule | None = None


def _rows(names: str, operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), operator)


def _table(*parts: dict[str, Operator]) -> dict[str, Operator]:
    table: dict[str, Operator] = {}
    for part in parts:
        repeated = table.keys() & part.keys()
        if repeated:
            raise ValueError(f"operators listed twice: {sorted(repeated)}")
        table.update(part)
    return table


_H = Path.HOMOGENEOUS

OPERATORS = _table(
    # weights
    {"Conv": Operator(channel.conv), "ConvTranspose": Operator(channel.conv_transpose)},
    {"Gemm": Operator(channel.gemm), "MatMul": Operator(channel.matmul)},
    # elementwise, one input
    _rows("Identity Dropout Relu LeakyRelu Abs Neg", Operator(channel.unary, _H)),
    {"Cast": Operator(channel.unary, _H)},
    _rows("Sigmoid HardSigmoid HardSwish Swish Tanh Softplus Softsign Elu Selu Celu Gelu Mish", Operator(channel.unary)),
    _rows("Erf Exp Log Sqrt Reciprocal Floor Ceil Round Sign Not IsNaN IsInf", Operator(channel.unary)),
    _rows("Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh", Operator(channel.unary)),
    _rows("Clip Shrink ThresholdedRelu Bernoulli", Operator(channel.unary)),
    # elementwise, several inputs
    _rows("Add Sub Sum Mean Max Min", Operator(channel.join, Path.JOIN)),
    _rows("Mul Div", Operator(channel.join, Path.PRODUCT)),
    _rows("Pow Mod Where And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual BitShift", Operator(channel.join)),
    {"PRelu": Operator(channel.join, Path.SLOPE)},
    # normalisation
    {"BatchNormalization": Operator(channel.batch_normalization, Path.AFFINE)},
    {"InstanceNormalization": Operator(channel.instance_normalization)},
    _rows("LayerNormalization RMSNormalization", Operator(axis.over_axes(axis.last_axes))),
    _rows("LRN GroupNormalization MeanVarianceNormalization", Operator(axis.over_axes(axis.channel_axis))),
    _rows("LpNormalization Hardmax TopK", Operator(axis.over_axes(axis.axis_of(-1)))),
    _rows("ArgMax ArgMin", Operator(axis.over_axes(axis.axis_of(0)))),
    _rows("Softmax LogSoftmax", Operator(axis.over_axes(axis.from_axis))),
    {"CumSum": Operator(axis.over_axes(axis.axis_input))},
    # positions of a channel
    _rows("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", Operator(channel.pool, _H)),
    _rows("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2", Operator(axis.over_axes(axis.axes_of), _H)),
    _rows("ReduceProd ReduceLogSum ReduceLogSumExp ReduceSumSquare", Operator(axis.over_axes(axis.axes_of))),
    _rows("Resize", Operator(shape.resize, _H, literals.literal_extents(3, "Resize"))),
    {"Upsample": Operator(shape.resize, _H)},
    # moving values
    _rows("Reshape", Operator(shape.reshape, _H, literals.reshape_edit)),
    _rows("Flatten Squeeze Unsqueeze", Operator(shape.reshape, _H)),
    {"Transpose": Operator(shape.transpose, _H), "Concat": Operator(shape.concat, _H)},
    {"Split": Operator(shape.split, _H, literals.split_edit), "Slice": Operator(shape.slice_, _H, literals.slice_edit)},
    {"Gather": Operator(shape.gather, _H, literals.gather_edit)},
    {"Expand": Operator(shape.expand, _H, literals.literal_extents(1, "Expand")), "Tile": Operator(shape.tile, _H)},
    {"Pad": Operator(shape.pad, Path.PAD, literals.pad_edit)},
    _rows("DepthToSpace SpaceToDepth", Operator(shape.depth_to_space, _H)),
    # no channels come out
    _rows("Shape Size Constant ConstantOfShape Range RandomNormal RandomUniform EyeLike", Operator(channel.shape_only)),
    _rows("RandomNormalLike RandomUniformLike", Operator(channel.shape_only)),
    # known to mix
    _rows("LSTM GRU RNN Einsum Attention Det NonMaxSuppression GridSample RoiAlign NonZero Compress", Operator(channel.mixes)),
    _rows("GatherElements GatherND ScatterElements ScatterND Scatter OneHot Unique ReverseSequence", Operator(channel.mixes)),
    _rows("If Loop Scan SequenceConstruct SequenceAt SplitToSequence ConcatFromSequence", Operator(channel.mixes)),
    _rows("QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul", Operator(channel.quantised)),
    _rows("ConvInteger MatMulInteger", Operator(channel.quantised)),
)

UNKNOWN = Operator(channel.opaque)


def operator_of(node: gs.Node) -> Operator:
    """The row of a node; nodes of other domains are unknown whatever their name."""
    if node.domain not in (None, "", "ai.onnx"):
        return UNKNOWN
    return OPERATORS.get(node.op, UNKNOWN)
