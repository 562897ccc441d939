"""The table of operators: how each passes channels, what it does to a scale of a channel, and which channel counts it holds.

A new operator is one row here and one test. What is not in the table pins whatever enters it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_ids import Ids
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import operator_key
from onnxmerge.graph.operators import attention as heads
from onnxmerge.graph.operators import batchnorm_pooling as channelwise
from onnxmerge.graph.operators import conv_gemm_matmul as layers
from onnxmerge.graph.operators import elementwise, unsupported
from onnxmerge.graph.operators import gather_scatter as indexing
from onnxmerge.graph.operators import recurrent as states
from onnxmerge.graph.operators import reductions_softmax as mixing
from onnxmerge.graph.operators import reshape_transpose_concat as layout
from onnxmerge.graph.operators import resize_pad_expand as extents
from onnxmerge.graph.operators import scale_crossing as scaling
from onnxmerge.graph.operators import shape_values as sizes
from onnxmerge.graph.operators import slice_split_gather as picking
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.graph.operators.scale_crossing import CrossingRule
from onnxmerge.onnxio import surgeon as gs

# One id array for each output of the node, or why every id that enters it is pinned.
PropagationRule = Callable[[ChannelPropagation, gs.Node], list[Ids] | Refusal]
# New constants and attributes of the node once channels are removed; None where it stays as it is.
EditRule = Callable[[KeptChannels, gs.Node], NodeEdit | None]


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes
    ----------
    propagate : PropagationRule
        Which channel ids come out.
    crossing : CrossingRule
        What becomes of channels that are positive multiples of one another.
    edit : EditRule or None
        New constants and attributes of a node once channels are removed; None where the operator holds no channel counts.
    """

    propagate: PropagationRule
    crossing: CrossingRule = scaling.not_homogeneous
    edit: EditRule | None = None


def _table(*rows: tuple[str, Operator]) -> dict[str, Operator]:
    """Operator type -> row. Each row names one or more types, divided by spaces."""
    table: dict[str, Operator] = {}
    for names, operator in rows:
        for name in names.split():
            if name in table:
                raise ValueError(f"operator {name} is listed twice")
            table[name] = operator
    return table


_HOMOGENEOUS = scaling.homogeneous
_UNARY, _MIXES = Operator(elementwise.unary), Operator(unsupported.mixes_channels)
_NOT_FOLLOWED = Operator(unsupported.not_followed)
_NO_CHANNELS = Operator(sizes.writes_no_channels)
_REDUCTION = mixing.mixes_along(mixing.reduction_axes)

