"""One producer a group: plain chains, biases, BatchNormalization in all its spellings, pooling, strides and pads."""

from .net import Net
from .table import row

VECTOR = {"x": (2, 16)}
SEQUENCE = {"x": (2, 5, 16)}


@row("conv-relu-conv", {"conv_a": 8}, True)
@row("conv-relu-conv-no-bias", {"conv_a": 8}, True, bias=False)
@row("conv-relu-conv-dilated", {"conv_a": 8}, True, size=8, dilations=[2, 2], pads=[2, 2, 2, 2])
@row("conv-relu-conv-strided", {"conv_a": 8}, True, size=4, strides=[2, 2])
@row("conv-relu-conv-asymmetric-pads", {"conv_a": 8}, True, size=9, pads=[0, 1, 3, 2])
@row("conv-relu-conv-auto-pad", {"conv_a": 8}, True, size=4, auto_pad="SAME_UPPER", strides=[2, 2], pads=None)
def conv_chain(net: Net, x: str, bias=True, size=8, **attributes) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8, bias=bias, **attributes))
    net.output(net.conv(y, "out", 8, 4, bias=bias), 4, size, size)


@row("conv-identity-conv", {"conv_a": 8}, True)
def conv_conv(net: Net, x: str) -> None:
    net.output(net.conv(net.conv(x, "conv_a", 3, 8), "out", 8, 4), 4, 8, 8)


@row("conv1d", {"conv_a": 8}, True, rank=1, feeds={"x": (2, 3, 12)})
@row("conv3d", {"conv_a": 8}, True, rank=3, feeds={"x": (2, 3, 4, 5, 6)})
def conv_other_rank(net: Net, x: str, rank: int) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8, rank=rank))
    net.output(net.conv(y, "out", 8, 4, rank=rank), 4, *((12,) if rank == 1 else (4, 5, 6)))


@row("gemm-relu-gemm-transb0", {"fc_a": 24, "fc_b": 12}, True, feeds=VECTOR, trans_b=0)
@row("gemm-relu-gemm-transb1", {"fc_a": 24, "fc_b": 12}, True, feeds=VECTOR, trans_b=1)
@row("gemm-relu-gemm-no-bias", {"fc_a": 24, "fc_b": 12}, True, feeds=VECTOR, bias=False)
@row("gemm-relu-gemm-alpha-beta", {"fc_a": 24, "fc_b": 12}, True, feeds=VECTOR, alpha=0.5, beta=2.0)
def gemm_chain(net: Net, x: str, **attributes) -> None:
    y = net.relu(net.gemm(x, "fc_a", 16, 24, **attributes))
    y = net.relu(net.gemm(y, "fc_b", 24, 12, **attributes))
    net.output(net.gemm(y, "out", 12, 4, **attributes), 4)


@row("gemm-transa", {"fc_a": 24}, True, feeds=VECTOR)
def gemm_transposed_input(net: Net, x: str) -> None:
    y = net.relu(net.gemm(net.op("Transpose", x, perm=[1, 0]), "fc_a", 16, 24, transA=1))
    net.output(net.gemm(net.op("Transpose", y, perm=[1, 0]), "out", 24, 4, transA=1), 4)


@row("gemm-bias-scalar", {"fc_a": 24}, True, feeds=VECTOR, shape=(1,))
@row("gemm-bias-two-axes", {"fc_a": 24}, True, feeds=VECTOR, shape=(1, 24))
def gemm_bias_shapes(net: Net, x: str, shape: tuple[int, ...]) -> None:
    weight = net.const("fc_a_w", net.he((16, 24), 16))
    y = net.relu(net.op("Gemm", x, weight, net.const("fc_a_b", net.small(*shape)), name="fc_a"))
    net.output(net.gemm(y, "out", 24, 4), 4)


@row("matmul-add-2d", {"fc_a": 24}, True, feeds=VECTOR, bias_first=False)
@row("matmul-add-2d-bias-first", {"fc_a": 24}, True, feeds=VECTOR, bias_first=True)
@row("matmul-add-3d", {"fc_a": 24}, True, feeds=SEQUENCE, bias_first=False)
@row("matmul-add-3d-bias-first", {"fc_a": 24}, True, feeds=SEQUENCE, bias_first=True)
def matmul_add(net: Net, x: str, bias_first: bool) -> None:
    def dense(x: str, name: str, c_in: int, c_out: int) -> str:
        y, bias = net.matmul(x, name, c_in, c_out), net.const(f"{name}_b", net.small(c_out))
        return net.op("Add", bias, y) if bias_first else net.op("Add", y, bias)

    middle = (5,) if len(net.inputs[0].type.tensor_type.shape.dim) == 3 else ()
    net.output(dense(net.relu(dense(x, "fc_a", 16, 24)), "out", 24, 4), *middle, 4)


@row("matmul-weight-left", {"mix_a": 24}, True, feeds={"x": (2, 16, 5)})
def matmul_weight_left(net: Net, x: str) -> None:
    y = net.op("MatMul", net.const("mix_a_w", net.he((24, 16), 16)), x, name="mix_a")
    y = net.relu(net.op("Add", y, net.const("mix_a_b", net.small(24, 1))))
    net.output(net.op("MatMul", net.const("out_w", net.he((4, 24), 24)), y, name="out"), 4, 5)


