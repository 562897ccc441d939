"""Steps with recurrent layers in all of their forms, and with operators that ONNX Runtime writes when it optimises."""

from __future__ import annotations

import numpy as np

from .graph import Graph, Skip, Value
from .steps import step

SINCE = 30_000
"""The first seed whose graphs have the steps below."""


@step(3, "tokens", first_seed=SINCE)
def recurrent_in_full(g: Graph, x: Value) -> Value:
    """LSTM, GRU or RNN over the tokens, in one direction or both, with or without what there is at the beginning."""
    if x.rank != 3:
        raise Skip
    name, hidden, directions = g.pick(["LSTM", "GRU", "RNN"]), g.pick([4, 7]), g.pick([1, 1, 2])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name] * hidden
    sequence = g.node("Transpose", x, perm=[1, 0, 2])
    weights = g.weight(directions, gates, x.channels, fan_in=x.channels), g.weight(directions, gates, hidden, fan_in=hidden)
    inputs = [g.array(g.small(directions, 2 * gates)) if g.chance(0.6) else ""]
    if g.chance(0.5):
        states = [first_state(g, x, directions, hidden) for _ in range(1 + (name == "LSTM"))]
        inputs += ["", *states]
        if name == "LSTM" and g.chance(0.5):
            inputs += [g.array(g.small(directions, 3 * hidden))]
    attributes = {"direction": "bidirectional"} if directions == 2 else g.pick([{}, {"direction": "reverse"}])
    if name == "GRU" and g.chance(0.5):
        attributes["linear_before_reset"] = 1
    outs = 3 if name == "LSTM" else 2
    found = g.node(name, sequence, *weights, *inputs, outs=outs, hidden_size=hidden, **attributes)
    if directions == 2:
        y = g.node("Reshape", g.node("Transpose", found[0], perm=[2, 0, 1, 3]), g.ints(0, 0, 2 * hidden))
        return Value(y, x.with_channels(2 * hidden), 2)
    y = Value(g.node("Transpose", g.with_axes("Squeeze", found[0], [1], 13), perm=[1, 0, 2]), x.with_channels(hidden), 2)
    if g.chance(0.3):  # the last state, or the last cell, added to every step
        y = g.apply("Add", y, g.node("Transpose", g.pick(found[1:]), perm=[1, 0, 2]))
    return y


def first_state(g: Graph, x: Value, directions: int, hidden: int) -> str:
    """(directions, batch, hidden): zeros of that shape, or numbers that are the same for all of the batch."""
    shape = g.node("Concat", g.ints(directions), g.slice(g.node("Shape", x), [0], [1], [0]), g.ints(hidden), axis=0)
    way = g.pick(["zeros", "expanded", "constant"])
    if way == "zeros" and g.opset >= 9:
        return g.node("ConstantOfShape", shape)
    number = g.array(g.small(directions, 1, 1 if way == "expanded" else hidden))
    return g.node("Expand", number, shape) if g.opset >= 8 else g.node("Add", number, g.number(0.0))


@step(2, first_seed=SINCE)
def of_onnx_runtime(g: Graph, x: Value) -> Value:
    """Fused activations and norms of the domain com.microsoft."""
    name = g.pick(["Gelu", "QuickGelu", "FastGelu", "BiasGelu", "SkipLayerNormalization"])
    last, inputs = x.axis == x.rank - 1, [x.name]
    if name == "BiasGelu" or (name == "FastGelu" and last and g.chance(0.5)):
        inputs.append(g.array(g.small(x.channels)))
    if name == "SkipLayerNormalization":
        inputs += [g.node("Tanh", x), g.array(g.positive(x.channels)), g.array(g.small(x.channels))]
    fits = {"BiasGelu": last, "SkipLayerNormalization": last and x.rank == 3}
    if not fits.get(name, True):
        raise Skip
    return Value(g.op(name, *inputs, domain="com.microsoft"), x.shape, x.axis)


@step(3, "image", "tokens", first_seed=SINCE)
def indexed(g: Graph, x: Value) -> Value:
    """Gather and scatter with constant indices along another axis than that of the channels; the batch is first or 2."""
    axis = x.rank - 1 if x.axis == 1 else 1
    extent, name = x.shape[axis], g.pick(["GatherElements", "ScatterElements", "GatherND", "ScatterND"])
    g.need(name, 11 if name.startswith("Scatter") else 1)
    if not isinstance(extent, int):
        raise Skip
    picked = g.rng.permutation(extent)
    if name.endswith("ND"):
        g.need(name)
        rows = g.ints(*picked[:2])
        moved = [axis, *(each for each in range(x.rank) if each != axis)]
        back = [moved.index(each) for each in range(x.rank)]
        data = g.transpose(x, moved)
        indices = g.with_axes("Unsqueeze", rows, [1], 13)
        found = g.node("GatherND", data, indices)
        if name == "GatherND":
            shape = tuple(2 if each == axis else size for each, size in enumerate(x.shape))
            return Value(g.node("Transpose", found, perm=back), shape, x.axis)
        way = g.pick(["Tanh", "constant"])
        numbers = [1] * x.rank
        numbers[data.axis] = x.channels
        constant = g.node("Add", g.node("Mul", found, g.number(0.0)), g.array(g.small(*numbers)))
        written = g.node("ScatterND", data, indices, constant if way == "constant" else g.node("Tanh", found))
        return Value(g.node("Transpose", written, perm=back), x.shape, x.axis)
    if not x.is_static or not isinstance(x.shape[0], int):
        raise Skip
    indices = np.moveaxis(np.broadcast_to(picked, (*x.shape[:axis], *x.shape[axis + 1 :], extent)), -1, axis)
    others = () if name == "GatherElements" else (g.pick([g.node("Tanh", x), g.array(g.small(*x.shape))]),)
    return g.apply(name, x, g.array(indices, np.int64), *others, axis=axis)
