"""Operators that only move positions: flatten in all spellings, heads, Split, Slice, Gather, transposes, resizing."""

import numpy as np

from .net import Net
from .table import row

WIDTH = {"conv_a": 8}
VECTOR = {"x": (2, 16)}


def body(net: Net, x: str) -> str:
    """Eight channels on 4 x 4."""
    return net.op("MaxPool", net.relu(net.conv(x, "conv_a", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])


def dense_head(net: Net, flat: str, c_in: int) -> None:
    net.output(net.gemm(flat, "out", c_in, 4), 4)


@row("flatten-spatial", WIDTH, True)
def flatten(net: Net, x: str) -> None:
    dense_head(net, net.op("Flatten", body(net, x), axis=1), 128)


@row("flatten-two-layers", {**WIDTH, "fc_a": 20}, True)
def flatten_two_layers(net: Net, x: str) -> None:
    dense_head(net, net.relu(net.gemm(net.op("Flatten", body(net, x)), "fc_a", 128, 20)), 20)


@row("reshape-minus-one-literal", WIDTH, True, shape=[-1, 128])
@row("reshape-zero-minus-one", WIDTH, True, shape=[0, -1])
def reshape(net: Net, x: str, shape: list[int]) -> None:
    dense_head(net, net.op("Reshape", body(net, x), net.const("shape", shape)), 128)


@row("reshape-shape-subgraph", WIDTH, True, last=-1)
@row("reshape-shape-subgraph-literal", WIDTH, True, last=128)
def reshape_shape_subgraph(net: Net, x: str, last: int) -> None:
    y = body(net, x)
    batch = net.op("Gather", net.op("Shape", y), net.const("first", 0), axis=0)
    batch = net.op("Unsqueeze", batch, net.const("axes", [0]))
    dense_head(net, net.op("Reshape", y, net.op("Concat", batch, net.const("last", [last]), axis=0)), 128)


@row("reshape-channel-from-shape", WIDTH, True)
def reshape_channel_from_shape(net: Net, x: str) -> None:
    """The new shape takes batch and channel count from Shape, and merges the spatial axes: (N, C, 16)."""
    y = body(net, x)
    leading = net.op("Slice", net.op("Shape", y), net.const("start", [0]), net.const("end", [2]))
    y = net.op("Reshape", y, net.op("Concat", leading, net.const("rest", [-1]), axis=0))
    dense_head(net, net.op("ReduceMean", y, axes=[2], keepdims=0), 8)


@row("flatten-channel-minor", WIDTH, True)
def flatten_channel_minor(net: Net, x: str) -> None:
    y = net.op("Transpose", body(net, x), perm=[0, 2, 3, 1])
    dense_head(net, net.op("Reshape", y, net.const("shape", [-1, 128])), 128)


@row("reduce-mean-axes-attribute", WIDTH, True, opset=13, keepdims=0)
@row("reduce-mean-axes-input", WIDTH, True, opset=18, keepdims=0)
@row("reduce-mean-keepdims-flatten", WIDTH, True, opset=13, keepdims=1)
def reduce_mean_head(net: Net, x: str, keepdims: int) -> None:
    y = body(net, x)
    if net.opset >= 18:
        y = net.op("ReduceMean", y, net.const("axes", [2, 3]), keepdims=keepdims)
    else:
        y = net.op("ReduceMean", y, axes=[-1, -2], keepdims=keepdims)
    dense_head(net, net.op("Flatten", y) if keepdims else y, 8)


@row("global-average-pool-flatten", WIDTH, True, squeeze=False)
@row("global-average-pool-squeeze", WIDTH, True, squeeze=True)
def global_pool_head(net: Net, x: str, squeeze: bool) -> None:
    y = net.op("GlobalAveragePool", body(net, x))
    dense_head(net, net.op("Squeeze", y, net.const("axes", [2, 3])) if squeeze else net.op("Flatten", y), 8)


@row("global-average-pool-conv", WIDTH, True)
def global_pool_conv(net: Net, x: str) -> None:
    net.output(net.op("Flatten", net.conv(net.op("GlobalAveragePool", body(net, x)), "out", 8, 4, 1)), 4)


@row("split-attribute", {"conv_a": 12}, True, opset=11, sizes=(8, 4))
@row("split-input", {"conv_a": 12}, True, opset=13, sizes=(8, 4))
@row("split-equal-default", {"conv_a": 12}, True, opset=13, sizes=(6, 6), explicit=False)
@row("split-num-outputs", {"conv_a": 12}, True, opset=18, sizes=(6, 6), explicit=False)
def split(net: Net, x: str, sizes: tuple[int, int], explicit: bool = True) -> None:
    """Two branches of given widths, each with its own consumer."""
    y = net.relu(net.conv(x, "conv_a", 3, 12))
    if not explicit:
        first, second = net.op("Split", y, outs=2, axis=1, **({"num_outputs": 2} if net.opset >= 18 else {}))
    elif net.opset >= 13:
        first, second = net.op("Split", y, net.const("sizes", list(sizes)), outs=2, axis=1)
    else:
        first, second = net.op("Split", y, outs=2, axis=1, split=list(sizes))
    y = net.op("Add", net.conv(first, "out", sizes[0], 4), net.conv(second, "conv_second", sizes[1], 4))
    net.output(y, 4, 8, 8)


@row("glu", {"conv_a": 16}, False)
def gated_linear_unit(net: Net, x: str) -> None:
    """Channel i and channel i + 8 go together."""
    value, gate = net.op("Split", net.conv(x, "conv_a", 3, 16), net.const("sizes", [8, 8]), outs=2, axis=1)
    net.output(net.conv(net.op("Mul", value, net.op("Sigmoid", gate)), "out", 8, 4), 4, 8, 8)


@row("slice-channels", {"conv_a": 12}, True, opset=13, whole=False)
@row("slice-channels-attributes", {"conv_a": 12}, True, opset=9, whole=False)
@row("slice-channels-beside-whole", {"conv_a": 12}, True, opset=13, whole=True)
def slice_channels(net: Net, x: str, whole: bool) -> None:
    """Channels 2 to 7 have a consumer; the others have one only where `whole` says so."""
    y = net.relu(net.conv(x, "conv_a", 3, 12))
    if net.opset >= 10:
        bounds = [net.const(name, [value]) for name, value in (("start", 2), ("end", 8), ("axis", 1))]
        part = net.op("Slice", y, *bounds)
    else:
        part = net.op("Slice", y, starts=[2], ends=[8], axes=[1])
    result = net.conv(part, "out", 6, 4)
    net.output(net.op("Add", result, net.conv(y, "conv_whole", 12, 4)) if whole else result, 4, 8, 8)


@row("gather-channels", WIDTH, True, indices=[5, 0, 3, 7, 1, 2, 6, 4])
@row("gather-channels-repeated", WIDTH, True, indices=[1, 1, 6, 4, 0, 6])
def gather_channels(net: Net, x: str, indices: list[int]) -> None:
    y = net.op("Gather", net.relu(net.conv(x, "conv_a", 3, 8)), net.const("indices", indices), axis=1)
    net.output(net.conv(y, "out", len(indices), 4), 4, 8, 8)


@row("gather-channels-onto-two-axes", WIDTH, None)
def gather_channels_onto_two_axes(net: Net, x: str) -> None:
    """Indices of two rows, exchanged with the columns afterwards: the channels of a column leave together."""
    indices = net.const("indices", [[0, 2, 4, 6], [1, 3, 5, 7]])
    y = net.op("Gather", net.relu(net.conv(x, "conv_a", 3, 8)), indices, axis=1)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), net.const("shape", [0, 8, 8, 8]))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("nhwc-transposes-around-convs", {"conv_a": 8, "conv_b": 6}, True, feeds={"x": (2, 8, 8, 3)})
