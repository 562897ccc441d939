"""Forks and joins: fan-out, residual streams, Concat, products, squeeze-and-excite."""

from .net import Net
from .table import row


@row("fan-out-two-consumers", {"conv_a": 8}, True)
def fan_out(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    net.output(net.op("Add", net.conv(y, "out", 8, 4), net.conv(y, "conv_c", 8, 4, 1)), 4, 8, 8)


@row("fan-out-conv-and-gemm", {"conv_a": 8, "conv_b": 6}, True)
def fan_out_conv_and_gemm(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(y, "conv_b", 8, 6))))
    net.output(net.op("Add", net.gemm(net.op("Flatten", y), "out", 512, 4), net.gemm(pooled, "fc_b", 6, 4)), 4)


def block(net: Net, y: str, name: str, channels: int, inner: int) -> str:
    branch = net.relu(net.conv(y, f"{name}_conv1", channels, inner))
    return net.conv(branch, f"{name}_conv2", inner, channels)


@row("residual-identity", {"stem": 8, "block_conv1": 6, "block_conv2": 8}, True, tied=(("stem", "block_conv2"),))
def residual_identity(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "stem", 3, 8))
    y = net.relu(net.op("Add", block(net, y, "block", 8, 6), y))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row(
    "residual-projection",
    {"stem": 8, "block_conv1": 6, "block_conv2": 12, "projection": 12},
    True,
    tied=(("block_conv2", "projection"),),
)
def residual_projection(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "stem", 3, 8))
    branch = net.relu(net.conv(y, "block_conv1", 8, 6, strides=[2, 2]))
    branch = net.conv(branch, "block_conv2", 6, 12)
    y = net.relu(net.op("Add", branch, net.conv(y, "projection", 8, 12, 1, strides=[2, 2])))
    net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), "out", 12, 4), 4)


STREAM = {"stem": 8, "one_conv1": 6, "one_conv2": 8, "two_conv1": 5, "two_conv2": 8}


@row("residual-two-blocks", STREAM, True, tied=(("stem", "one_conv2", "two_conv2"),))
def residual_two_blocks(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "stem", 3, 8))
    y = net.relu(net.op("Add", y, block(net, y, "one", 8, 6)))
    y = net.relu(net.op("Add", block(net, y, "two", 8, 5), y))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("residual-two-blocks-bn", STREAM, True, tied=(("stem", "one_conv2", "two_conv2"),))
def residual_batch_norm(net: Net, x: str) -> None:
    """BatchNormalization after every convolution and before the Add, as in ResNet v1."""

    def conv_bn(y: str, name: str, c_in: int, c_out: int) -> str:
        return net.batch_norm(net.conv(y, name, c_in, c_out, bias=False), f"{name}_bn", c_out)

    y = net.relu(conv_bn(x, "stem", 3, 8))
    for name, inner in (("one", 6), ("two", 5)):
        branch = net.relu(conv_bn(y, f"{name}_conv1", 8, inner))
        y = net.relu(net.op("Add", conv_bn(branch, f"{name}_conv2", inner, 8), y))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("residual-preactivation", STREAM, None, tied=(("stem", "one_conv2", "two_conv2"),))
def residual_preactivation(net: Net, x: str) -> None:
    """ResNet v2: BatchNormalization follows the stream (no merge there), and conv1 alone (merge)."""
    y = net.conv(x, "stem", 3, 8)
    for name, inner in (("one", 6), ("two", 5)):
        branch = net.conv(net.relu(net.batch_norm(y, f"{name}_bn1", 8)), f"{name}_conv1", 8, inner)
        branch = net.conv(net.relu(net.batch_norm(branch, f"{name}_bn2", inner)), f"{name}_conv2", inner, 8)
        y = net.op("Add", y, branch)
    net.output(net.conv(net.relu(net.batch_norm(y, "bn_out", 8)), "out", 8, 4), 4, 8, 8)


@row(
    "residual-option-a",
    {"one_conv1": 6, "two_conv1": 5},
    True,
    tied=(("stem", "one_conv2", "two_conv2"),),
    at_most={"stem": 8, "one_conv2": 8, "two_conv2": 16},
)
def residual_option_a(net: Net, x: str) -> None:
    """CIFAR's shortcut without weights: every second pixel, four channels of zeros on either side: 8 to 16 channels.

    Of the 16 channels of two_conv2 the middle eight are tied to the stream before it; the others meet only zeros.
    """
    y = net.relu(net.conv(x, "stem", 3, 8))
    y = net.relu(net.op("Add", block(net, y, "one", 8, 6), y))
    branch = net.relu(net.conv(y, "two_conv1", 8, 5, strides=[2, 2]))
    branch = net.conv(branch, "two_conv2", 5, 16)
    bounds = {"starts": [0, 0], "ends": [2**31, 2**31], "axes": [2, 3], "steps": [2, 2]}
    shortcut = net.op("Slice", y, *[net.const(name, values) for name, values in bounds.items()])
    shortcut = net.op("Pad", shortcut, net.const("pads", [0, 4, 0, 0, 0, 4, 0, 0]))
    y = net.relu(net.op("Add", branch, shortcut))
    net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), "out", 16, 4), 4)