OPERATORS = _table(
    # weights
    ("Conv ConvTranspose", Operator(layers.conv, scaling.filters)),
    ("Gemm", Operator(layers.gemm)),
    ("MatMul", Operator(layers.matmul, scaling.homogeneous_in_all)),  # of channels that pass it
    ("Einsum", Operator(layers.einsum, scaling.homogeneous_in_all)),
    ("LSTM GRU RNN", Operator(states.recurrent, edit=states.edit_recurrent)),
    ("Attention com.microsoft.MultiHeadAttention", Operator(heads.attention, scaling.values, heads.edit_attention)),
    ("com.microsoft.Attention", Operator(heads.packed)),
    ("com.microsoft.GroupQueryAttention", Operator(heads.grouped_query, edit=heads.edit_grouped_query)),
    # elementwise, one input
    ("Identity", Operator(elementwise.unary, scaling.identity)),
    ("Dropout", Operator(elementwise.unary, scaling.dropout)),
    ("Cast", Operator(elementwise.unary, scaling.cast)),
    ("Relu LeakyRelu Abs Neg", Operator(elementwise.unary, _HOMOGENEOUS)),
    ("Sigmoid HardSigmoid HardSwish Swish Tanh Softplus Softsign Elu Selu Celu Gelu Mish", _UNARY),
    ("Erf Exp Log Sqrt Reciprocal Floor Ceil Round Sign Not IsNaN IsInf", _UNARY),
    ("Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh", _UNARY),
    ("Clip Shrink ThresholdedRelu Bernoulli", _UNARY),
    ("com.microsoft.Gelu com.microsoft.QuickGelu", _UNARY),
    # elementwise, several inputs
    ("Add Sub Sum Mean Max Min", Operator(elementwise.join, scaling.summation)),
    ("Mul Div", Operator(elementwise.join, scaling.product)),
    ("Pow Mod Where And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual BitShift", Operator(elementwise.join)),
    ("PRelu", Operator(elementwise.join, scaling.prelu)),
    ("com.microsoft.BiasGelu com.microsoft.FastGelu", Operator(elementwise.join)),
    # normalisation
    ("BatchNormalization", Operator(channelwise.batch_normalization, scaling.batch_normalization)),
    ("InstanceNormalization", Operator(channelwise.instance_normalization)),
    ("GroupNormalization", Operator(channelwise.group_normalization, edit=channelwise.edit_group_normalization)),
    ("LayerNormalization RMSNormalization SimplifiedLayerNormalization", Operator(mixing.layer_normalization)),
    ("com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization", _MIXES),
    ("LRN MeanVarianceNormalization", Operator(mixing.mixes_along(mixing.all_but_batch))),
    ("LpNormalization TopK", Operator(mixing.mixes_along(mixing.axis_attribute(-1)))),
    ("ArgMax ArgMin", Operator(mixing.mixes_along(mixing.axis_attribute(0)))),
    ("Softmax LogSoftmax Hardmax", Operator(mixing.mixes_along(mixing.softmax_axes))),
    ("CumSum", Operator(mixing.mixes_along(mixing.axis_input))),
    # over the positions of a channel
    ("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", Operator(channelwise.pool, _HOMOGENEOUS)),
    ("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2", Operator(_REDUCTION, _HOMOGENEOUS)),
    ("ReduceProd ReduceLogSum ReduceLogSumExp ReduceSumSquare", Operator(_REDUCTION)),
    ("Resize", Operator(extents.resize, scaling.resize, extents.edit_extents(3))),
    ("Upsample", Operator(extents.resize, _HOMOGENEOUS)),
    # moving values
    ("Reshape", Operator(layout.reshape, _HOMOGENEOUS, layout.edit_reshape)),
    ("Squeeze", Operator(layout.reshape, _HOMOGENEOUS, layout.edit_squeeze)),
    ("Flatten Unsqueeze", Operator(layout.reshape, _HOMOGENEOUS)),
    ("Transpose", Operator(layout.transpose, _HOMOGENEOUS)),
    ("Concat", Operator(layout.concat, scaling.homogeneous_in_all)),
    ("Split", Operator(picking.split, _HOMOGENEOUS, picking.edit_split)),
    ("Slice", Operator(picking.slice_channels, _HOMOGENEOUS, picking.edit_slice)),
    ("Gather", Operator(picking.gather, _HOMOGENEOUS, picking.edit_gather)),
    ("GatherElements ScatterElements Scatter", Operator(indexing.elements)),
    ("GatherND", Operator(indexing.gather_nd, _HOMOGENEOUS)),
    ("ScatterND", Operator(indexing.scatter_nd)),
    ("Expand", Operator(extents.expand, _HOMOGENEOUS, extents.edit_extents(1))),
    ("Tile", Operator(extents.tile, _HOMOGENEOUS)),
    ("Pad", Operator(extents.pad, scaling.pad, extents.edit_pad)),
    ("DepthToSpace SpaceToDepth", Operator(layout.depth_to_space, _HOMOGENEOUS)),
    # no channels come out
    ("Shape", Operator(sizes.writes_no_channels, edit=sizes.edit_shape)),
    ("ConstantOfShape", Operator(extents.constant_of_shape, edit=extents.edit_extents(0))),
    ("Constant Range RandomNormal RandomUniform", _NO_CHANNELS),
    ("Size EyeLike RandomNormalLike RandomUniformLike", Operator(sizes.reads_size)),
    # known to mix, or not followed
    ("Det NonMaxSuppression", _MIXES),
    ("NonZero Compress OneHot Unique ReverseSequence", _NOT_FOLLOWED),
    ("GridSample RoiAlign If Loop Scan SequenceConstruct SequenceAt SplitToSequence ConcatFromSequence", _NOT_FOLLOWED),
    ("QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul", Operator(unsupported.quantised)),
    ("ConvInteger MatMulInteger", Operator(unsupported.quantised)),
)

_UNKNOWN = Operator(unsupported.unknown)


def operator_of(node: gs.Node) -> Operator:
    """The row of a node's operator; one of another domain than ONNX's has that in its name."""
    return OPERATORS.get(operator_key(node), _UNKNOWN)
