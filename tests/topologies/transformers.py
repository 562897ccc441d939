"""Attention as PyTorch's exporters write it: BERT, ViT, GPT-2, Llama and nn.MultiheadAttention, one block each.

Names are those of Hugging Face and timm, shortened. Two heads of eight channels, residuals with the graph input.
"""

import numpy as np

from .net import Net
from .table import row

SEQUENCE = {"x": (2, 5, 16)}
WIDTH, HEADS, HEAD, HIDDEN = 16, 2, 8, 24
TIED = (("query", "key"),)
FREE = {"query": 16, "key": 16, "value": 16, "fc_1": 24, "fc_2": 0}


def linear(net: Net, x: str, name: str, c_in: int, c_out: int, bias=True) -> str:
    y = net.matmul(x, name, c_in, c_out)
    return net.op("Add", net.const(f"{name}_b", net.small(c_out)), y) if bias else y


def layer_norm(net: Net, x: str, name: str) -> str:
    return net.op("LayerNormalization", x, net.const(f"{name}_s", net.positive(WIDTH)), net.const(f"{name}_b", net.small(WIDTH)))


def extent(net: Net, x: str, axis: int) -> str:
    """One entry of a shape, as (1,)."""
    entry = net.op("Gather", net.op("Shape", x), net.const(f"at_{len(net.nodes)}", np.array(axis)), axis=0)
    return net.op("Unsqueeze", entry, net.const(f"axes_{len(net.nodes)}", [0]))


def view(net: Net, x: str, *extents: str | int) -> str:
    """A Reshape to extents of which some are computed."""
    parts = [each if isinstance(each, str) else net.const(f"n_{len(net.nodes)}_{at}", [each]) for at, each in enumerate(extents)]
    return net.op("Reshape", x, net.op("Concat", *parts, axis=0))


def heads_of(net: Net, x: str, count: int = HEADS, perm=(0, 2, 1, 3)) -> str:
    return net.op("Transpose", view(net, x, extent(net, x, 0), extent(net, x, 1), count, HEAD), perm=perm)


def mlp(net: Net, y: str) -> str:
    inner = linear(net, y, "fc_1", WIDTH, HIDDEN)
    return linear(net, net.op("Mul", inner, net.op("Sigmoid", inner)), "fc_2", HIDDEN, WIDTH)


def attended(net: Net, scores: str, value: str, x: str, width: int = WIDTH) -> str:
    """Softmax, the mixed values, and heads side by side again."""
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    return view(net, y, extent(net, x, 0), extent(net, x, 1), width)


@row("attention-block", {"projection": 0, **FREE}, None, feeds=SEQUENCE, tied=TIED)
def attention(net: Net, x: str) -> None:
    """Shapes as literals."""
    heads = net.const("heads", [0, 0, 2, 8])

    def head(name: str, perm: list[int]) -> str:
        return net.op("Transpose", net.op("Reshape", net.matmul(x, name, 16, 16), heads), perm=perm)

    query, key, value = head("query", [0, 2, 1, 3]), head("key", [0, 2, 3, 1]), head("value", [0, 2, 1, 3])
    scores = net.op("Mul", net.op("MatMul", query, key), net.const("root", 8**-0.5))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    y = net.op("Add", x, net.matmul(net.op("Reshape", y, net.const("joined", [0, 0, 16])), "projection", 16, 16))
    inner = net.matmul(y, "fc_1", 16, 24)
    inner = net.op("Mul", inner, net.op("Sigmoid", inner))
    y = net.op("Add", y, net.matmul(inner, "fc_2", 24, 16))
    net.output(net.matmul(y, "out", 16, 4), 5, 4)


@row("attention-bert", FREE, None, feeds=SEQUENCE, tied=TIED, symbolic=True)
def bert(net: Net, x: str) -> None:
    query, value = (heads_of(net, linear(net, x, name, WIDTH, WIDTH)) for name in ("query", "value"))
    key = heads_of(net, linear(net, x, "key", WIDTH, WIDTH), perm=(0, 2, 3, 1))
    scores = net.op("Div", net.op("MatMul", query, key), net.const("root", HEAD**0.5))
    y = layer_norm(net, net.op("Add", linear(net, attended(net, scores, value, x), "dense", WIDTH, WIDTH), x), "norm_1")
    y = layer_norm(net, net.op("Add", mlp(net, y), y), "norm_2")
    first = net.op("Gather", y, net.const("first", np.array(0)), axis=1)
    net.output(net.gemm(net.op("Tanh", net.gemm(first, "pooler", WIDTH, WIDTH)), "out", WIDTH, 4), 4)