@row("concat-two-producers", {"conv_a": 8, "conv_b": 6}, True)
def concat_two(net: Net, x: str) -> None:
    first, second = net.relu(net.conv(x, "conv_a", 3, 8)), net.relu(net.conv(x, "conv_b", 3, 6, 1))
    net.output(net.conv(net.op("Concat", first, second, axis=1), "out", 14, 4), 4, 8, 8)


@row("concat-with-graph-input", {"conv_a": 8}, True)
def concat_with_input(net: Net, x: str) -> None:
    y = net.op("Concat", x, net.relu(net.conv(x, "conv_a", 3, 8)), axis=1)
    net.output(net.conv(y, "out", 11, 4), 4, 8, 8)


@row("concat-same-twice", {"conv_a": 8}, True)
def concat_same_twice(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    net.output(net.conv(net.op("Concat", y, y, axis=1), "out", 16, 4), 4, 8, 8)


@row("concat-flatten", {"conv_a": 8, "conv_b": 6}, True)
def concat_flatten(net: Net, x: str) -> None:
    first, second = net.relu(net.conv(x, "conv_a", 3, 8)), net.relu(net.conv(x, "conv_b", 3, 6, strides=[2, 2]))
    flat = net.op("Concat", net.op("Flatten", first), net.op("Flatten", second), axis=1)
    net.output(net.gemm(flat, "out", 512 + 96, 4), 4)


@row("densenet", {"stem": 8, "layer_1": 4, "layer_2": 4}, True, normalise=False)
@row("densenet-bn", {"stem": 8, "layer_1": 4, "layer_2": 4}, False, normalise=True)
def densenet(net: Net, x: str, normalise: bool) -> None:
    """Every layer reads all before it; with BatchNormalization a channel meets a different one at every consumer."""
    features, channels = net.conv(x, "stem", 3, 8), 8
    for name, width in (("layer_1", 4), ("layer_2", 4), ("out", 4)):
        y = net.batch_norm(features, f"{name}_bn", channels) if normalise else features
        y = net.conv(net.relu(y), name, channels, width)
        features, channels = net.op("Concat", features, y, axis=1) if name != "out" else y, channels + width
    net.output(features, 4, 8, 8)


@row("join-sum-of-three", {"conv_a": 8, "conv_b": 8, "conv_c": 8}, True, op_type="Sum", tied=(("conv_a", "conv_b", "conv_c"),))
@row("join-max-of-three", {"conv_a": 8, "conv_b": 8, "conv_c": 8}, True, op_type="Max", tied=(("conv_a", "conv_b", "conv_c"),))
def join_many(net: Net, x: str, op_type: str) -> None:
    y = net.relu(net.op(op_type, *[net.conv(x, name, 3, 8) for name in ("conv_a", "conv_b", "conv_c")]))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("join-product", {"conv_a": 8, "conv_b": 8}, False, tied=(("conv_a", "conv_b"),), op_type="Mul")
@row("join-difference", {"conv_a": 8, "conv_b": 8}, True, tied=(("conv_a", "conv_b"),), op_type="Sub")
def join_two(net: Net, x: str, op_type: str) -> None:
    y = net.op(op_type, net.conv(x, "conv_a", 3, 8), net.conv(x, "conv_b", 3, 8))
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 8, 8)


@row("squeeze-excite", {"expand": 8, "squeeze": 3, "excite": 8}, None, tied=(("expand", "excite"),))
def squeeze_excite(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "expand", 3, 8))
    gate = net.relu(net.conv(net.op("GlobalAveragePool", y), "squeeze", 8, 3, 1))
    gate = net.op("Sigmoid", net.conv(gate, "excite", 3, 8, 1))
    net.output(net.conv(net.op("Mul", y, gate), "out", 8, 4, 1), 4, 8, 8)


@row("squeeze-excite-gemm", {"expand": 8, "squeeze": 3, "excite": 8}, None, tied=(("expand", "excite"),))
def squeeze_excite_gemm(net: Net, x: str) -> None:
    """As in timm and Keras: the gate is computed on vectors and reshaped with a literal channel count."""
    y = net.relu(net.conv(x, "expand", 3, 8))
    gate = net.relu(net.gemm(net.op("ReduceMean", y, axes=[2, 3], keepdims=0), "squeeze", 8, 3))
    gate = net.op("Reshape", net.op("Sigmoid", net.gemm(gate, "excite", 3, 8)), net.const("shape", [-1, 8, 1, 1]))
    net.output(net.conv(net.op("Mul", gate, y), "out", 8, 4, 1), 4, 8, 8)


@row("two-inputs", {"conv_a": 8, "fc_a": 6}, True, feeds={"image": (2, 3, 8, 8), "state": (2, 5)})
def two_inputs(net: Net, image: str, state: str) -> None:
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(image, "conv_a", 3, 8))))
    both = net.op("Concat", pooled, net.relu(net.gemm(state, "fc_a", 5, 6)), axis=1)
    net.output(net.gemm(both, "out", 14, 4), 4)
