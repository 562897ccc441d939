"""Steps in which sizes have bounds, or data choose: what the graph computes differs at sizes that no analysis ran."""

from __future__ import annotations

import numpy as np

from .graph import Graph, Skip, Value
from .shapes import as_row, size
from .steps import step

SINCE = 20_000
"""The first seed whose graphs have the steps below."""


def limited(g: Graph, extent: str) -> str:
    """An extent, as (1,), that some bound limits."""
    bound, way = int(g.pick([2, 8, 16])), g.pick(["Min", "Max", "Clip", "Where"])
    if way == "Clip":
        g.need("Clip", 12)
        clipped = g.node("Clip", extent, g.array(np.array(1)), g.array(np.array(bound)))
        return as_row(g, clipped)
    if way == "Where":
        g.need("Where", 9)
        extent, bound = as_row(g, extent), g.ints(bound)
        return g.node("Where", g.node("Less", extent, g.ints(12)), extent, bound)
    g.need(way, 12)
    return g.node(way, as_row(g, extent), g.ints(bound))


def by_data(g: Graph, x: Value) -> str:
    """Whether the largest value of x is above 2, as (1,)."""
    g.need("Where", 9)
    largest = g.node("ReduceMax", x, keepdims=0)
    return g.with_axes("Unsqueeze", g.node("Greater", largest, g.number(2.0)), [0], 13)


@step(3, "image", first_seed=SINCE)
def view_by_limited_size(g: Graph, x: Value) -> Value:
    """To a shape that depends on the size through Min, Max, Clip, or on data through Where; and back."""
    if x.rank != 4:
        raise Skip
    batch, channels, height = as_row(g, size(g, x, 0)), g.pick([g.ints(x.channels), as_row(g, size(g, x, 1))]), size(g, x, 2)
    if g.chance(0.5):
        target = g.node("Concat", g.pick([batch, g.ints(0)]), channels, limited(g, height), g.ints(-1), axis=0)
    else:
        one = g.node("Concat", batch, channels, g.ints(-1), g.ints(g.pick([1, 2, 4])), axis=0)
        other = g.pick([g.node("Shape", x), g.ints(0, 0, 0, 0), g.node("Concat", batch, channels, g.ints(1), g.ints(-1), axis=0)])
        target = g.node("Where", by_data(g, x), one, other)
    y = g.node("Relu", g.node("Reshape", x, target))
    return Value(g.node("Reshape", y, g.node("Shape", x)), x.shape, 1)


@step(2, "image", first_seed=SINCE)
def expand_by_limited_size(g: Graph, x: Value) -> Value:
    """A gate expanded to the positions, or not, or to their larger extent; added to what it came from behind a pooling."""
    if x.rank != 4:
        raise Skip
    pooled = g.apply("GlobalAveragePool", x, shape=(*x.shape[:2], 1, 1))
    if g.chance(0.5):
        one = g.pick([g.ints(1, 1, 1, 1), g.ints(1, x.channels, 1, 1)])
        y = g.node("Expand", pooled, g.node("Where", by_data(g, x), one, g.node("Shape", x)))
        return g.apply("Add", x, Value(y, x.shape, 1))
    extents = [as_row(g, size(g, x, 0)), as_row(g, size(g, x, 1)), limited(g, size(g, x, 2)), g.ints(1)]
    y = Value(g.node("Expand", pooled, g.node("Concat", *extents, axis=0)), x.shape, 1)
    return g.apply("Mul", x, g.apply("GlobalMaxPool", g.apply("Sigmoid", y), shape=pooled.shape))


@step(2, "image", first_seed=SINCE)
def resize_by_limited_size(g: Graph, x: Value) -> Value:
    """To sizes that a bound limits, or that data choose, and back."""
    if x.rank != 4 or g.opset < 11:
        raise Skip
    empty = g.array(np.zeros(0)) if g.opset < 13 else ""
    leading = [as_row(g, size(g, x, axis)) for axis in (0, 1)]
    there = g.node("Concat", *leading, limited(g, size(g, x, 2)), g.ints(4), axis=0)
    if g.chance(0.5):
        there = g.node("Where", by_data(g, x), there, g.node("Shape", x))
    y = g.node("Tanh", g.node("Resize", x, empty, empty, there, mode="nearest"))
    return Value(g.node("Resize", y, empty, empty, g.node("Shape", x), mode="nearest"), x.shape, 1)


@step(1, "image", "tokens", "vector", first_seed=SINCE)
def pick_by_data(g: Graph, x: Value) -> Value:
    """All channels but the first or the last, as data or the size say: Slice, Gather or Split."""
    if x.channels < 4 or g.opset < 13:
        raise Skip
    if g.chance(0.5):
        start = g.cast(by_data(g, x), 7)
    else:
        start = g.node("Sub", limited(g, size(g, x, x.rank - 1)), g.ints(1))
        start = g.node("Min", start, g.ints(1))
    count, way = x.channels - 1, g.pick(["Slice", "Gather", "Split"])
    if way == "Gather":
        y = g.node("Gather", x, g.node("Add", start, g.ints(*range(count))), axis=x.axis)
    elif way == "Slice":
        y = g.node("Slice", x, start, g.node("Add", start, g.ints(count)), g.ints(x.axis))
    else:
        first = g.node("Add", start, g.ints(2))
        parts = g.node("Split", x, g.node("Concat", first, g.node("Sub", g.ints(x.channels), first), axis=0), outs=2, axis=x.axis)
        return Value(g.node("Concat", *parts[::-1], axis=x.axis), x.shape, x.axis)
    return Value(y, x.with_channels(count), x.axis)


@step(1, "image", "tokens", first_seed=SINCE)
def one_channel_expanded(g: Graph, x: Value) -> Value:
    """A map of one channel, expanded to all of them before a join."""
    g.need("Expand", 8)
    one = (
        g.reduce("ReduceMean", x, [x.axis], True)
        if g.chance(0.5)
        else Value(g.slice(x, [0], [1], [x.axis]), x.with_channels(1), x.axis)
    )
    target = g.pick([g.node("Shape", x), g.ints(*(x.channels if axis == x.axis else 1 for axis in range(x.rank)))])
    y = g.apply("Expand", one, target, shape=x.shape)
    return g.apply(g.pick(["Add", "Mul"]), *((x, y) if g.chance(0.5) else (y, x)), shape=x.shape)


@step(2, "image", "tokens", first_seed=SINCE)
def squeeze_of_all(g: Graph, x: Value) -> Value:
    """Squeeze without axes, where channels are all that is left, and Unsqueeze."""
    if not isinstance(x.shape[0], int) or x.rank < 3:
        raise Skip
    y = g.reduce("ReduceMean", x, [axis for axis in range(x.rank) if axis not in (0, x.axis)], True)
    y = g.node("Relu", g.node("Squeeze", y))
    return g.apply(
        "Add", x, Value(g.with_axes("Unsqueeze", y, [a for a in range(1, x.rank) if a != x.axis], 13), x.shape, x.axis)
    )
