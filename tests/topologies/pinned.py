"""Channels that must stay: something mixes them, reads them from outside, or nobody knows what it does."""

from .net import Net
from .table import row

PINNED = {"conv_a": 0}
RECURRENT = {"conv_a": 8}
SEQUENCE = {"x": (2, 5, 16)}


@row("softmax-over-channels", PINNED, None, op_type="Softmax", axis=1)
@row("lp-normalization-over-channels", PINNED, None, op_type="LpNormalization", axis=1, p=2)
@row("local-response-normalization", PINNED, None, op_type="LRN", size=3)
def mixing(net: Net, x: str, op_type: str, **attributes) -> None:
    y = net.op(op_type, net.conv(x, "conv_a", 3, 8), **attributes)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("softmax-over-pixels", {"conv_a": 8}, False)
def softmax_over_pixels(net: Net, x: str) -> None:
    """The counterpart: Softmax along another axis leaves the channels alone."""
    net.output(net.conv(net.op("Softmax", net.conv(x, "conv_a", 3, 8), axis=3), "out", 8, 4), 4, 8, 8)


@row("layer-norm-over-channels", {"fc_a": 0, "fc_b": 12}, True, feeds=SEQUENCE)
def layer_norm(net: Net, x: str) -> None:
    scale, shift = net.const("scale", net.positive(24)), net.const("shift", net.small(24))
    y = net.op("LayerNormalization", net.matmul(x, "fc_a", 16, 24), scale, shift, axis=-1)
    y = net.relu(net.matmul(y, "fc_b", 24, 12))
    net.output(net.matmul(y, "out", 12, 4), 5, 4)


@row("layer-norm-written-out", {"fc_a": 0, "fc_b": 12}, True, feeds=SEQUENCE)
def layer_norm_written_out(net: Net, x: str) -> None:
    y = net.matmul(x, "fc_a", 16, 24)
    covariance = net.op("Sub", y, net.op("ReduceMean", y, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", covariance, net.const("two", 2.0)), axes=[-1])
    y = net.op("Div", covariance, net.op("Sqrt", net.op("Add", variance, net.const("epsilon", 1e-5))))
    y = net.op("Add", net.op("Mul", y, net.const("scale", net.positive(24))), net.const("shift", net.small(24)))
    y = net.relu(net.matmul(y, "fc_b", 24, 12))
    net.output(net.matmul(y, "out", 12, 4), 5, 4)


@row("group-norm-as-instance-norm", {"conv_a": 8}, None)
def group_norm(net: Net, x: str) -> None:
    """PyTorch's export of GroupNorm(2, 8): four channels share a mean, so they go together."""
    y = net.op("Reshape", net.conv(x, "conv_a", 3, 8), net.const("grouped", [0, 2, -1]))
    y = net.op("InstanceNormalization", y, net.const("ones", [1.0, 1.0]), net.const("zeros", [0.0, 0.0]))
    y = net.op("Reshape", y, net.const("whole", [-1, 8, 8, 8]))
    y = net.op("Add", net.op("Mul", y, net.const("scale", net.positive(8, 1, 1))), net.const("shift", net.small(8, 1, 1)))
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 8, 8)


@row("spatial-attention", PINNED, None)
def spatial_attention(net: Net, x: str) -> None:
    """CBAM: mean and maximum over the channels."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    maps = net.op("Concat", net.op("ReduceMean", y, axes=[1]), net.op("ReduceMax", y, axes=[1]), axis=1)
    gate = net.op("Sigmoid", net.conv(maps, "conv_gate", 2, 1))
    net.output(net.conv(net.op("Mul", y, gate), "out", 8, 4), 4, 8, 8)


@row("output-also-consumed", PINNED, None)
def output_also_consumed(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
    net.output(y, 8, 8, 8)


@row("fan-out-branch-to-output", PINNED, None)
def branch_to_output(net: Net, x: str) -> None:
    """Features leave the model through pooling and Flatten."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    net.output(net.op("Flatten", net.op("GlobalAveragePool", y)), 8)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("residual-with-graph-input", {"conv_a": 6, "conv_b": 0}, True)
def residual_with_input(net: Net, x: str) -> None:
    """conv_b's channels meet those of the graph input."""
    y = net.conv(net.relu(net.conv(x, "conv_a", 3, 6)), "conv_b", 6, 3)
    net.output(net.conv(net.relu(net.op("Add", x, y)), "out", 3, 4), 4, 8, 8)


@row("gram-of-activations", PINNED, None)
def gram(net: Net, x: str) -> None:
    """MatMul of two activations whose channels become rows and columns."""
    y = net.op("Reshape", net.conv(x, "conv_a", 3, 8, 3), net.const("pixels", [0, 0, -1]))
    y = net.op("MatMul", y, net.op("Transpose", y, perm=[0, 2, 1]))
    y = net.op("Mul", y, net.const("mean", 1 / 64))
    net.output(net.gemm(net.op("Flatten", y), "out", 64, 4), 4)


@row("if-body-capture", PINNED, None)
def if_body(net: Net, x: str) -> None:
    """Both branches read the activation of conv_a from outside."""
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    positive = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.const("zero", 0.0))
    branches = {
        "then_branch": net.body("then", "then_y", lambda inner: inner.op("Mul", y, inner.const("two", 2.0), name="twice")),
        "else_branch": net.body("else", "else_y", lambda inner: inner.op("Tanh", y, name="other")),
    }
    y = net.op("If", positive, name="choose", **branches)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("unknown-custom-operator", {"conv_a": 0, "conv_b": 6}, True, runnable=False)
def custom_operator(net: Net, x: str) -> None:
    y = net.op("Mystery", net.relu(net.conv(x, "conv_a", 3, 8)), domain="com.example", strength=2)
    y = net.relu(net.conv(y, "conv_b", 8, 6))
    net.output(net.conv(y, "out", 6, 4), 4, 8, 8)


@row("lstm-after-conv", RECURRENT, None, op_type="LSTM", gates=4, feeds={"x": (2, 3, 10)})
@row("gru-after-conv", RECURRENT, None, op_type="GRU", gates=3, feeds={"x": (2, 3, 10)})
def recurrent(net: Net, x: str, op_type: str, gates: int) -> None:
    y = net.op("Transpose", net.relu(net.conv(x, "conv_a", 3, 8, rank=1)), perm=[2, 0, 1])
    weights = [
        net.const("recurrent_w", net.he((1, gates * 6, 8), 8)),
        net.const("recurrent_r", net.he((1, gates * 6, 6), 6)),
        net.const("recurrent_b", net.small(1, 2 * gates * 6)),
    ]
    y, *_ = net.op(op_type, y, *weights, name="recurrent", outs=2, hidden_size=6)
    y = net.op("Transpose", net.op("Squeeze", y, net.const("direction", [1])), perm=[1, 0, 2])
    net.output(net.matmul(y, "out", 6, 4), 10, 4)


@row("max-pool-indices-are-output", PINNED, None)
def max_pool_indices(net: Net, x: str) -> None:
    y, positions = net.op("MaxPool", net.conv(x, "conv_a", 3, 8), outs=2, kernel_shape=[2, 2], strides=[2, 2])
    net.output(net.conv(y, "out", 8, 4), 4, 4, 4)
    net.output(net.op("Mul", net.op("Cast", positions, to=net.element_type), net.const("small", 0.01)), 8, 4, 4)
