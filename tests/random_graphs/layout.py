"""Steps that move, pick or resize: pooling, reductions, Reshape, Transpose, Concat, Split, Slice, Gather, Pad, Resize."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import onnx

from .graph import Graph, Skip, Value, declared, scaled
from .steps import step


@step(4, "image")
def pool(g: Graph, x: Value) -> Value:
    name, rank = g.pick(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"]), x.rank - 2
    if name == "LpPool" and rank != 2:
        raise Skip
    if g.chance(0.5):
        shape = (*x.shape[:2], *(scaled(extent, Fraction(1, 2)) for extent in x.positions))
        return g.apply(name, x, shape=shape, kernel_shape=[2] * rank, strides=[2] * rank)
    attributes = {"count_include_pad": 1} if name == "AveragePool" and g.chance(0.5) else {}
    return g.apply(name, x, kernel_shape=[3] * rank, pads=[1] * (2 * rank), **attributes)


@step(1, "image")
def max_pool_with_positions(g: Graph, x: Value) -> Value:
    """The second output of MaxPool is read, and so are its values."""
    if x.rank != 4 or g.opset < 8:
        raise Skip
    name, positions = g.node("MaxPool", x, outs=2, kernel_shape=[3, 3], pads=[1] * 4)
    y = Value(name, x.shape, 1)
    if g.chance(0.5):
        g.second_outputs.append(onnx.helper.make_tensor_value_info(positions, onnx.TensorProto.INT64, declared(x.shape)))
        return y
    return g.apply("Add", y, g.node("Mul", g.cast(positions, 1), g.number(1e-3)))


@step(2, "image", "tokens")
def reduce(g: Graph, x: Value) -> Value:
    """A reduction over positions, or over channels, joined with the value."""
    names = ["Mean", "Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "LogSum", "LogSumExp", "SumSquare"]
    name = "Reduce" + g.pick(names)
    y = g.apply("Add", g.apply("Abs", g.apply("Tanh", x)), g.number(0.5)) if name in ("ReduceProd", "ReduceLogSum") else x
    over_channels = g.chance(0.2)
    axes = [x.axis] if over_channels else [axis for axis in range(1, x.rank) if axis != x.axis]
    y = g.reduce(name, y, axes, True)
    if name in ("ReduceProd", "ReduceSum", "ReduceSumSquare", "ReduceL1"):
        y = g.apply("Mul", y, g.number(0.05))
    return g.apply(g.pick(["Mul", "Add", "Sub"]), x, g.apply("Tanh", y))


def flat(g: Graph, x: Value) -> Value:
    """(N, everything else)."""
    if not x.is_static:
        raise Skip
    size = math.prod(x.shape[1:])
    if size > 512:
        raise Skip
    way = g.pick(["Flatten", "Reshape", "Reshape to 0"])
    if way == "Flatten":
        return g.apply("Flatten", x, shape=(x.shape[0], size), channel_axis=1)
    return g.reshape(x, (-1, size) if way == "Reshape" else (0, -1), (x.shape[0], size), 1)


def pooled(g: Graph, x: Value) -> Value:
    """(N, C): the mean over the positions, as exports write it."""
    if x.kind == "vector":
        return x
    axes = [axis for axis in range(1, x.rank) if axis != x.axis]
    if x.kind == "tokens" or g.chance(0.3):
        return g.reduce(g.pick(["ReduceMean", "ReduceMean", "ReduceMax"]), x, axes, False)
    name = g.pick(["GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
    y = g.apply(name, x, shape=(*x.shape[:2], *(1,) * len(axes)))
    shape = x.shape[:2]
    way = g.pick(["Flatten", "Squeeze", "Reshape"])
    if way == "Flatten":
        return g.apply("Flatten", y, shape=shape, channel_axis=1)
    if way == "Squeeze":
        return Value(g.with_axes("Squeeze", y, axes, 13), shape, 1)
    return g.reshape(y, g.pick([(0, x.channels), (0, -1), (-1, x.channels)]), shape, 1)


@step(1.5, "image", "tokens")
def to_vector(g: Graph, x: Value) -> Value:
    return flat(g, x) if g.chance(0.5) else pooled(g, x)


@step(1, "vector")
def vector_to_image(g: Graph, x: Value) -> Value:
    """(N, C) to (N, C / 4, 2, 2), or to (N, C, 1, 1)."""
    if x.channels % 4 or x.channels < 8 or g.chance(0.3):
        return Value(g.with_axes("Unsqueeze", x, [2, 3], 13), (*x.shape, 1, 1), 1)
    return g.reshape(x, (-1, x.channels // 4, 2, 2), (x.shape[0], x.channels // 4, 2, 2), 1)


@step(1.5, "image")
def to_tokens(g: Graph, x: Value) -> Value:
    """(N, C, H, W) to (N, H W, C), or channels last."""
    if x.is_static and x.rank >= 4 and g.chance(0.6):
        count = math.prod(x.positions)
        rows = g.reshape(x, (0, x.channels, -1), (*x.shape[:2], count), 1)
        return g.transpose(rows, (0, 2, 1))
    return g.transpose(x, (0, *range(2, x.rank), 1))


@step(3, "tokens")
def to_image(g: Graph, x: Value) -> Value:
    return g.transpose(x, (0, x.rank - 1, *range(1, x.rank - 1)))


def matching(g: Graph, x: Value) -> list[Value]:
    """Earlier values of the same shape."""
    return [each for each in g.earlier if (each.shape, each.axis) == (x.shape, x.axis) and each.name != x.name]


@step(6)
def join(g: Graph, x: Value) -> Value:
    """With an earlier value of the same shape."""
    others = matching(g, x)
    if not others or g.opset < 8:
        raise Skip
    other, name = g.pick(others), g.pick(["Add", "Add", "Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", "Div", "Where"])
    if name == "Div":
        other = g.apply("Add", g.apply("Abs", other), g.number(1.0))
    if name == "Where":
        g.need("Where", 9)
        return g.apply("Where", g.apply("Greater", x, g.number(0.0)), other, x)
    if name == "Mul":
        other = g.apply("Sigmoid", other)
    third = [g.pick(others)] if name in ("Sum", "Mean", "Max", "Min") and g.chance(0.5) else []
    return g.apply(name, *((x, other) if g.chance(0.5) else (other, x)), *third)


@step(4)
def concat(g: Graph, x: Value) -> Value:
    """With earlier values that differ in their channels only, or with itself."""
    others = [each for each in g.earlier if each.axis == x.axis and each.with_channels(1) == x.with_channels(1)]
    parts = [x, *(g.pick(others) for _ in range(g.pick([1, 1, 2])) if others)]
    total = sum(part.channels for part in parts)
    if len(parts) == 1 or total > 40:
        raise Skip
    axis = x.axis - x.rank if g.opset >= 11 and g.chance(0.2) else x.axis
    parts = parts[::-1] if g.chance(0.5) else parts
    name = g.node("Concat", *parts, axis=axis)
    return Value(name, x.with_channels(total), x.axis)


@step(1, "image", "tokens")
def concat_with_constant(g: Graph, x: Value) -> Value:
    """Such as coordinates, in a model of fixed batch; here behind an Expand of a constant to the value's own shape."""
    if x.channels > 20:
        raise Skip
    extra = g.node("Mul", g.slice(x, [0], [1], [x.axis]), g.number(0.0))
    return g.apply("Concat", x, g.node("Add", extra, g.number(0.5)), shape=x.with_channels(x.channels + 1), axis=x.axis)