def nhwc(net: Net, x: str) -> None:
    y = net.op("Transpose", x, perm=[0, 3, 1, 2])
    for name, c_in, c_out in (("conv_a", 3, 8), ("conv_b", 8, 6), ("out", 6, 4)):
        y = net.conv(y, name, c_in, c_out)
        if name != "out":
            y = net.relu(net.op("Transpose", y, perm=[0, 2, 3, 1]))
            y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    net.output(net.op("Transpose", y, perm=[0, 2, 3, 1]), 8, 8, 4)


@row("resize-scales", WIDTH, True, opset=17)
@row("upsample-opset9", WIDTH, True, opset=9)
@row("resize-sizes-literal", WIDTH, True, opset=17, batch=2, literal=True)
def resize(net: Net, x: str, literal: bool = False) -> None:
    y, scales = net.relu(net.conv(x, "conv_a", 3, 8)), np.array([1.0, 1.0, 2.0, 2.0])
    if literal:
        y = net.op("Resize", y, "", "", net.const("sizes", [2, 8, 16, 16]), mode="nearest")
    elif net.opset == 9:
        y = net.op("Upsample", y, net.const("scales", scales), mode="nearest")
    else:
        y = net.op("Resize", y, "", net.const("scales", scales), mode="nearest")
    net.output(net.conv(y, "out", 8, 4), 4, 16, 16)


