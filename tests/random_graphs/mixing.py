"""Steps with operators that mix channels, or that no channel passes: recurrent cells, scatter, quantisation, bodies."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from .graph import Graph, Skip, Value
from .steps import step


@step(1.5, "tokens")
def recurrent(g: Graph, x: Value) -> Value:
    """LSTM, GRU or RNN over the tokens."""
    if x.rank != 3:
        raise Skip
    name, hidden = g.pick(["LSTM", "GRU", "RNN"]), 4
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name] * hidden
    sequence = g.node("Transpose", x, perm=[1, 0, 2])
    weights = g.weight(1, gates, x.channels, fan_in=x.channels), g.weight(1, gates, hidden, fan_in=hidden)
    bias = (g.array(g.small(1, 2 * gates)),) if g.chance(0.5) else ()
    y = g.node(name, sequence, *weights, *bias, outs=2, hidden_size=hidden)[0]
    y = g.node("Transpose", g.with_axes("Squeeze", y, [1], 13), perm=[1, 0, 2])
    return Value(y, x.with_channels(hidden), 2)


@step(2, "tokens")
def attention_operator(g: Graph, x: Value) -> Value:
    """Attention of opset 23."""
    g.need("Attention")
    if x.rank != 3 or x.channels % 2:
        raise Skip
    return g.apply("Attention", x, x, x, q_num_heads=2, kv_num_heads=2)


@step(5)
def mix(g: Graph, x: Value) -> Value:
    """One of the operators that pin whatever enters them."""
    return g.pick(MIXERS)(g, x)


def einsum(g: Graph, x: Value) -> Value:
    g.need("Einsum")
    letters = "nabcd"[: x.rank]
    out = letters.replace(letters[x.axis], "z")
    weight = g.weight(x.channels, 5, fan_in=x.channels)
    return g.apply("Einsum", x, weight, shape=x.with_channels(5), equation=f"{letters},{letters[x.axis]}z->{out}")


def top_k(g: Graph, x: Value) -> Value:
    if g.opset < 10:
        name = g.node("TopK", x, outs=2, axis=x.axis, k=2)[0]
    else:
        name = g.node("TopK", x, g.ints(2), outs=2, axis=x.axis)[0]
    return Value(name, x.with_channels(2), x.axis)


def arg_max(g: Graph, x: Value) -> Value:
    index = g.node(g.pick(["ArgMax", "ArgMin"]), x, axis=g.pick([x.axis, x.rank - 1]), keepdims=1)
    return g.apply("Add", x, g.node("Mul", g.cast(index, 1), g.number(0.1)))


def one_hot(g: Graph, x: Value) -> Value:
    g.need("OneHot", 9)
    index = g.node("ArgMax", x, axis=x.axis, keepdims=0)
    depth, values = g.ints(x.channels), g.array(np.array([0.0, 1.0]))
    return g.apply("Add", x, g.node("OneHot", index, depth, values, axis=x.axis))


def gather_elements(g: Graph, x: Value) -> Value:
    g.need("GatherElements")
    return g.apply("GatherElements", x, g.cast(g.apply("Mul", x, g.number(0.0)), 7), axis=x.axis)


def gather_nd(g: Graph, x: Value) -> Value:
    """The first of the batch, added to all."""
    g.need("GatherND")
    return g.apply("Add", x, g.with_axes("Unsqueeze", g.node("GatherND", x, g.ints(0)), [0], 13))


def scatter_elements(g: Graph, x: Value) -> Value:
    index = g.cast(g.apply("Mul", x, g.number(0.0)), 7)
    if g.opset < 9:
        raise Skip
    return g.apply("Scatter" if g.opset < 11 else "ScatterElements", x, index, g.apply("Tanh", x), axis=x.axis)


def scatter_nd(g: Graph, x: Value) -> Value:
    g.need("ScatterND", 11)
    row = g.node("Mul", g.node("GatherND", x, g.ints(0)), g.number(0.5))
    return g.apply("ScatterND", x, g.array(np.array([[0]])), g.with_axes("Unsqueeze", row, [0], 13))


def reverse_sequence(g: Graph, x: Value) -> Value:
    g.need("ReverseSequence")
    if x.rank < 3:
        raise Skip
    lengths = g.node("ConstantOfShape", g.slice(g.node("Shape", x), [0], [1], [0]), value=helper.make_tensor("v", 7, [1], [2]))
    return g.apply("ReverseSequence", x, lengths, batch_axis=0, time_axis=1)


def unique(g: Graph, x: Value) -> Value:
    g.need("Unique")
    largest = g.with_axes("ReduceMax", g.node("Unique", x), [0], 18, keepdims=1)
    return g.apply("Sub", x, largest)


def non_zero(g: Graph, x: Value) -> Value:
    g.need("NonZero")
    count = g.cast(g.node("Size", g.node("NonZero", g.clip(x, 0.0, None))), 1)
    return g.apply("Add", x, g.node("Mul", count, g.number(1e-4)))


def compress(g: Graph, x: Value) -> Value:
    g.need("Compress", 9)
    is_taken = np.arange(x.channels) % 2 == 0
    return g.apply("Compress", x, g.array(is_taken, bool), shape=x.with_channels(int(is_taken.sum())), axis=x.axis)


def determinant(g: Graph, x: Value) -> Value:
    g.need("Det")
    if x.rank != 4 or x.axis != 1:
        raise Skip
    square = g.node("MatMul", x, g.node("Transpose", x, perm=[0, 1, 3, 2]))
    det = g.node("Tanh", g.node("Det", square))
    return g.apply("Add", x, g.with_axes("Unsqueeze", det, [2, 3], 13))


def grid_sample(g: Graph, x: Value) -> Value:
    g.need("GridSample")
    if x.rank != 4 or x.axis != 1 or x.channels < 2:
        raise Skip
    grid = g.node("Transpose", g.node("Tanh", g.slice(x, [0], [2], [1])), perm=[0, 2, 3, 1])
    return g.apply("GridSample", x, grid)


def roi_align(g: Graph, x: Value) -> Value:
    g.need("RoiAlign", 16)
    if x.rank != 4 or x.axis != 1:
        raise Skip
    rois, index = g.array(np.array([[0.0, 0.0, 4.0, 4.0]])), g.ints(0)
    y = g.node("RoiAlign", x, rois, index, output_height=1, output_width=1)
    return g.apply("Add", x, y)


def non_max_suppression(g: Graph, x: Value) -> Value:
    g.need("NonMaxSuppression", 10)
    if x.rank != 3:
        raise Skip
    boxes = g.slice(g.node("Sigmoid", x), [0], [4], [2])
    if x.axis != 2 or x.channels < 5:
        raise Skip
    scores = g.node("Transpose", g.slice(x, [4], [5], [2]), perm=[0, 2, 1])
    count = g.cast(g.node("Size", g.node("NonMaxSuppression", boxes, scores, g.ints(3), g.array(0.5), g.array(0.1))), 1)
    return g.apply("Add", x, g.node("Mul", count, g.number(1e-3)))


def sequence(g: Graph, x: Value) -> Value:
    g.need("SequenceConstruct")
    way = g.pick(["SequenceAt", "ConcatFromSequence", "SplitToSequence"])
    if way == "SplitToSequence":
        parts = g.node("SplitToSequence", x, axis=x.axis)
        return g.apply("ConcatFromSequence", parts, like=x, axis=x.axis)
    parts = g.node("SequenceConstruct", x, g.node("Tanh", x))
    if way == "SequenceAt":
        return g.apply("SequenceAt", parts, g.array(np.array(1)), like=x)
    return g.apply("ConcatFromSequence", parts, like=x, shape=x.with_channels(2 * x.channels), axis=x.axis)


def quantised(g: Graph, x: Value) -> Value:
    """Quantise and dequantise, by constants or dynamically."""
    zero = g.array(np.array(128), np.uint8)
    if g.opset >= 11 and g.chance(0.5):
        parts = g.node("DynamicQuantizeLinear", x, outs=3)
        return g.apply("DequantizeLinear", *parts, like=x)
    scale = g.number(0.05)
    return g.apply("DequantizeLinear", g.node("QuantizeLinear", x, scale, zero), scale, zero, like=x)


def quantised_layer(g: Graph, x: Value) -> Value:
    """An integer layer between quantisers."""
    g.need("QuantizeLinear", 10)
    scale, zero, out = g.number(0.05), g.array(np.array(128), np.uint8), 6
    whole = g.node("QuantizeLinear", x, scale, zero)
    values = g.rng.integers(-20, 20, (out, x.channels, *(1,) * (x.rank - 2)) if x.axis == 1 and x.rank > 2 else (x.channels, out))
    weight, weight_scale, weight_zero = g.array(values, np.int8), g.number(0.02), g.array(np.array(0), np.int8)
    convolves = x.axis == 1 and x.rank == 4
    if not convolves and x.axis != x.rank - 1:
        raise Skip
    shape = x.with_channels(out)
    if g.chance(0.5):
        y = g.node("ConvInteger" if convolves else "MatMulInteger", whole, weight, zero)
        return g.apply("Mul", g.cast(y, 1), g.number(1e-3), like=x, shape=shape)
    inputs = (whole, scale, zero, weight, weight_scale, weight_zero, g.number(0.1), zero)
    y = g.node("QLinearConv" if convolves else "QLinearMatMul", *inputs)
    return g.apply("DequantizeLinear", y, g.number(0.1), zero, like=x, shape=shape)


def branches(g: Graph, x: Value) -> Value:
    """If: with a constant condition, or with one that the graph computes; the bodies read x."""

    def make(op_type: str):
        return lambda inner: inner.op(op_type, x.name, name=f"{op_type}_{len(g.nodes)}")

    constant = g.chance(0.6)
    if constant:
        condition = g.array(np.array(g.chance(0.5)), bool)
    else:
        mean = g.with_axes("ReduceMean", x, list(range(x.rank)), 18, keepdims=0)
        condition = g.node("Greater", mean, g.number(0.0))
    number = len(g.nodes)
    bodies = {
        "then_branch": g.body("then", f"then_{number}", make("Relu")),
        "else_branch": g.body("else", f"else_{number}", make("Tanh")),
    }
    return g.apply("If", condition, like=x, **bodies)


def loop(g: Graph, x: Value) -> Value:
    """Two rounds of Tanh."""
    if g.opset < 11:
        raise Skip
    number = len(g.nodes)
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Identity", [f"on_{number}"], [f"still_{number}"]),
        helper.make_node("Tanh", [f"state_{number}"], [f"next_{number}"]),
    ]
    inputs = [info(f"i_{number}", 7, []), info(f"on_{number}", TensorProto.BOOL, []), info(f"state_{number}", 1, None)]
    outputs = [info(f"still_{number}", TensorProto.BOOL, []), info(f"next_{number}", 1, None)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    return g.apply("Loop", g.array(np.array(2)), g.array(np.array(True), bool), x, like=x, body=body)


def scan(g: Graph, x: Value) -> Value:
    """Over the second axis."""
    if g.opset < 9:
        raise Skip
    number = len(g.nodes)
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", [f"state_{number}", f"slice_{number}"], [f"sum_{number}"]),
        helper.make_node("Tanh", [f"sum_{number}"], [f"next_{number}"]),
        helper.make_node("Identity", [f"next_{number}"], [f"seen_{number}"]),
    ]
    inputs = [info(f"state_{number}", 1, None), info(f"slice_{number}", 1, None)]
    body = helper.make_graph(nodes, "body", inputs, [info(f"next_{number}", 1, None), info(f"seen_{number}", 1, None)])
    start = g.node("Mul", g.with_axes("ReduceMax", x, [1], 18, keepdims=0), g.number(0.0))
    attributes = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1], "body": body}
    return Value(g.node("Scan", start, x, outs=2, **attributes)[1], x.shape, x.axis)


MIXERS = (einsum, top_k, arg_max, one_hot, gather_elements, gather_nd, scatter_elements, scatter_nd, reverse_sequence, unique)
MIXERS += (non_zero, compress, determinant, grid_sample, roi_align, non_max_suppression, sequence, quantised, quantised_layer)
MIXERS += (branches, branches, loop, scan, quantised_layer, scatter_elements, non_max_suppression)