@step(2)
def pieces(g: Graph, x: Value) -> Value:
    """Split into two or three, each treated, and joined again."""
    count = x.channels
    if count < 4:
        raise Skip
    cut = int(g.rng.integers(1, count)) if g.chance(0.5) else count // 2
    sizes = [cut, count - cut] if count % 3 or g.chance(0.6) else [count // 3] * 3
    if g.chance(0.5):
        parts = g.split(x, sizes)
    else:
        ends = np.cumsum(sizes).tolist()
        last = 2**31 - 1 if g.chance(0.5) else count
        bounds = list(zip([0, *ends[:-1]], [*ends[:-1], last], strict=True))
        parts = [
            Value(g.slice(x, [start], [end], [x.axis]), x.with_channels(size), x.axis)
            for (start, end), size in zip(bounds, sizes, strict=True)
        ]
    way = g.pick(["concat", "concat", "gate", "drop", "swap"])
    if way == "gate" and len(set(sizes)) == 1:
        return g.apply("Mul", parts[0], g.apply("Sigmoid", parts[1]))
    if way == "drop":
        return max(parts, key=lambda part: part.channels)
    if way == "swap":
        parts = parts[::-1]
    else:
        parts[0] = g.apply("Relu", parts[0])
    return Value(g.node("Concat", *parts, axis=x.axis), x.shape, x.axis)


@step(1.5)
def gather(g: Graph, x: Value) -> Value:
    """Channels by index: permuted, some of them, or repeated."""
    way, count = g.pick(["permuted", "some", "repeated"]), x.channels
    if count < 3:
        raise Skip
    indices = g.rng.permutation(count) if way != "repeated" else np.sort(g.rng.integers(0, count, count))
    indices = indices[: count // 2 + 1] if way == "some" else indices
    indices = np.where(g.rng.random(len(indices)) < 0.2, indices - count, indices) if g.opset >= 11 else indices
    return Value(g.node("Gather", x, g.ints(*indices.tolist()), axis=x.axis), x.with_channels(len(indices)), x.axis)


@step(1)
def slice_in_steps(g: Graph, x: Value) -> Value:
    """Every second channel, or all of them backwards."""
    if g.chance(0.5):
        name = g.slice(x, [0], [x.channels], [x.axis], [2])
        return Value(name, x.with_channels(-(-x.channels // 2)), x.axis)
    return Value(g.slice(x, [-1], [-(2**31)], [x.axis], [-1]), x.shape, x.axis)


@step(1, "tokens")
def first_token(g: Graph, x: Value) -> Value:
    """The class token: Gather with a scalar index, or Slice and Squeeze."""
    if x.rank != 3:
        raise Skip
    if g.chance(0.5):
        return Value(g.node("Gather", x, g.array(np.array(0)), axis=1), (x.shape[0], x.channels), 1)
    return Value(g.with_axes("Squeeze", g.slice(x, [0], [1], [1]), [1], 13), (x.shape[0], x.channels), 1)


@step(2)
def pad(g: Graph, x: Value) -> Value:
    """Of the positions, or of the channels (the shortcut of ResNets for CIFAR)."""
    front, back, mode = [0] * x.rank, [0] * x.rank, "constant"
    shape = list(x.shape)
    if g.chance(0.4):
        front[x.axis], back[x.axis] = g.pick([(2, 2), (0, 4), (1, 0)])
        shape[x.axis] = x.channels + front[x.axis] + back[x.axis]
    elif x.rank > 2 and x.is_static:
        axis = g.pick([axis for axis in range(1, x.rank) if axis != x.axis])
        front[axis], back[axis] = 1, g.pick([0, 1])
        shape[axis] = x.shape[axis] + front[axis] + back[axis]
        mode = g.pick(["constant", "reflect", "edge"]) if x.rank == 4 and x.shape[axis] > 1 else "constant"
    value = 0.5 if mode == "constant" and g.chance(0.2) else 0.0
    if g.opset < 11:
        return g.apply("Pad", x, shape=shape, pads=[*front, *back], mode=mode, value=value)
    if g.opset >= 18 and g.chance(0.3):
        axes = [axis for axis in range(x.rank) if front[axis] or back[axis]] or [0]
        pads = g.ints(*(front[axis] for axis in axes), *(back[axis] for axis in axes))
        return g.apply("Pad", x, pads, g.number(value), g.ints(*axes), shape=shape, mode=mode)
    last = (g.number(value),) if value or g.chance(0.3) else ()
    return g.apply("Pad", x, g.ints(*front, *back), *last, shape=shape, mode=mode)


def resized(g: Graph, x: Value, factor: int) -> Value:
    """Upsampled by a whole factor, as the opset has it."""
    scales = [1.0, 1.0, *[float(factor)] * (x.rank - 2)]
    shape = (*x.shape[:2], *(scaled(extent, Fraction(factor)) for extent in x.positions))
    mode = g.pick(["nearest", "linear"]) if x.rank <= 4 else "nearest"
    if g.opset < 9:
        return g.apply("Upsample", x, shape=shape, scales=scales, mode=mode)
    if g.opset < 11:
        return g.apply("Upsample" if g.opset < 10 else "Resize", x, g.array(scales), shape=shape, mode=mode)
    if g.opset >= 18 and g.chance(0.3):
        axes = list(range(2, x.rank))
        return g.apply("Resize", x, "", g.array(scales[2:]), shape=shape, mode=mode, axes=axes)
    if x.is_static and g.opset >= 13 and isinstance(x.shape[0], int) and g.chance(0.3):
        return g.apply("Resize", x, "", "", g.ints(*shape), shape=shape, mode=mode)
    transform = g.pick(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    roi = g.array(np.zeros(0)) if g.opset < 13 or g.chance(0.5) else ""
    return g.apply("Resize", x, roi, g.array(scales), shape=shape, mode=mode, coordinate_transformation_mode=transform)


@step(2, "image")
def resize(g: Graph, x: Value) -> Value:
    if any((extent if isinstance(extent, int) else extent[1] * 8) > 8 for extent in x.positions):
        raise Skip
    return resized(g, x, 2)


@step(1, "image")
def pixel_shuffle(g: Graph, x: Value) -> Value:
    """DepthToSpace in either mode, or SpaceToDepth."""
    if x.rank != 4:
        raise Skip
    if g.chance(0.5):
        shape = (x.shape[0], x.channels * 4, *(scaled(extent, Fraction(1, 2)) for extent in x.positions))
        return g.apply("SpaceToDepth", x, shape=shape, blocksize=2)
    if x.channels % 4 or any((extent if isinstance(extent, int) else extent[1] * 8) > 8 for extent in x.positions):
        raise Skip
    shape = (x.shape[0], x.channels // 4, *(scaled(extent, Fraction(2)) for extent in x.positions))
    mode = {"mode": g.pick(["DCR", "CRD"])} if g.opset >= 11 and g.chance(0.7) else {}
    return g.apply("DepthToSpace", x, shape=shape, blocksize=2, **mode)


@step(1)
def repeat(g: Graph, x: Value) -> Value:
    """Tile of the channels; Expand of a pooled value back to the positions."""
    if x.channels > 12 or g.chance(0.3):
        ones = g.ints(*(1,) * x.rank)
        return g.apply("Expand" if g.opset >= 8 else "Tile", x, ones)
    repeats = [2 if axis == x.axis else 1 for axis in range(x.rank)]
    return g.apply("Tile", x, g.ints(*repeats), shape=x.with_channels(2 * x.channels))


@step(1, "image")
def expand_pooled(g: Graph, x: Value) -> Value:
    """A pooled value, expanded to fixed positions."""
    g.need("Expand", 8)
    if not x.is_static:
        raise Skip
    y = g.apply("GlobalAveragePool", x, shape=(*x.shape[:2], *(1,) * (x.rank - 2)))
    target = g.pick([(1, x.channels, *x.positions), (1, 1, *x.positions), x.positions])
    return g.apply("Expand", y, g.ints(*target), shape=x.shape)


@step(1, "image", "tokens")
def cumulated(g: Graph, x: Value) -> Value:
    """CumSum along some axis."""
    g.need("CumSum")
    axis = g.pick(range(1, x.rank))
    return g.apply("Tanh", g.apply("CumSum", x, g.array(np.array(axis), np.int64)))