@row("expand-after-global-pool", WIDTH, True)
def expand(net: Net, x: str) -> None:
    y = net.op("GlobalAveragePool", net.relu(net.conv(x, "conv_a", 3, 8)))
    net.output(net.conv(net.op("Expand", y, net.const("shape", [1, 1, 5, 5])), "out", 8, 4), 4, 5, 5)


@row("expand-literal-channels", WIDTH, True)
def expand_literal(net: Net, x: str) -> None:
    y = net.op("GlobalAveragePool", net.relu(net.conv(x, "conv_a", 3, 8)))
    net.output(net.conv(net.op("Expand", y, net.const("shape", [1, 8, 5, 5])), "out", 8, 4), 4, 5, 5)


@row("pixel-shuffle-dcr", {}, None, at_most={"conv_a": 16}, mode="DCR")
@row("pixel-shuffle-crd", {}, None, at_most={"conv_a": 16}, mode="CRD")
def pixel_shuffle(net: Net, x: str, mode: str) -> None:
    """Four channels go together, one for each place in a block of 2 x 2."""
    y = net.op("DepthToSpace", net.relu(net.conv(x, "conv_a", 3, 16)), blocksize=2, mode=mode)
    net.output(net.conv(y, "out", 4, 4), 4, 16, 16)


@row("slice-channels-in-steps", WIDTH, True, step=2)
@row("slice-channels-reversed", WIDTH, True, step=-1)
def slice_in_steps(net: Net, x: str, step: int) -> None:
    """Every second channel, or all of them in reverse, beside the whole."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    start, end = (0, 8) if step > 0 else (-1, -9)
    part = net.op("Slice", y, *(net.const(f"part_{i}", [value]) for i, value in enumerate((start, end, 1, step))))
    net.output(net.op("Add", net.conv(part, "out", 4 if step == 2 else 8, 4), net.conv(y, "conv_whole", 8, 4)), 4, 8, 8)


def entry(net: Net, tensor: str, axis: int) -> str:
    """One number of the shape of a tensor, as PyTorch exports `tensor.size(axis)`."""
    return net.op("Gather", net.op("Shape", tensor), net.const(f"axis_{len(net.nodes)}", axis))


@row("divided-by-root-of-channel-count", WIDTH, True)
def divided_by_root_of_channel_count(net: Net, x: str) -> None:
    """x / sqrt(x.size(1)): the number must not follow the channels."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    root = net.op("Sqrt", net.op("Cast", entry(net, y, 1), to=1))
    net.output(net.conv(net.op("Div", y, root), "out", 8, 4), 4, 8, 8)


