"""Operators that only move positions: flatten in all spellings, heads, Split, Slice, Gather, transposes, resizing."""

import numpy as np

from .net import Net
from .table import row

WIDTH = {"conv_a": 8}


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
