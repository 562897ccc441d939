"""Where weights and shapes may be kept in a file: every spelling of the same two or three layers."""

import numpy as np
import onnx
from onnx import numpy_helper

from .net import Net
from .table import row

WIDTH = {"conv_a": 8}


def finish(net: Net, y: str) -> None:
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 8, 8)


@row("weights-in-constant-nodes", {"conv_a": 8, "fc_a": 20}, True)
def constant_nodes(net: Net, x: str) -> None:
    weight, bias = net.constant_node("conv_a_w", net.he((8, 3, 3, 3), 27)), net.constant_node("conv_a_b", net.small(8))
    y = net.op("Conv", x, weight, bias, name="conv_a", pads=[1, 1, 1, 1])
    y = net.op("Flatten", net.op("GlobalAveragePool", net.relu(y)))
    y = net.op("MatMul", y, net.constant_node("fc_a_w", net.he((8, 20), 8)), name="fc_a")
    net.output(net.gemm(net.relu(net.op("Add", y, net.constant_node("fc_a_b", net.small(20)))), "out", 20, 4), 4)


@row("weight-behind-identity", WIDTH, True)
def behind_identity(net: Net, x: str) -> None:
    weight = net.op("Identity", net.const("stored", net.he((8, 3, 3, 3), 27)))
    finish(net, net.conv(x, "conv_a", 3, 8, weight=weight))


@row("weight-behind-transpose", {"fc_a": 24}, True, feeds={"x": (2, 16)})
def behind_transpose(net: Net, x: str) -> None:
    """The weights are stored (out, in) and turned before MatMul."""
    weight = net.op("Transpose", net.const("stored", net.he((24, 16), 16)), perm=[1, 0])
    y = net.relu(net.op("Add", net.op("MatMul", x, weight, name="fc_a"), net.const("fc_a_b", net.small(24))))
    weight = net.op("Transpose", net.const("stored_out", net.he((4, 24), 24)), perm=[1, 0])
    net.output(net.op("MatMul", y, weight, name="out"), 4)


@row("weight-behind-squeeze", WIDTH, True, feeds={"x": (2, 3, 12)})
def behind_squeeze(net: Net, x: str) -> None:
    weight = net.op("Squeeze", net.const("stored", net.he((8, 3, 3, 1), 9)), net.const("axes", [3]))
    y = net.relu(net.conv(x, "conv_a", 3, 8, rank=1, weight=weight))
    net.output(net.conv(y, "out", 8, 4, rank=1), 4, 12)


@row("weight-behind-reshape", WIDTH, True)
def behind_reshape(net: Net, x: str) -> None:
    weight = net.op("Reshape", net.const("stored", net.he((8, 27), 27)), net.const("kernel", [8, 3, 3, 3]))
    finish(net, net.conv(x, "conv_a", 3, 8, weight=weight))


@row("initializers-as-inputs-ir3-opset7", {"conv_a": 8, "conv_b": 6}, True, opset=7, ir=3, initializers_as_inputs=True)
@row("opset-22-ir-10", {"conv_a": 8, "conv_b": 6}, True, opset=22, ir=10)
def old_and_new(net: Net, x: str) -> None:
    y = net.relu(net.batch_norm(net.conv(x, "conv_a", 3, 8, bias=False), "bn_a", 8))
    y = net.op("MaxPool", net.relu(net.conv(y, "conv_b", 8, 6)), kernel_shape=[2, 2], strides=[2, 2])
    net.output(net.gemm(net.op("Flatten", y), "out", 96, 4), 4)


@row("dynamic-spatial-size", {"conv_a": 8, "conv_b": 6}, True, symbolic=True)
def dynamic_spatial(net: Net, x: str) -> None:
    y = net.relu(net.conv(net.relu(net.conv(x, "conv_a", 3, 8, strides=[2, 2])), "conv_b", 8, 6))
    net.output(net.op("Flatten", net.conv(net.op("GlobalAveragePool", y), "out", 6, 4, 1)), 4)


@row("float16", {"conv_a": 8, "conv_b": 6}, True, dtype="float16")
def half_precision(net: Net, x: str) -> None:
    y = net.relu(net.batch_norm(net.conv(x, "conv_a", 3, 8, bias=False), "bn_a", 8))
    y = net.relu(net.conv(y, "conv_b", 8, 6))
    net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), "out", 6, 4), 4)