@row("reshape-by-shape-of-other-branch", {**WIDTH, "fc_a": 0}, True)
def reshape_by_other_branch(net: Net, x: str) -> None:
    """What is reshaped to (N, channels of the other branch, 16) keeps its shape when the other branch loses channels."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    leading = net.op("Slice", net.op("Shape", y), net.const("start", [0]), net.const("end", [2]))
    z = net.gemm(net.op("Flatten", x), "fc_a", 192, 128)
    z = net.op("Reshape", z, net.op("Concat", leading, net.const("rest", [-1]), axis=0))
    z = net.op("ReduceMean", net.op("ReduceMax", z, axes=[1], keepdims=0), axes=[1])
    net.output(net.op("Add", net.op("Flatten", net.op("GlobalMaxPool", net.conv(y, "out", 8, 4))), z), 4)


@row("size-of-channels-read", {"conv_a": 0}, None)
def size_read(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    net.output(net.conv(net.op("Div", y, net.op("Cast", net.op("Size", y), to=1)), "out", 8, 4), 4, 8, 8)


@row("resize-to-size-of-skip", {"conv_a": 12, "conv_b": 8}, True, symbolic=True)
def resize_to_skip(net: Net, x: str) -> None:
    """U-Net and FPN: F.interpolate(z, size=y.shape[2:]) with dynamic height and width."""
    y = net.relu(net.conv(x, "conv_a", 3, 12))
    z = net.relu(net.conv(y, "conv_b", 12, 8, strides=[2, 2]))
    zero, two, four = (net.const(f"at_{at}", [at]) for at in (0, 2, 4))
    leading, size = net.op("Slice", net.op("Shape", z), zero, two), net.op("Slice", net.op("Shape", y), two, four)
    z = net.op("Resize", z, "", "", net.op("Concat", leading, size, axis=0))
    net.output(net.conv(net.op("Concat", y, z, axis=1), "out", 20, 4), 4, "H", "W")


@row("chunk-with-computed-bounds", {"conv_a": 12, "conv_b": 6}, True)
def chunk(net: Net, x: str) -> None:
    """x.chunk(2, 1) of the TorchScript exporter: bounds computed from Shape(x)[1]; the second half has a layer of its own."""
    y = net.relu(net.conv(x, "conv_a", 3, 12))
    one = net.const("one", [1])
    half = net.op("Div", net.op("Add", net.op("Gather", net.op("Shape", y), one), one), net.const("two", [2]))
    first = net.op("Slice", y, net.const("zero", [0]), half, one)
    second = net.op("Slice", y, half, net.op("Mul", half, "two"), one)
    net.output(net.conv(net.op("Concat", first, net.conv(second, "conv_b", 6, 6), axis=1), "out", 12, 4), 4, 8, 8)


@row("split-into-computed-sizes", {"conv_a": 12}, True)
def split_computed(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 12))
    half = net.op("Div", net.op("Unsqueeze", entry(net, y, 1), net.const("axes", [0])), net.const("two", [2]))
    first, second = net.op("Split", y, net.op("Concat", half, half, axis=0), outs=2, axis=1)
    net.output(net.op("Add", net.conv(first, "out", 6, 4), net.conv(second, "conv_second", 6, 4)), 4, 8, 8)


@row("gate-expanded-to-shape", {"conv_a": 8, "squeeze": 4, "excite": 8}, None, tied=(("conv_a", "excite"),), symbolic=True)
def gate_expanded(net: Net, x: str) -> None:
    """Squeeze and excite whose gate is expanded to the shape of what it multiplies."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    gate = net.relu(net.conv(net.op("GlobalAveragePool", y), "squeeze", 8, 4, 1))
    gate = net.op("Sigmoid", net.conv(gate, "excite", 4, 8, 1))
    net.output(net.conv(net.op("Mul", y, net.op("Expand", gate, net.op("Shape", y))), "out", 8, 4), 4, "H", "W")


@row("group-norm-of-dynamic-size", {"conv_a": 8}, None, symbolic=True)
def group_norm_dynamic(net: Net, x: str) -> None:
    """GroupNorm(4, 8) written out, back to the shape that the graph computes, with dynamic height and width."""
    y = net.conv(x, "conv_a", 3, 8)
    z = net.op("Reshape", y, net.const("grouped", [0, 4, -1]))
    z = net.op("InstanceNormalization", z, net.const("ones", [1.0] * 4), net.const("zeros", [0.0] * 4))
    z = net.op("Mul", net.op("Reshape", z, net.op("Shape", y)), net.const("scale", net.positive(8, 1, 1)))
    net.output(net.conv(net.relu(z), "out", 8, 4), 4, "H", "W")


