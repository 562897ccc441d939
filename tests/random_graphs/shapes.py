"""Steps in which the graph computes shapes, as exporters write them when anything is dynamic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .graph import Graph, Skip, Value, scaled
from .layers import conv_of
from .layout import resized
from .steps import step


def size(g: Graph, x: Value, axis: int) -> str:
    """x.size(axis), a scalar."""
    if g.opset >= 15 and g.chance(0.2):
        part = g.node("Shape", x, start=axis, end=axis + 1)
        return g.with_axes("Squeeze", part, [0], 13)
    return g.node("Gather", g.node("Shape", x), g.array(np.array(axis)), axis=0)


def as_row(g: Graph, scalar: str) -> str:
    """A scalar as (1,)."""
    return g.with_axes("Unsqueeze", scalar, [0], 13)


def shape_of(g: Graph, *parts: str | int) -> str:
    """Concat of scalars and numbers, as a shape."""
    return g.node("Concat", *(g.ints(part) if isinstance(part, int) else as_row(g, part) for part in parts), axis=0)


@step(1)
def scale_by_width(g: Graph, x: Value) -> Value:
    """x / sqrt(x.size(1)), of itself or of another tensor: the size of an axis is used as a number."""
    other = g.pick([x, x, *g.earlier])
    axis = g.pick([other.axis, other.axis, other.rank - 1])
    root = g.node("Sqrt", g.cast(size(g, other, axis), 1))
    return g.apply("Mul", g.apply("Div", x, root), g.number(2.0))


@step(1)
def number_of_elements(g: Graph, x: Value) -> Value:
    """A mean written as ReduceSum / Size."""
    if x.rank == 2:
        raise Skip
    total = g.reduce("ReduceSum", x, [axis for axis in range(1, x.rank) if axis != x.axis], True)
    return g.apply("Add", x, g.apply("Div", g.apply("Mul", total, g.number(8.0)), g.cast(g.node("Size", x), 1)))


@step(2, "image")
def view_by_shape(g: Graph, x: Value) -> Value:
    """x.view(x.size(0), x.size(1), -1) and back to the shape of x, or of an earlier value."""
    if x.rank < 4:
        raise Skip
    rows = g.node("Reshape", x, shape_of(g, size(g, x, 0), g.pick([x.channels, size(g, x, 1)]), -1))
    rows = g.node("Relu", rows)
    same = [each for each in g.earlier if each.shape == x.shape and each.axis == 1]
    target = g.pick([x, *same[-2:]])
    return Value(g.node("Reshape", rows, g.node("Shape", target)), x.shape, 1)


@step(2, "image")
def channel_shuffle(g: Graph, x: Value) -> Value:
    """Reshape, Transpose, Reshape; with constant or computed targets."""
    groups = g.pick([2, 2, 3, 4])
    if x.rank != 4 or x.channels % groups or x.channels == groups:
        raise Skip
    each, form = x.channels // groups, g.pick(["constant", "computed", "divided"])
    if form == "constant":
        if not x.is_static:
            raise Skip
        target = g.ints(-1, groups, each, *x.positions)
        back = g.ints(-1, x.channels, *x.positions)
    else:
        batch, height, width = (size(g, x, axis) for axis in (0, 2, 3))
        count = size(g, x, 1) if form == "divided" else x.channels
        part = g.node("Div", count, g.array(np.array(groups))) if form == "divided" else each
        target, back = shape_of(g, batch, groups, part, height, width), shape_of(g, batch, count, height, width)
    y = g.node("Transpose", g.node("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    return Value(g.node("Reshape", y, back), x.shape, 1)


@step(1.5, "image", "tokens", "vector")
def chunk_with_computed_bounds(g: Graph, x: Value) -> Value:
    """x.chunk(2, 1) of the TorchScript exporter with a dynamic axis: bounds from Shape."""
    if x.channels % 2 or g.opset < 10:
        raise Skip
    axis, count = g.ints(x.axis), size(g, x, x.axis)
    half = g.node("Div", g.node("Add", count, g.array(np.array(1))), g.array(np.array(2)))
    half = as_row(g, half)
    end = g.node("Mul", half, g.ints(2))
    shape = x.with_channels(x.channels // 2)
    one = Value(g.node("Slice", x, g.ints(0), half, axis), shape, x.axis)
    other = Value(g.node("Slice", x, half, end, axis), shape, x.axis)
    if g.chance(0.5):
        return g.apply("Mul", one, g.apply("Sigmoid", other))
    return g.apply("Concat", one, g.apply("Relu", other), shape=x.shape, axis=x.axis)


@step(2, "image")
def resize_to_skip(g: Graph, x: Value) -> Value:
    """U-Net: down, up to the size of the skip, Concat or Add."""
    if x.rank != 4 or g.opset < 11:
        raise Skip
    small = conv_of(g, x, x.channels if g.chance(0.5) else 6, stride=2)
    small = g.apply("Relu", small)
    if g.chance(0.5):
        channels = g.slice(g.node("Shape", small), [0], [2], [0])
        sizes = g.node("Concat", channels, g.slice(g.node("Shape", x), [2], [4], [0]), axis=0)
    else:
        sizes = shape_of(g, size(g, small, 0), g.pick([small.channels, size(g, small, 1)]), size(g, x, 2), size(g, x, 3))
    roi = g.array(np.zeros(0)) if g.opset < 13 else ""
    no_scales = g.array(np.zeros(0)) if g.opset < 13 else ""
    mode = g.pick(["nearest", "linear"])
    up = g.apply("Resize", small, roi, no_scales, sizes, shape=(*small.shape[:2], *x.positions), mode=mode)
    if up.shape == x.shape and g.chance(0.6):
        return g.apply("Add", x, up)
    return g.apply("Concat", x, up, shape=x.with_channels(x.channels + up.channels), axis=1)


@step(1, "image")
def resize_by_computed_scale(g: Graph, x: Value) -> Value:
    """Twice x.size(2), in whole numbers."""
    if x.rank != 4 or g.opset < 11 or any((e if isinstance(e, int) else e[1] * 8) > 8 for e in x.positions):
        raise Skip
    doubled = [g.node("Mul", size(g, x, axis), g.array(np.array(2))) for axis in (2, 3)]
    sizes = g.node("Concat", g.slice(g.node("Shape", x), [0], [2], [0]), *(as_row(g, each) for each in doubled), axis=0)
    empty = g.array(np.zeros(0)) if g.opset < 13 else ""
    shape = (*x.shape[:2], *(scaled(extent, Fraction(2)) for extent in x.positions))
    return g.apply("Resize", x, empty, empty, sizes, shape=shape, mode="nearest")


@step(1, "image", "tokens")
def zeros_of_shape(g: Graph, x: Value) -> Value:
    """ConstantOfShape of Shape, added or joined by Concat."""
    g.need("ConstantOfShape")
    zeros = Value(g.node("ConstantOfShape", g.node("Shape", x)), x.shape, x.axis)
    if x.channels > 16 or g.chance(0.5):
        return g.apply("Add", x, zeros)
    return g.apply("Concat", x, zeros, shape=x.with_channels(2 * x.channels), axis=x.axis)


@step(1, "image", "tokens")
def positions_by_range(g: Graph, x: Value) -> Value:
    """A ramp along an axis: Range of its size."""
    g.need("Range")
    axis = g.pick([x.axis, x.rank - 1])
    ramp = g.cast(g.node("Range", g.array(np.array(0)), size(g, x, axis), g.array(np.array(1))), 1)
    ramp = g.node("Mul", ramp, g.number(0.05))
    if axis < x.rank - 1:
        ramp = g.with_axes("Unsqueeze", ramp, list(range(1, x.rank - axis)), 13)
    return g.apply("Add", x, ramp)


@step(1, "image")
def expand_to_shape(g: Graph, x: Value) -> Value:
    """A pooled value expanded to the shape of x."""
    g.need("Expand", 8)
    y = g.apply("GlobalAveragePool", x, shape=(*x.shape[:2], *(1,) * (x.rank - 2)))
    y = g.apply("Expand", y, g.node("Shape", x), shape=x.shape)
    return g.apply("Add", x, y) if g.chance(0.5) else y


@step(1, "image")
def upsample_twice(g: Graph, x: Value) -> Value:
    """Down and up by constant scales, and a skip."""
    small = conv_of(g, x, x.channels, stride=2)
    return g.apply("Add", x, resized(g, g.apply("Relu", small), 2))