@row("attention-sdpa", FREE, None, feeds=SEQUENCE, tied=TIED, symbolic=True)
def scaled_dot_product(net: Net, x: str) -> None:
    """torch's scaled_dot_product_attention: the root of the scale is computed from the shape and goes to both sides."""
    query, key, value = (heads_of(net, linear(net, x, name, WIDTH, WIDTH)) for name in ("query", "key", "value"))
    last = net.op("Slice", net.op("Shape", query), net.const("minus_one", [-1]), net.const("end", [2**63 - 1]))
    scale = net.op("Div", net.const("one", [1.0]), net.op("Sqrt", net.op("Cast", last, to=1)))
    turned = net.op("Transpose", key, perm=[0, 1, 3, 2])
    query, key = (net.op("Mul", each, net.op("Sqrt", scale)) for each in (query, turned))
    y = net.op("Add", x, linear(net, attended(net, net.op("MatMul", query, key), value, x), "dense", WIDTH, WIDTH))
    net.output(linear(net, net.op("Add", y, mlp(net, layer_norm(net, y, "norm"))), "out", WIDTH, 4), "T", 4)


@row("attention-t5", {"query": 16, "key": 16, "value": 16}, None, feeds=SEQUENCE, tied=TIED, symbolic=True)
def relative_bias(net: Net, x: str) -> None:
    """A number for each head and distance, from a table."""
    query, key, value = (heads_of(net, linear(net, x, name, WIDTH, WIDTH, bias=False)) for name in ("query", "key", "value"))
    flat = net.op("Squeeze", extent(net, x, 1), net.const("axis", [0]))
    places = net.op("Range", net.const("zero", np.array(0)), flat, net.const("step", np.array(1)))
    apart = (net.op("Unsqueeze", places, net.const(f"axis_{at}", [at])) for at in (0, 1))
    distance = net.op("Min", net.op("Abs", net.op("Sub", *apart)), net.const("largest", np.array(7)))
    bias = net.op("Transpose", net.op("Gather", net.const("table", net.small(8, HEADS)), distance), perm=[2, 0, 1])
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = net.op("Add", scores, net.op("Unsqueeze", bias, net.const("front", [0])))
    y = net.op("Add", x, linear(net, attended(net, scores, value, x), "dense", WIDTH, WIDTH, bias=False))
    net.output(net.matmul(y, "out", WIDTH, 4), "T", 4)


@row("attention-vit", {"qkv": 48, "fc_1": 24, "fc_2": 0}, None, feeds=SEQUENCE)
def vit(net: Net, x: str) -> None:
    """timm: (N, T, 3, heads, channels) of one layer, so that query, key and value keep equally many."""
    y = linear(net, layer_norm(net, x, "norm_1"), "qkv", WIDTH, 3 * WIDTH)
    y = net.op("Transpose", net.op("Reshape", y, net.const("apart", [-1, 5, 3, HEADS, HEAD])), perm=[2, 0, 3, 1, 4])
    parts = net.op("Split", y, net.const("ones", [1, 1, 1]), outs=3, axis=0)
    query, key, value = (net.op("Squeeze", part, net.const(f"axis_{at}", [0])) for at, part in enumerate(parts))
    query = net.op("Mul", query, net.const("scale", HEAD**-0.5))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    y = net.op("Add", x, linear(net, attended(net, scores, value, x), "dense", WIDTH, WIDTH))
    net.output(linear(net, net.op("Add", y, mlp(net, layer_norm(net, y, "norm_2"))), "out", WIDTH, 4), 5, 4)


