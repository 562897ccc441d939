"""Steps that are blocks of real networks: residual, bottleneck, squeeze-excite, dense, CSP, attention, MLP."""

from __future__ import annotations

import numpy as np

from .elementwise import activation, batch_norm_of
from .graph import Graph, Skip, Value
from .layers import conv_of, dense, gemm_of, up_of, width
from .layout import concat, pooled
from .steps import step


def conv_norm_act(g: Graph, x: Value, out: int, kernel: int = 3, *, group: int = 1, stride: int = 1, act: str = "") -> Value:
    """Convolution, mostly BatchNormalization, activation."""
    y = conv_of(g, x, out, kernel, group=group, stride=stride)
    if g.chance(0.6):
        y = batch_norm_of(g, y)
    return activation(g, y, act or g.pick(["Relu", "Relu", "Clip", "SiLU", "LeakyRelu", ""]))


@step(8, "image")
def convolution_block(g: Graph, x: Value) -> Value:
    return conv_norm_act(g, x, width(g), g.pick([1, 3]), stride=2 if g.chance(0.15) else 1)


@step(6, "image")
def residual(g: Graph, x: Value) -> Value:
    """Two convolutions and a shortcut, which is projected where the width changes."""
    out = x.channels if g.chance(0.7) else width(g)
    y = conv_of(g, conv_norm_act(g, x, width(g), act="Relu"), out)
    shortcut = x if out == x.channels else conv_of(g, x, out, 1)
    y = g.apply("Add", *((y, shortcut) if g.chance(0.7) else (shortcut, y)))
    return activation(g, y, "Relu") if g.chance(0.7) else y


@step(3, "image")
def bottleneck(g: Graph, x: Value) -> Value:
    """1 x 1, grouped or depthwise 3 x 3, 1 x 1, shortcut; mostly with squeeze-excite."""
    group = g.pick([1, 2, 4])
    inner = 4 * g.pick([1, 2])
    y = conv_norm_act(g, x, inner, 1)
    y = conv_norm_act(g, y, inner, 3, group=inner if g.chance(0.5) else group)
    if g.chance(0.5):
        y = gated(g, y)
    return g.apply("Add", x, conv_of(g, y, x.channels, 1))


