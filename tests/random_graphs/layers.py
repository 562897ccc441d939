"""Steps with weights: Conv, ConvTranspose, Gemm and MatMul in the forms that exports give them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .graph import Graph, Skip, Value, scaled
from .steps import step


def width(g: Graph, multiple: int = 1) -> int:
    """A number of channels."""
    return multiple * int(g.rng.integers(max(1, 4 // multiple), 12 // multiple + 1))


def bias_of(g: Graph, count: int, probability: float = 0.7) -> tuple[str, ...]:
    """A bias, an empty input in its place, or nothing."""
    return (g.array(g.small(count)),) if g.chance(probability) else ("",) if g.chance(0.1) else ()


def conv_of(g: Graph, x: Value, out: int, kernel: int = 3, *, group: int = 1, stride: int = 1, bias: float = 0.7) -> Value:
    """A convolution that keeps the extents, or divides them by the stride."""
    if x.kind != "image":
        raise Skip
    rank = x.rank - 2
    weight = g.weight(out, x.channels // group, *(kernel,) * rank, fan_in=x.channels // group * kernel**rank)
    attributes: dict[str, object] = {"kernel_shape": [kernel] * rank} if g.chance(0.8) else {}
    if group > 1:
        attributes["group"] = group
    if stride > 1:
        attributes["strides"] = [stride] * rank
    dilation = 2 if stride == 1 and kernel == 3 and g.chance(0.15) else 1
    if dilation > 1:
        attributes["dilations"] = [dilation] * rank
    if kernel > 1 and g.chance(0.15) and dilation == 1:
        attributes["auto_pad"] = g.pick(["SAME_UPPER", "SAME_LOWER"])
    elif kernel > 1:
        attributes["pads"] = [dilation * (kernel // 2)] * (2 * rank)
    positions = tuple(scaled(extent, Fraction(1, stride)) for extent in x.positions)
    return g.apply("Conv", x, weight, *bias_of(g, out, bias), shape=(x.shape[0], out, *positions), **attributes)


@step(12, "image")
def conv(g: Graph, x: Value) -> Value:
    group = g.pick([each for each in (2, 4) if x.channels % each == 0] or [1]) if g.chance(0.25) else 1
    stride = 2 if g.chance(0.15) else 1
    return conv_of(g, x, width(g, group), g.pick([1, 1, 3]), group=group, stride=stride)


@step(3, "image")
def depthwise(g: Graph, x: Value) -> Value:
    return conv_of(g, x, x.channels * g.pick([1, 1, 1, 2]), 3, group=x.channels)


@step(1, "image")
def valid_conv(g: Graph, x: Value) -> Value:
    """Without padding, so that the extents shrink."""
    if not x.is_static or min(x.positions) < 4:
        raise Skip
    rank, out = x.rank - 2, width(g)
    weight = g.weight(out, x.channels, *(3,) * rank, fan_in=x.channels * 3**rank)
    padding = {"auto_pad": "VALID"} if g.chance(0.5) else {}
    shape = (x.shape[0], out, *(extent - 2 for extent in x.positions))
    return g.apply("Conv", x, weight, *bias_of(g, out), shape=shape, **padding)


def up_of(g: Graph, x: Value, out: int, group: int = 1) -> Value:
    """A ConvTranspose that doubles the extents."""
    rank = x.rank - 2
    kernel = g.pick([2, 4])
    weight = g.weight(x.channels, out // group, *(kernel,) * rank, fan_in=x.channels // group)
    attributes = {"kernel_shape": [kernel] * rank, "strides": [2] * rank, "pads": [(kernel - 2) // 2] * (2 * rank)}
    positions = tuple(scaled(extent, Fraction(2)) for extent in x.positions)
    bias = bias_of(g, out)
    return g.apply("ConvTranspose", x, weight, *bias, shape=(x.shape[0], out, *positions), group=group, **attributes)


@step(2, "image")
def conv_transpose(g: Graph, x: Value) -> Value:
    if x.rank == 5 or any(not isinstance(extent, int) and extent[1] >= 1 for extent in x.positions):
        raise Skip
    if any(isinstance(extent, int) and extent > 8 for extent in x.positions):
        raise Skip
    if g.chance(0.2):
        return up_of(g, x, x.channels, x.channels)  # depthwise
    group = 2 if x.channels % 2 == 0 and g.chance(0.3) else 1
    return up_of(g, x, width(g, group), group)


def gemm_of(g: Graph, x: Value, out: int) -> Value:
    """A Gemm in one of its forms."""
    trans_a, trans_b = g.chance(0.1), g.chance(0.7)
    if trans_a:
        x = Value(g.node("Transpose", x, perm=[1, 0]), (x.shape[1], x.shape[0]), 0)
    count = x.channels
    weight = g.weight(*((out, count) if trans_b else (count, out)), fan_in=count)
    form = g.pick(["vector", "vector", "vector", "row", "scalar", "none"])
    if form == "none" and g.opset < 11:
        form = "vector"
    values = {"vector": g.small(out), "row": g.small(1, out), "scalar": g.small(1)}
    bias = () if form == "none" else (g.array(values[form]),)
    attributes = {"alpha": 0.5, "beta": 2.0} if g.chance(0.2) else {}
    if trans_a:
        attributes["transA"] = 1
    batch = x.shape[1] if trans_a else x.shape[0]
    return g.apply("Gemm", x, weight, *bias, shape=(batch, out), channel_axis=1, transB=int(trans_b), **attributes)


@step(8, "vector")
def gemm(g: Graph, x: Value) -> Value:
    return gemm_of(g, x, width(g))


def dense(g: Graph, x: Value, out: int, bias: float = 0.7) -> Value:
    """MatMul with a matrix on the right, usually followed by an Add."""
    if x.kind == "image":
        raise Skip
    y = g.apply("MatMul", x, g.weight(x.channels, out, fan_in=x.channels), shape=x.with_channels(out))
    if not g.chance(bias):
        return y
    constant = g.array(g.small(out))
    return g.apply("Add", *((y, constant) if g.chance(0.5) else (constant, y)), like=y)


@step(7, "tokens", "vector")
def matmul(g: Graph, x: Value) -> Value:
    return dense(g, x, width(g))


@step(2, "tokens")
def matmul_with_a_stack(g: Graph, x: Value) -> Value:
    """The matrix has a batch axis of 1."""
    out = width(g)
    return g.apply("MatMul", x, g.weight(1, x.channels, out, fan_in=x.channels), shape=x.with_channels(out))


@step(1, "image")
def matmul_from_the_left(g: Graph, x: Value) -> Value:
    """W x on (N, C, L): a 1 x 1 convolution."""
    if x.rank != 3:
        raise Skip
    out = width(g)
    y = g.apply("MatMul", g.weight(out, x.channels, fan_in=x.channels), x, like=x, shape=x.with_channels(out))
    return g.apply("Add", y, g.array(g.small(out, 1))) if g.chance(0.5) else y


@step(1, "image", "tokens")
def matmul_over_positions(g: Graph, x: Value) -> Value:
    """Token mixing: the matrix contracts positions, channels pass."""
    last = x.rank - 1 if x.kind == "image" else x.rank - 2
    extent = x.shape[last]
    if not isinstance(extent, int):
        raise Skip
    matrix = g.weight(extent, extent, fan_in=extent)
    return g.apply("MatMul", *((x, matrix) if last == x.rank - 1 else (matrix, x)), like=x)


@step(1, "tokens")
def matmul_with_a_vector(g: Graph, x: Value) -> Value:
    """Weights of rank 1 leave one number for each position, a gate."""
    gate = g.node("MatMul", x, g.weight(x.channels, fan_in=x.channels))
    return g.apply("Mul", x, g.node("Sigmoid", g.with_axes("Unsqueeze", gate, [x.rank - 1], 13)))


@step(1, "image", "tokens", "vector")
def shared_weight(g: Graph, x: Value) -> Value:
    """Two layers with one weight, joined or not."""
    out = width(g)
    if x.kind == "image":
        weight = g.weight(out, x.channels, *(1,) * (x.rank - 2), fan_in=x.channels)
        bias = bias_of(g, out)
        one, other = (g.apply("Conv", y, weight, *bias, shape=x.with_channels(out)) for y in (x, g.apply("Tanh", x)))
    else:
        weight = g.weight(x.channels, out, fan_in=x.channels)
        one, other = (g.apply("MatMul", y, weight, shape=x.with_channels(out)) for y in (x, g.apply("Tanh", x)))
    if g.chance(0.5):
        return g.apply("Add", one, other)
    g.earlier.append(other)
    return one


@step(1, "image", "tokens", "vector")
def weight_behind_nodes(g: Graph, x: Value) -> Value:
    """The weight is a constant only after a Transpose, an Identity, a Reshape or a Cast."""
    out = width(g)
    way = g.pick(["Transpose", "Identity", "Reshape", "Cast", "Mul"])
    shape = (out, x.channels, *(1,) * (x.rank - 2)) if x.kind == "image" else (x.channels, out)
    values = g.he(shape, x.channels)
    if way == "Transpose":
        weight = g.node(way, g.array(values.swapaxes(0, 1)), perm=[1, 0, *range(2, len(shape))])
    elif way == "Reshape":
        weight = g.node(way, g.array(values.reshape(-1)), g.ints(*shape))
    elif way == "Cast":
        weight = g.cast(g.array(values, np.float64), 1)
    else:
        weight = g.node(way, g.array(values), *((g.number(0.5),) if way == "Mul" else ()))
    return g.apply("Conv" if x.kind == "image" else "MatMul", x, weight, shape=x.with_channels(out))