@row("zeros-of-shape-appended", WIDTH, True)
def zeros_appended(net: Net, x: str) -> None:
    """The zero-padded shortcut: as many channels of zeros as there are channels."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    zeros = net.op("ConstantOfShape", net.op("Shape", y))
    net.output(net.conv(net.op("Concat", y, zeros, axis=1), "out", 16, 4), 4, 8, 8)


@row("embedding-added", {"fc_a": 16}, None, feeds={"x": (2, 5, 8)})
def embedding_added(net: Net, x: str) -> None:
    """A table of constants, of which the graph picks rows, is added to what a layer writes."""
    picked = net.op("Gather", net.const("table", net.small(8, 16)), net.op("ArgMax", x, axis=2, keepdims=0))
    y = net.relu(net.op("Add", net.matmul(x, "fc_a", 8, 16), picked))
    net.output(net.matmul(y, "out", 16, 4), 5, 4)


@row("matmul-by-vector", {"fc_a": 16, "out": 0}, True, feeds={"x": (2, 5, 8)})
def matmul_by_vector(net: Net, x: str) -> None:
    y = net.relu(net.matmul(x, "fc_a", 8, 16))
    net.output(net.op("MatMul", y, net.const("out_w", net.he((16,), 16)), name="out"), 5)


@row("matmul-weights-of-rank-3", {"fc_a": 16}, True, feeds={"x": (2, 5, 8)})
def matmul_rank_3(net: Net, x: str) -> None:
    y = net.relu(net.op("MatMul", x, net.const("fc_a_w", net.he((1, 8, 16), 8)), name="fc_a"))
    net.output(net.op("MatMul", y, net.const("out_w", net.he((1, 16, 4), 16)), name="out"), 5, 4)


@row("einsum-sequence", {"fc_a": 16}, None, feeds={"x": (2, 5, 8)})
def einsum_sequence(net: Net, x: str) -> None:
    y = net.relu(net.op("Einsum", x, net.const("fc_a_w", net.he((16, 8), 8)), equation="bsd, hd -> bsh", name="fc_a"))
    net.output(net.op("Einsum", y, net.const("out_w", net.he((16, 4), 16)), equation="bsd,dh->bsh", name="out"), 5, 4)


@row("einsum-image", {"conv_a": 8, "mix": 6}, True)
def einsum_image(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    y = net.relu(net.op("Einsum", net.const("mix_w", net.he((6, 8), 8)), y, equation="oc,bchw->bohw", name="mix"))
    net.output(net.conv(y, "out", 6, 4), 4, 8, 8)


@row("group-normalization", {"conv_a": 8}, False, opset=21, ir=10)
def group_normalization(net: Net, x: str) -> None:
    """The operator itself, with four groups of two channels."""
    scale, bias = net.const("scale", net.positive(8)), net.const("bias", net.small(8))
    y = net.op("GroupNormalization", net.conv(x, "conv_a", 3, 8), scale, bias, num_groups=4)
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 8, 8)


@row("tied-with-its-transpose", {"fc_a": 20}, True, feeds=VECTOR, behind_transpose=True, at_most={"decode": 0})
@row("tied-gemm-transb", {"fc_a": 20}, True, feeds=VECTOR, behind_transpose=False, at_most={"decode": 0})
def tied_with_transpose(net: Net, x: str, behind_transpose: bool) -> None:
    """An autoencoder: the decoder has the weight of the encoder, transposed."""
    weight = net.const("tied_w", net.he((16, 20), 16))
    y = net.relu(net.op("Gemm", x, weight, net.const("fc_a_b", net.small(20)), name="fc_a"))
    if behind_transpose:
        y = net.op("MatMul", y, net.op("Transpose", weight, perm=[1, 0]), name="decode")
    else:
        y = net.op("Gemm", y, weight, transB=1, name="decode")
    net.output(net.gemm(net.op("Softmax", y, axis=1), "out", 16, 4), 4)


@row("gather-nd-scatter-nd-rows", {"conv_a": 8}, False)
def rows_of_positions(net: Net, x: str) -> None:
    """Rows of the image are picked and written back elsewhere; the channels stand behind the axis that is indexed."""
    y = net.op("Transpose", net.relu(net.conv(x, "conv_a", 3, 8)), perm=[2, 0, 1, 3])
    picked = net.op("GatherND", y, net.const("from", [[1], [2]]))
    y = net.op("ScatterND", y, net.const("to", [[0], [3]]), net.op("Tanh", picked))
    y = net.op("Transpose", y, perm=[1, 2, 0, 3])
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("gather-scatter-elements", {"conv_a": 8}, False, batch=2)
def elements(net: Net, x: str) -> None:
    """Positions are reversed, then ones are written at one, with an index for every channel."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    order = np.broadcast_to(np.arange(8)[::-1], (2, 8, 8, 8))
    y = net.op("GatherElements", y, net.const("order", np.array(order)), axis=3)
    first, ones = net.const("first", np.zeros((2, 8, 8, 1), int)), net.const("ones", np.ones((2, 8, 8, 1)))
    y = net.op("ScatterElements", y, first, ones, axis=3)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