def gated(g: Graph, x: Value) -> Value:
    """Squeeze-excite, by convolutions or by Gemm."""
    reduced = max(2, x.channels // 2)
    if g.chance(0.5):
        y = g.apply("GlobalAveragePool", x, shape=(*x.shape[:2], *(1,) * (x.rank - 2)))
        y = conv_of(g, g.apply("Relu", conv_of(g, y, reduced, 1)), x.channels, 1)
    else:
        y = gemm_of(g, g.apply("Relu", gemm_of(g, pooled(g, x), reduced)), x.channels)
        y = Value(g.with_axes("Unsqueeze", y, [*range(2, x.rank)], 13), (*y.shape, *(1,) * (x.rank - 2)), 1)
    y = activation(g, y, g.pick(["Sigmoid", "HardSigmoid"]))
    return g.apply("Mul", *((x, y) if g.chance(0.5) else (y, x)), like=x)


@step(3, "image")
def squeeze_excite(g: Graph, x: Value) -> Value:
    return gated(g, x)


@step(2, "image")
def spatial_gate(g: Graph, x: Value) -> Value:
    """One number for each position, from a convolution or from the mean and the largest over the channels (CBAM)."""
    if g.chance(0.5):
        gate = conv_of(g, x, 1, 1)
    else:
        parts = [g.reduce(name, x, [1], True) for name in ("ReduceMean", "ReduceMax")]
        gate = conv_of(g, Value(g.node("Concat", *parts, axis=1), x.with_channels(2), 1), 1)
    gate = g.apply("Sigmoid", gate)
    return g.apply("Mul", *((x, gate) if g.chance(0.5) else (gate, x)), like=x)


@step(1.5, "image", "tokens")
def modulated(g: Graph, x: Value) -> Value:
    """A scale and a shift for each channel, computed from the pooled value and broadcast (FiLM)."""
    both = gemm_of(g, pooled(g, x), 2 * x.channels)
    axes = [axis for axis in range(1, x.rank) if axis != x.axis]
    scale, shift = (g.with_axes("Unsqueeze", part, axes, 13) for part in g.split(both, [x.channels] * 2))
    return g.apply("Add", g.apply("Mul", x, g.node("Sigmoid", scale)), shift)


@step(2, "image")
def dense_block(g: Graph, x: Value) -> Value:
    """DenseNet: what every layer reads is all that was written before."""
    for _ in range(2):
        if x.channels > 24:
            return x
        new = conv_of(g, activation(g, batch_norm_of(g, x), "Relu"), 4)
        x = g.apply("Concat", x, new, shape=x.with_channels(x.channels + 4), axis=1)
    return x


@step(3, "image")
def cross_stage(g: Graph, x: Value) -> Value:
    """C2f: half of the channels through a bottleneck, all pieces concatenated, then mixed by 1 x 1."""
    half = width(g)
    one, other = g.split(conv_norm_act(g, x, 2 * half, 1), [half, half])
    inner = conv_norm_act(g, conv_norm_act(g, other, half), half)
    inner = g.apply("Add", other, inner) if g.chance(0.5) else inner
    y = Value(g.node("Concat", one, other, inner, axis=1), x.with_channels(3 * half), 1)
    return conv_norm_act(g, y, width(g), 1)


@step(2, "image")
def shuffle_unit(g: Graph, x: Value) -> Value:
    """ShuffleNetV2: split, one half treated, Concat, channel shuffle."""
    if x.channels % 2 or x.channels < 4 or x.rank != 4 or not x.is_static:
        raise Skip
    half = x.channels // 2
    one, other = g.split(x, [half, half])
    other = conv_norm_act(g, conv_of(g, conv_norm_act(g, other, half, 1), half, group=half), half, 1)
    y = Value(g.node("Concat", one, other, axis=1), x.shape, 1)
    y = g.node("Transpose", g.node("Reshape", y, g.ints(0, 2, half, *x.positions)), perm=[0, 2, 1, 3, 4])
    return g.reshape(y, (0, x.channels, *x.positions), x.shape, 1)


@step(2, "image")
def u_shape(g: Graph, x: Value) -> Value:
    """Down by a stride, up by a ConvTranspose, Concat with the skip."""
    if x.rank != 4:
        raise Skip
    small = conv_norm_act(g, x, width(g), stride=2)
    up = up_of(g, conv_norm_act(g, small, width(g)), width(g))
    return Value(g.node("Concat", x, up, axis=1), x.with_channels(x.channels + up.channels), 1)


@step(2, "image")
def tower(g: Graph, x: Value) -> Value:
    """Inception: parallel branches, Concat."""
    branches = [conv_norm_act(g, x, g.pick([2, 4]), 1), conv_norm_act(g, conv_norm_act(g, x, 4, 1), g.pick([3, 4]), 3)]
    if g.chance(0.5):
        rank = x.rank - 2
        branches.append(conv_of(g, g.apply("AveragePool", x, kernel_shape=[3] * rank, pads=[1] * (2 * rank)), 4, 1))
    count = sum(each.channels for each in branches)
    return Value(g.node("Concat", *branches, axis=1), x.with_channels(count), 1)


@step(4, "tokens")
def mlp(g: Graph, x: Value) -> Value:
    """Norm, dense, activation, dense, shortcut; or a gated MLP."""
    y = g.apply("LayerNormalization", x, g.array(g.positive(x.channels)), g.array(g.small(x.channels))) if g.opset >= 17 else x
    hidden = 2 * width(g)
    inner = dense(g, y, hidden)
    if g.chance(0.3):
        one, other = g.split(inner, [hidden // 2] * 2)
        inner = g.apply("Mul", one, activation(g, other, g.pick(["Sigmoid", "SiLU"])))
    elif g.chance(0.3):
        inner = g.apply("Mul", activation(g, inner, "SiLU"), dense(g, y, hidden))
    else:
        inner = activation(g, inner)
    y = dense(g, inner, x.channels)
    return g.apply("Add", x, y) if g.chance(0.8) else y


@step(2.5, "tokens")
def attention(g: Graph, x: Value) -> Value:
    """Multi-head attention of (N, T, C), with separate or fused projections."""
    if x.rank != 3 or not x.is_static:
        raise Skip
    tokens, heads, per_head = x.shape[1], 2, g.pick([2, 4])
    inner = heads * per_head
    if g.chance(0.4):
        query, key, value = g.split(dense(g, x, 3 * inner), [inner] * 3)
    else:
        query, key, value = (dense(g, x, inner) for _ in range(3))

    def in_heads(part: Value, order: tuple[int, ...]) -> str:
        return g.node("Transpose", g.node("Reshape", part, g.ints(0, tokens, heads, per_head)), perm=list(order))

    scores = g.node("MatMul", in_heads(query, (0, 2, 1, 3)), in_heads(key, (0, 2, 3, 1)))
    scores = g.node("Softmax", g.node("Div", scores, g.number(np.sqrt(per_head))), axis=3)
    mixed = g.node("Transpose", g.node("MatMul", scores, in_heads(value, (0, 2, 1, 3))), perm=[0, 2, 1, 3])
    y = g.reshape(mixed, (0, tokens, inner), (x.shape[0], tokens, inner), 2)
    y = dense(g, y, x.channels)
    return g.apply("Add", x, y) if g.chance(0.8) else y


@step(2, "vector")
def dense_stack(g: Graph, x: Value) -> Value:
    """Gemm, activation, Gemm, with or without a shortcut."""
    y = gemm_of(g, activation(g, gemm_of(g, x, 2 * width(g))), x.channels)
    return g.apply("Add", x, y) if g.chance(0.5) else y


@step(1, "image")
def dense_concat(g: Graph, x: Value) -> Value:
    return concat(g, conv_norm_act(g, x, x.channels))