@row("weights-in-float-data", WIDTH, True)
def float_data(net: Net, x: str) -> None:
    """Weights in the field float_data and not in raw_data, as older exporters write them."""
    finish(net, net.conv(x, "conv_a", 3, 8))
    for position, tensor in enumerate(net.initializers):
        values = numpy_helper.to_array(tensor)
        typed = onnx.helper.make_tensor(tensor.name, tensor.data_type, values.shape, values.ravel().tolist())
        net.initializers[position] = typed


@row(
    "shared-weight-joined",
    {"conv_a": 8, "conv_b": 8},
    True,
    tied=(("conv_a", "conv_b"),),
    feeds={"x": (2, 3, 8, 8), "z": (2, 3, 8, 8)},
)
def siamese(net: Net, x: str, z: str) -> None:
    """Two convolutions of two inputs use one weight and one bias; their difference goes on."""
    weight, bias = net.const("shared_w", net.he((8, 3, 3, 3), 27)), net.const("shared_b", net.small(8))
    first, second = (
        net.op("Conv", tensor, weight, bias, name=name, pads=[1, 1, 1, 1]) for tensor, name in ((x, "conv_a"), (z, "conv_b"))
    )
    finish(net, net.op("Sub", first, second))


@row("shared-weight-in-sequence", {}, None, at_most={"stem": 8, "conv_a": 8, "conv_b": 8})
def shared_in_sequence(net: Net, x: str) -> None:
    """One 8 x 8 weight is used twice in a row: shrink both uses alike, give each a copy, or leave it."""
    y, weight = net.relu(net.conv(x, "stem", 3, 8)), net.const("shared_w", net.he((8, 8, 3, 3), 72))
    for name in ("conv_a", "conv_b"):
        y = net.relu(net.conv(y, name, 8, 8, bias=False, weight=weight))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("shared-weight-one-in-output", {"out": 0}, None, at_most={"conv_a": 8})
def shared_with_output(net: Net, x: str) -> None:
    """The same weight makes hidden channels (conv_a) and an output (out): the output keeps all eight."""
    weight = net.const("shared_w", net.he((8, 3, 3, 3), 27))
    y = net.relu(net.conv(x, "conv_a", 3, 8, weight=weight))
    y = net.conv(y, "conv_b", 8, 8)
    net.output(net.op("Add", y, net.conv(x, "out", 3, 8, weight=weight)), 8, 8, 8)


@row("weight-also-read-as-data", {}, None, at_most={"conv_a": 8})
def weight_as_data(net: Net, x: str) -> None:
    """The weight of conv_a also enters the output as a number: that consumer needs all of it."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    norm = net.op("ReduceMean", net.op("Abs", "conv_a_w"), keepdims=0)
    net.output(net.op("Mul", net.conv(y, "out", 8, 4), norm), 4, 8, 8)


@row("bias-shared-through-identity", {"conv_a": 8, "conv_b": 8}, True)
def shared_bias(net: Net, x: str) -> None:
    """PyTorch writes equal tensors once and Identity for the others; the two convolutions are independent groups."""
    stored = net.const("stored_b", net.small(8))
    y = net.relu(net.op("Conv", x, net.const("conv_a_w", net.he((8, 3, 3, 3), 27)), stored, name="conv_a", pads=[1] * 4))
    copy = net.op("Identity", stored)
    y = net.op("Conv", y, net.const("conv_b_w", net.he((8, 8, 3, 3), 72)), copy, name="conv_b", pads=[1] * 4)
    finish(net, y)


@row("bn-parameters-shared", {"conv_a": 8, "conv_b": 8}, True)
def shared_batch_norm(net: Net, x: str) -> None:
    """Both BatchNormalizations read the same four vectors."""
    y = net.relu(net.batch_norm(net.conv(x, "conv_a", 3, 8), "bn_a", 8))
    parts = [f"bn_a_{part}" for part in ("scale", "bias", "mean", "var")]
    finish(net, net.op("BatchNormalization", net.conv(y, "conv_b", 8, 8), *parts, name="bn_b"))


@row("bn-scale-and-variance-one-tensor", WIDTH, True)
def one_tensor_twice(net: Net, x: str) -> None:
    """Scale and variance are all ones and stored once."""
    y, ones, zeros = net.conv(x, "conv_a", 3, 8), net.const("ones", np.ones(8) * 1.0), net.const("zeros", np.zeros(8))
    finish(net, net.op("BatchNormalization", y, ones, zeros, zeros, ones, name="bn_a"))
