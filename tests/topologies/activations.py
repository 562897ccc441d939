"""What may lie between a producer and its consumer, in the operator and in the written-out forms."""

import numpy as np

from .net import Net
from .table import row

WIDTH = {"conv_a": 8}


def between_convs(net: Net, x: str, activate) -> None:
    y = activate(net.conv(x, "conv_a", 3, 8))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


@row("leaky-relu", WIDTH, True, op_type="LeakyRelu", alpha=0.1)
@row("elu", WIDTH, False, op_type="Elu")
@row("tanh", WIDTH, False, op_type="Tanh")
@row("sigmoid", WIDTH, False, op_type="Sigmoid")
@row("softplus", WIDTH, False, op_type="Softplus")
@row("hard-swish", WIDTH, False, op_type="HardSwish")
@row("hard-sigmoid", WIDTH, False, op_type="HardSigmoid")
@row("mish", WIDTH, False, op_type="Mish", opset=18)
@row("gelu-op", WIDTH, False, op_type="Gelu", opset=20, ir=9)
@row("clip-attributes", WIDTH, False, op_type="Clip", opset=10, min=0.0, max=6.0)
@row("abs", WIDTH, True, op_type="Abs")
def unary(net: Net, x: str, op_type: str, **attributes) -> None:
    between_convs(net, x, lambda y: net.op(op_type, y, **attributes))


@row("clip-inputs", WIDTH, False)
def clip_inputs(net: Net, x: str) -> None:
    between_convs(net, x, lambda y: net.op("Clip", y, net.const("low", 0.0), net.const("high", 6.0)))


@row("prelu-one-slope", WIDTH, True, slopes=np.full((1,), 0.2))
@row("prelu-equal-slopes", WIDTH, True, slopes=np.full((8, 1, 1), 0.2))
@row("prelu-unequal-slopes", WIDTH, False, slopes=np.linspace(0.1, 0.5, 8).reshape(8, 1, 1))
def prelu(net: Net, x: str, slopes: np.ndarray) -> None:
    between_convs(net, x, lambda y: net.op("PRelu", y, net.const("slopes", slopes)))


@row("leaky-relu-as-max", WIDTH, True)
def leaky_relu_as_max(net: Net, x: str) -> None:
    between_convs(net, x, lambda y: net.op("Max", y, net.op("Mul", y, net.const("slope", 0.1))))


@row("relu-as-max-zero", WIDTH, True)
def relu_as_max_zero(net: Net, x: str) -> None:
    between_convs(net, x, lambda y: net.op("Max", y, net.const("zero", 0.0)))


@row("scalar-mul", WIDTH, True, op_type="Mul")
@row("scalar-add", WIDTH, False, op_type="Add")
def scalar(net: Net, x: str, op_type: str) -> None:
    between_convs(net, x, lambda y: net.op(op_type, net.relu(y), net.const("scalar", 0.7)))


@row("silu", WIDTH, False)
def silu(net: Net, x: str) -> None:
    between_convs(net, x, lambda y: net.op("Mul", y, net.op("Sigmoid", y)))


@row("gelu-erf", WIDTH, False)
def gelu_erf(net: Net, x: str) -> None:
    def gelu(y: str) -> str:
        erf = net.op("Erf", net.op("Div", y, net.const("root_two", 2**0.5)))
        return net.op("Mul", net.op("Mul", y, net.op("Add", erf, net.const("one", 1.0))), net.const("half", 0.5))

    between_convs(net, x, gelu)


@row("gelu-tanh", WIDTH, False)
def gelu_tanh(net: Net, x: str) -> None:
    def gelu(y: str) -> str:
        cubic = net.op("Mul", net.op("Pow", y, net.const("three", 3.0)), net.const("factor", 0.044715))
        inner = net.op("Mul", net.op("Add", y, cubic), net.const("root", (2 / np.pi) ** 0.5))
        gate = net.op("Add", net.op("Tanh", inner), net.const("one", 1.0))
        return net.op("Mul", net.op("Mul", net.const("half", 0.5), y), gate)

    between_convs(net, x, gelu)


@row("instance-normalization", WIDTH, False)
def instance_norm(net: Net, x: str) -> None:
    def normalise(y: str) -> str:
        return net.relu(net.op("InstanceNormalization", y, net.const("scale", net.positive(8)), net.const("shift", net.small(8))))

    between_convs(net, x, normalise)


@row("instance-normalization-written-out", WIDTH, False)
def instance_norm_written_out(net: Net, x: str) -> None:
    def normalise(y: str) -> str:
        covariance = net.op("Sub", y, net.op("ReduceMean", y, axes=[2, 3]))
        variance = net.op("ReduceMean", net.op("Mul", covariance, covariance), axes=[2, 3])
        deviation = net.op("Sqrt", net.op("Add", variance, net.const("epsilon", 1e-5)))
        return net.relu(net.op("Mul", net.op("Div", covariance, deviation), net.const("scale", net.positive(8, 1, 1))))

    between_convs(net, x, normalise)