@row("attention-gpt2", {"qkv": 48, "fc_1": 24, "fc_2": 0}, None, feeds=SEQUENCE, symbolic=True)
def gpt2(net: Net, x: str) -> None:
    """Gemm on flattened tokens, Split, a causal mask that is cut to the tokens."""

    def flat_gemm(y: str, name: str, c_in: int, c_out: int) -> str:
        rows = net.op("Reshape", y, net.const(f"{name}_rows", [-1, c_in]))
        return view(net, net.gemm(rows, name, c_in, c_out, trans_b=0), extent(net, x, 0), extent(net, x, 1), c_out)

    y = flat_gemm(layer_norm(net, x, "norm_1"), "qkv", WIDTH, 3 * WIDTH)
    query, key, value = net.op("Split", y, net.const("sizes", [WIDTH] * 3), outs=3, axis=2)
    query, key, value = heads_of(net, query), heads_of(net, key, perm=(0, 2, 3, 1)), heads_of(net, value)
    scores = net.op("Div", net.op("MatMul", query, key), net.const("root", HEAD**0.5))
    mask, tokens = net.const("mask", np.tril(np.ones((1, 1, 64, 64))), bool), extent(net, x, 1)
    for axis in (2, 3):
        mask = net.op("Slice", mask, net.const(f"start_{axis}", [0]), tokens, net.const(f"axis_{axis}", [axis]))
    scores = net.op("Where", mask, scores, net.const("lowest", -3e38))
    y = net.op("Add", flat_gemm(attended(net, scores, value, x), "dense", WIDTH, WIDTH), x)
    inner = flat_gemm(layer_norm(net, y, "norm_2"), "fc_1", WIDTH, HIDDEN)
    y = net.op("Add", y, flat_gemm(net.op("Tanh", inner), "fc_2", HIDDEN, WIDTH))
    net.output(net.matmul(layer_norm(net, y, "norm_3"), "out", WIDTH, 4), "T", 4)


def rms_norm(net: Net, x: str, name: str) -> str:
    mean = net.op("ReduceMean", net.op("Pow", x, net.const(f"{name}_two", 2.0)), axes=[-1])
    root = net.op("Sqrt", net.op("Add", mean, net.const(f"{name}_epsilon", 1e-6)))
    y = net.op("Mul", x, net.op("Div", net.const(f"{name}_one", 1.0), root))
    return net.op("Mul", net.const(f"{name}_w", net.positive(WIDTH)), y)