@row("conv-bias-as-add", {"conv_a": 8}, True, shape=(1, 8, 1, 1), bias_first=False)
@row("conv-bias-as-add-first", {"conv_a": 8}, True, shape=(8, 1, 1), bias_first=True)
def conv_bias_as_add(net: Net, x: str, shape: tuple[int, ...], bias_first: bool) -> None:
    y, bias = net.conv(x, "conv_a", 3, 8, bias=False), net.const("conv_a_b", net.small(*shape))
    y = net.relu(net.op("Add", bias, y) if bias_first else net.op("Add", y, bias))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("conv-bn-relu", {"conv_a": 8, "conv_b": 6}, True, bias=False)
@row("conv-bias-bn-relu", {"conv_a": 8, "conv_b": 6}, True, bias=True)
def conv_bn_relu(net: Net, x: str, bias: bool) -> None:
    y = net.relu(net.batch_norm(net.conv(x, "conv_a", 3, 8, bias=bias), "bn_a", 8))
    y = net.relu(net.batch_norm(net.conv(y, "conv_b", 8, 6, bias=bias), "bn_b", 6))
    net.output(net.batch_norm(net.conv(y, "out", 6, 4, bias=bias), "bn_out", 4), 4, 8, 8)


@row("gemm-bn-relu", {"fc_a": 24}, True, feeds=VECTOR)
def gemm_bn_relu(net: Net, x: str) -> None:
    y = net.relu(net.batch_norm(net.gemm(x, "fc_a", 16, 24), "bn_a", 24))
    net.output(net.gemm(y, "out", 24, 4), 4)


@row("bn-relu-conv-preactivation", {"conv_a": 8, "conv_b": 6}, True)
def preactivation(net: Net, x: str) -> None:
    y = net.conv(net.relu(net.batch_norm(x, "bn_x", 3)), "conv_a", 3, 8, bias=False)
    y = net.conv(net.relu(net.batch_norm(y, "bn_a", 8)), "conv_b", 8, 6, bias=False)
    net.output(net.conv(net.relu(net.batch_norm(y, "bn_b", 6)), "out", 6, 4), 4, 8, 8)


@row("bn-as-mul-add-1c11", {"conv_a": 8}, True, shape=(1, 8, 1, 1))
@row("bn-as-mul-add-c11", {"conv_a": 8}, True, shape=(8, 1, 1))
def batch_norm_written_out(net: Net, x: str, shape: tuple[int, ...]) -> None:
    y = net.op("Mul", net.conv(x, "conv_a", 3, 8, bias=False), net.const("scale", net.positive(*shape)))
    y = net.relu(net.op("Add", y, net.const("shift", net.small(*shape))))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("bn-as-sub-div", {"conv_a": 8}, True)
def batch_norm_as_sub_div(net: Net, x: str) -> None:
    y = net.op("Sub", net.conv(x, "conv_a", 3, 8, bias=False), net.const("mean", net.small(8, 1, 1)))
    y = net.relu(net.op("Div", y, net.const("deviation", net.positive(8, 1, 1))))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("relu-then-bn-keras", {"conv_a": 8}, False)
def batch_norm_after_relu(net: Net, x: str) -> None:
    y = net.batch_norm(net.relu(net.conv(x, "conv_a", 3, 8)), "bn_a", 8)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("maxpool", {"conv_a": 8}, True, pool="MaxPool")
@row("averagepool", {"conv_a": 8}, True, pool="AveragePool")
def pooling(net: Net, x: str, pool: str) -> None:
    y = net.op(pool, net.relu(net.conv(x, "conv_a", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    net.output(net.conv(y, "out", 8, 4), 4, 4, 4)


@row("pad-zeros-spatial", {"conv_a": 8}, True, value=0.0)
@row("pad-ones-spatial", {"conv_a": 8}, False, value=1.0)
def padding(net: Net, x: str, value: float) -> None:
    amounts = net.const("amounts", [0, 0, 1, 1, 0, 0, 1, 1])
    y = net.op("Pad", net.relu(net.conv(x, "conv_a", 3, 8)), amounts, net.const("value", value))
    net.output(net.conv(y, "out", 8, 4, pads=[0, 0, 0, 0]), 4, 8, 8)


@row("dropout", {"conv_a": 8}, True)
def dropout(net: Net, x: str) -> None:
    y = net.op("Dropout", net.relu(net.conv(x, "conv_a", 3, 8)), net.const("ratio", 0.5))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("token-mixing", {"fc_a": 24, "mix": 0}, True, feeds=SEQUENCE)
def token_mixing(net: Net, x: str) -> None:
    """A matrix on the left mixes positions: the channels pass, and cost fewer multiplications when fewer are left."""
    y = net.relu(net.matmul(x, "fc_a", 16, 24))
    y = net.op("MatMul", net.const("mix_w", net.he((6, 5), 5)), y, name="mix")
    net.output(net.matmul(y, "out", 24, 4), 6, 4)
