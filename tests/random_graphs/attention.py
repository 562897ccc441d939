"""Attention as exports write it: fused projections, heads, shared keys and values, rotations, masks, scales on either side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .elementwise import activation
from .graph import Graph, Skip, Value
from .layers import dense
from .steps import step

SINCE = 40_000
"""The first seed whose graphs have the step below; half of their inputs are tokens."""


@dataclass(frozen=True)
class Form:
    """Numbers of heads, of heads of key and value, of channels in each, and of tokens; 0 tokens where they are dynamic."""

    heads: int
    shared: int
    width: int
    tokens: int


def text_of(g: Graph, x: str, form: Form, heads: int, width: int) -> str:
    """The target of a Reshape of (N, T, C) to (N, T, heads, width) or, with 0 heads, back to (N, T, width)."""
    tail = [heads, width] if heads else [width]
    way = g.pick(["copied", "inferred", "computed"])
    if way == "computed":
        sizes = g.slice(g.node("Shape", x), [0], [2], [0])
        return g.node("Concat", sizes, g.ints(*tail), axis=0)
    if way == "inferred":
        tail[g.pick(range(len(tail)))] = -1
    return g.ints(0, form.tokens if form.tokens and g.chance(0.5) else 0, *tail)


def projections(g: Graph, x: Value, form: Form) -> list[str]:
    """Query, key and value as (N, T, heads, width), from layers of their own or from one."""
    counts = [form.heads, form.shared, form.shared]
    way = g.pick(["apart", "apart", "split", "slices", "stacked"])
    if way == "apart":
        parts = [dense(g, x, count * form.width) for count in counts]
    else:
        both = dense(g, x, sum(counts) * form.width)
        sizes = [count * form.width for count in counts]
        if way == "stacked":
            return stacked(g, both, form, counts)
        if way == "split":
            parts = g.split(both, sizes)
        else:
            ends = np.cumsum(sizes).tolist()
            parts = [g.slice(both, [end - size], [end], [2]) for end, size in zip(ends, sizes, strict=True)]
    names = [part.name if isinstance(part, Value) else part for part in parts]
    return [g.node("Reshape", name, text_of(g, name, form, count, form.width)) for name, count in zip(names, counts, strict=True)]


def stacked(g: Graph, both: Value, form: Form, counts: list[int]) -> list[str]:
    """(N, T, all heads, width), or with as many of each (N, T, 3, heads, width), picked apart behind the Reshape."""
    if form.heads != form.shared:
        whole = Value(g.node("Reshape", both, text_of(g, both.name, form, sum(counts), form.width)), (1, 1, sum(counts), 1), 2)
        return [part.name for part in g.split(whole, counts)]
    shape = g.ints(0, 0, 3, form.heads, form.width)
    whole = g.node("Reshape", both, shape)
    if g.chance(0.5):
        whole = g.node("Transpose", whole, perm=[2, 0, 1, 3, 4])
        return [g.node("Gather", whole, g.array(np.array(number)), axis=0) for number in range(3)]
    return [g.with_axes("Squeeze", g.slice(whole, [n], [n + 1], [2]), [2], 13) for n in range(3)]


def angles(g: Graph, form: Form) -> list[str]:
    """Cosines and sines (T, width) in pairs: constants, or computed from the numbers of the positions."""
    frequencies = 1.0 / 10.0 ** np.linspace(0, 1, form.width // 2)
    if g.chance(0.5):
        both = np.outer(np.arange(form.tokens), np.concatenate([frequencies, frequencies]))
        return [g.array(np.cos(both)), g.array(np.sin(both))]
    positions = g.array(np.arange(form.tokens, dtype=np.float64)[None])
    product = g.node("MatMul", g.array(frequencies[:, None]), positions)
    half = g.node("Transpose", product, perm=[1, 0])
    both = g.node("Concat", half, half, axis=1)
    return [g.node("Cos", both), g.node("Sin", both)]


def rotated(g: Graph, x: str, tables: list[str], form: Form) -> str:
    """x cos + rotate_half(x) sin, of (N, heads, T, width)."""
    half = form.width // 2
    first, second = g.slice(x, [0], [half], [3]), g.slice(x, [half], [form.width], [3])
    turned = g.node("Concat", g.node("Neg", second), first, axis=3)
    return g.node("Add", g.node("Mul", x, tables[0]), g.node("Mul", turned, tables[1]))


def repeated(g: Graph, x: str, form: Form) -> str:
    """Every head of (N, shared, T, width) as often as there are heads of queries that share it."""
    count = form.heads // form.shared
    if count == 1:
        return x
    way = g.pick(["Expand", "Gather", "Concat"])
    if way == "Gather":
        return g.node("Gather", x, g.ints(*np.repeat(np.arange(form.shared), count).tolist()), axis=1)
    apart = g.with_axes("Unsqueeze", x, [2], 13)
    if way == "Concat":
        many = g.node("Concat", *[apart] * count, axis=2)
    elif form.tokens and g.chance(0.5):
        many = g.node("Expand", apart, g.ints(1, form.shared, count, form.tokens, form.width))
    else:
        sizes = g.node("Shape", x)
        parts = [g.slice(sizes, [at], [at + 1], [0]) for at in range(4)]
        many = g.node("Expand", apart, g.node("Concat", parts[0], parts[1], g.ints(count), parts[2], parts[3], axis=0))
    if form.tokens:
        return g.node("Reshape", many, g.ints(-1, form.heads, form.tokens, form.width))
    return g.node("Reshape", many, g.ints(0, form.heads, -1, form.width))


def scaled(g: Graph, query: str, key: str, form: Form) -> tuple[str, str]:
    """1 / sqrt(width) on the query, its root on both, computed from the shape, or on none."""
    way = g.pick(["query", "both", "computed", "none"])
    if way == "query":
        return g.node("Mul", query, g.number(form.width**-0.5)), key
    if way == "both":
        return g.node("Div", query, g.number(form.width**0.25)), g.node("Mul", g.number(form.width**-0.25), key)
    if way == "computed":
        size = g.cast(g.slice(g.node("Shape", query), [3], [4], [0]), 1)
        return g.node("Div", query, g.node("Sqrt", size)), key
    return query, key


def product(g: Graph, left: str, right: str, equation: str, batched: bool) -> str:
    """A MatMul, or sometimes an Einsum."""
    if batched and g.opset >= 12 and g.chance(0.15):
        return g.node("Einsum", left, right, equation=equation)
    return g.node("MatMul", left, right)


def one_operator(g: Graph, query: str, key: str, value: str, x: Value, form: Form) -> Value:
    """Attention of opset 23, of (N, T, heads, width): heads side by side or on an axis of their own, which the output has too."""
    options = {name: value for name, value in (("scale", 0.4), ("softcap", 3.0), ("is_causal", 1)) if g.chance(0.4)}
    is_flat, inner = g.chance(0.5), form.heads * form.width
    if is_flat:
        counts, options = (
            (form.heads, form.shared, form.shared),
            {**options, "q_num_heads": form.heads, "kv_num_heads": form.shared},
        )
        parts = [
            g.node("Reshape", part, text_of(g, part, form, 0, count * form.width))
            for part, count in zip((query, key, value), counts, strict=True)
        ]
    else:
        parts = [g.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, key, value)]
    if form.tokens and g.chance(0.3):
        parts.append(g.array(np.triu(np.full((form.tokens, form.tokens), -1e4), 1)))
    y = g.node("Attention", *parts, **options)
    if not is_flat:
        y = g.node("Transpose", y, perm=[0, 2, 1, 3])
        y = g.node("Reshape", y, text_of(g, y, form, 0, inner))
    return Value(y, (x.shape[0], x.shape[1], inner), 2)


@step(14, "tokens", first_seed=SINCE)
def attention_of_exports(g: Graph, x: Value) -> Value:
    if x.rank != 3:
        raise Skip
    shared = g.pick([1, 2, 2, 3])
    form = Form(shared * g.pick([1, 1, 2, 3]), shared, g.pick([2, 3, 4, 6]), x.shape[1] if isinstance(x.shape[1], int) else 0)
    query, key, value = projections(g, x, form)
    if g.has("Attention") and g.chance(0.4):
        return g.apply("Add", x, dense(g, one_operator(g, query, key, value, x, form), x.channels))
    query, key, value = (g.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, key, value))
    if form.width % 2 == 0 and form.tokens and g.chance(0.3):
        tables = angles(g, form)
        query, key = rotated(g, query, tables, form), rotated(g, key, tables, form)
    if g.chance(0.15):  # a nonlinear one, as in linear attention, or one that mixes the channels of a head
        query, key = (activation(g, Value(part, (1,) * 4), "Relu").name for part in (query, key))
    if g.opset >= 13 and g.chance(0.1):
        value = g.node("Softmax", value, axis=g.pick([2, 3]))
    key, value = repeated(g, key, form), repeated(g, value, form)
    query, key = scaled(g, query, key, form)
    batched = g.chance(0.75)
    if not batched:
        if not form.tokens:
            raise Skip
        flat = g.ints(-1, form.tokens, form.width)
        query, key, value = (g.node("Reshape", part, flat) for part in (query, key, value))
    turned = g.node("Transpose", key, perm=[0, 1, 3, 2] if batched else [0, 2, 1])
    scores = product(g, query, turned, "bhqd,bhdk->bhqk", batched)
    if form.tokens and g.chance(0.3):
        scores = g.node("Add", scores, g.array(np.triu(np.full((form.tokens, form.tokens), -1e4), 1)))
    scores = g.node("Softmax", scores, axis=3 if batched else 2)
    y = product(g, scores, value, "bhqk,bhkd->bhqd", batched)
    if not batched:
        y = g.node("Reshape", y, g.ints(-1, form.heads, form.tokens, form.width))
    y = g.node("Transpose", y, perm=[0, 2, 1, 3])
    inner = form.heads * form.width
    joined = Value(g.node("Reshape", y, text_of(g, y, form, 0, inner)), (x.shape[0], x.shape[1], inner), 2)
    y = dense(g, joined, x.channels)
    return g.apply("Add", x, y) if g.chance(0.8) else y