@row(
    "attention-llama", {"query": 32, "key": 16, "value": 16, "gate": 24, "up": 24}, None,
    feeds=SEQUENCE, tied=(*TIED, ("gate", "up")), symbolic=True,
)  # fmt: skip
def llama(net: Net, x: str) -> None:
    """Two heads of key and value for four of the query, rotary positions, SwiGLU."""
    y = rms_norm(net, x, "norm_1")
    query = heads_of(net, linear(net, y, "query", WIDTH, 4 * HEAD, bias=False), 4)
    key, value = (heads_of(net, linear(net, y, name, WIDTH, 2 * HEAD, bias=False)) for name in ("key", "value"))
    batch, tokens = extent(net, x, 0), extent(net, x, 1)
    flat = net.op("Squeeze", tokens, net.const("axis", [0]))
    positions = net.op("Range", net.const("zero", np.array(0)), flat, net.const("step", np.array(1)))
    positions = net.op("Cast", net.op("Unsqueeze", positions, net.const("front", [0, 1])), to=1)
    inverse = net.const("inverse", (10.0 ** -np.linspace(0, 1, HEAD // 2)).reshape(1, -1, 1))
    inverse = net.op("Expand", inverse, net.op("Concat", batch, net.const("rest", [HEAD // 2, 1]), axis=0))
    half = net.op("Transpose", net.op("MatMul", inverse, positions, name="frequencies"), perm=[0, 2, 1])
    angle = net.op("Concat", half, half, axis=-1)
    tables = [net.op("Unsqueeze", net.op(name, angle), net.const(f"{name}_axis", [1])) for name in ("Cos", "Sin")]

    def rotated(y: str, name: str) -> str:
        first, second = (
            net.op("Slice", y, *(net.const(f"{name}_{what}_{at}", [number]) for what, number in zip("sea", ends, strict=True)))
            for at, ends in enumerate(((0, HEAD // 2, 3), (HEAD // 2, 2**63 - 1, 3)))
        )
        turned = net.op("Concat", net.op("Neg", second), first, axis=-1)
        return net.op("Add", net.op("Mul", y, tables[0]), net.op("Mul", turned, tables[1]))

    def repeated(y: str, name: str) -> str:
        apart = net.op("Unsqueeze", y, net.const(f"{name}_axis", [2]))
        sizes = [
            batch,
            net.const(f"{name}_heads", [2]),
            net.const(f"{name}_count", [2]),
            tokens,
            net.const(f"{name}_width", [HEAD]),
        ]
        sizes = net.op("Concat", *sizes, axis=0)
        ones = net.op("ConstantOfShape", net.const(f"{name}_rank", [5]), value=net.integer(1))
        is_same = net.op("Equal", sizes, net.op("Mul", ones, net.const(f"{name}_minus", [-1])))
        return view(net, net.op("Expand", apart, net.op("Where", is_same, ones, sizes)), batch, 4, tokens, HEAD)

    query, key = rotated(query, "q"), rotated(key, "k")
    key, value = repeated(key, "k_many"), repeated(value, "v_many")
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = net.op("Mul", scores, net.const("scale", HEAD**-0.5))
    y = net.op("Add", x, linear(net, attended(net, scores, value, x, 4 * HEAD), "dense", 4 * HEAD, WIDTH, bias=False))
    inner = rms_norm(net, y, "norm_2")
    gate, up = (linear(net, inner, name, WIDTH, HIDDEN, bias=False) for name in ("gate", "up"))
    gate = net.op("Mul", gate, net.op("Sigmoid", gate))
    y = net.op("Add", y, linear(net, net.op("Mul", gate, up), "down", HIDDEN, WIDTH, bias=False))
    net.output(net.matmul(rms_norm(net, y, "norm_3"), "out", WIDTH, 4), "T", 4)


@row("attention-module", {"qkv": 48}, None, feeds=SEQUENCE, batch=2)
@row("attention-module-any-batch", {"qkv": 48}, None, feeds=SEQUENCE)
def module(net: Net, x: str) -> None:
    """nn.MultiheadAttention: tokens before the batch, one layer, heads beside the batch."""
    y = linear(net, net.op("Transpose", x, perm=[1, 0, 2]), "qkv", WIDTH, 3 * WIDTH)
    y = net.op("Unsqueeze", net.op("Reshape", y, net.const("apart", [5, -1, 3, WIDTH])), net.const("front", [0]))
    y = net.op("Squeeze", net.op("Transpose", y, perm=[3, 1, 2, 0, 4]), net.const("back", [3]))
    parts = [net.op("Gather", y, net.const(f"at_{number}", np.array(number)), axis=0) for number in range(3)]
    query, key, value = (
        net.op("Transpose", net.op("Reshape", part, net.const(f"heads_{at}", [5, -1, HEAD])), perm=[1, 0, 2])
        for at, part in enumerate(parts)
    )
    query = net.op("Mul", query, net.const("scale", HEAD**-0.5))
    scores = net.op("Softmax", net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1])), axis=-1)
    y = net.op("Reshape", net.op("Transpose", net.op("MatMul", scores, value), perm=[1, 0, 2]), net.const("rows", [-1, WIDTH]))
    y = net.op("Reshape", net.gemm(y, "dense", WIDTH, WIDTH), net.const("tokens", [5, -1, WIDTH]))
    y = net.op("Add", x, net.op("Transpose", y, perm=[1, 0, 2]))
    net.output(net.matmul(y, "out", WIDTH, 4), 5, 4)


def answered(net: Net, x: str, y: str, inner: int = WIDTH) -> None:
    net.output(linear(net, net.op("Add", x, linear(net, y, "dense", inner, WIDTH)), "out", WIDTH, 4), "T", 4)


@row("attention-operator", {"query": 16, "key": 16, "value": 16}, None, feeds=SEQUENCE, tied=TIED, symbolic=True, opset=23, ir=10)
def one_operator(net: Net, x: str) -> None:
    """Attention of opset 23, with the scale that the width gives."""
    parts = (linear(net, x, name, WIDTH, WIDTH) for name in ("query", "key", "value"))
    answered(net, x, net.op("Attention", *parts, q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1))


@row(
    "attention-operator-heads", {"query": 32, "key": 16, "value": 16}, None,
    feeds=SEQUENCE, tied=TIED, symbolic=True, opset=25, ir=10,
)  # fmt: skip
def one_operator_of_heads(net: Net, x: str) -> None:
    """Heads on an axis of their own, two of the query for one of key and value."""
    query = heads_of(net, linear(net, x, "query", WIDTH, 4 * HEAD), 4)
    key, value = (heads_of(net, linear(net, x, name, WIDTH, 2 * HEAD)) for name in ("key", "value"))
    y = net.op("Transpose", net.op("Attention", query, key, value, softcap=5.0), perm=[0, 2, 1, 3])
    answered(net, x, view(net, y, extent(net, x, 0), extent(net, x, 1), 4 * HEAD), 4 * HEAD)


@row("attention-multi-head", {"query": 16, "key": 16, "value": 16}, None, feeds=SEQUENCE, tied=TIED, symbolic=True)
def multi_head(net: Net, x: str) -> None:
    """ONNX Runtime's operator."""
    parts = (linear(net, x, name, WIDTH, WIDTH) for name in ("query", "key", "value"))
    answered(net, x, net.op("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=HEADS))
