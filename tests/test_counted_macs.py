"""Multiply-accumulates and parameters of what is no Conv, Gemm or MatMul with float weights; and what is told of it first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from running import analysed

import onnxmerge

RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
ENDS = {"x": (5, 2, 3), "y": (5, 2, 2, 4)}


@pytest.mark.parametrize(("operator", "gates"), RECURRENT.items(), ids=RECURRENT.keys())
def test_recurrent(operator: str, gates: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (2, gates * 4, 3), "r": (2, gates * 4, 4), "b": (2, 2 * gates * 4)}
    stored = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    node = helper.make_node(operator, ["x", *shapes], ["y"], hidden_size=4, direction="bidirectional")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", (5, 2, 3)), ("y", (5, 2, 2, 4)))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    size = analysed(model, tmp_path).size
    assert size.macs == 5 * 2 * 2 * gates * 4 * (3 + 4)
    assert size.parameters == 2 * gates * 4 * (3 + 4 + 2)


IN_BODIES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x) => (float[2, M] y) {
      h = MatMul(x, w)
      l = Loop(n, yes, h) <body = b (int64 i, bool c, float[2, 4] s) => (bool c2, float[2, 4] t)
        { c2 = Identity(c)  r = MatMul(s, v)  t = Tanh(r) }>
      taken = Not(yes)
      y = If(taken) <then_branch = p () => (float[2, 3] a) { a = MatMul(l, u) },
        else_branch = q () => (float[2, 5] e) { k = Relu(l)  e = MatMul(k, z) }>
    }"""
STORED = {"w": (3, 4), "v": (4, 4), "u": (4, 3), "z": (4, 5)}


def test_layers_in_bodies(tmp_path: Path) -> None:
    """One round of a Loop, and both branches of an If."""
    model = parser.parse_model(IN_BODIES)
    values = {name: np.ones(shape, np.float32) for name, shape in STORED.items()} | {"n": np.array(3), "yes": np.array(True)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    found = analysed(model, tmp_path)
    assert found.size.macs == 2 * 3 * 4 + 2 * 4 * 4 + 2 * 4 * 3 + 2 * 4 * 5
    shares = [refusal.parameters_share for refusal in found.channels.refusals]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 20 / (12 + 16 + 12 + 20)


HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "own": 1]> g (float[2, 3] x) => (float[2, 2] y)'
MLP = "h = MatMul({x}, w)  r = Relu(h)  {y} = MatMul(r, v)"
MODELS = {
    "If": f"{HEAD} {{ c = Constant<value = bool {{1}}>()  y = If(c) <then_branch = t () => (float[2, 2] a)"
    f" {{ {MLP.format(x='x', y='a')} }}, else_branch = e () => (float[2, 2] a)"
    " { a = Constant<value = float[2, 2] {1, 2, 3, 4}>() }> }",
    "fused": f'{HEAD} {{ h = com.microsoft.FusedGemm<activation = "Relu">(x, w, b)  y = MatMul(h, v) }}',
    "function": f'{HEAD} {{ y = own.f(x, w, v) }} <domain: "own", opset_import: ["": 17]> f (x, w, v) => (y)'
    f" {{ {MLP.format(x='x', y='y')} }}",
}


@pytest.mark.usefixtures("harmless_models")
@pytest.mark.parametrize("name", MODELS)
def test_every_command_counts_the_same(name: str, tmp_path: Path) -> None:
    """`inspect`, `compress`, `verify` and `bench` give one file one number of MACs and parameters."""
    source, target = tmp_path / "model.onnx", tmp_path / "small.onnx"
    model = parser.parse_model(MODELS[name])
    stored = {"w": np.eye(3, 8), "b": np.ones(8), "v": np.ones((8, 2))}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items())
    onnx.save(model, source)
    made = onnxmerge.compress(source, target, ratio=0.5, method="prune", round_to=1, bench=False)
    checked = onnxmerge.verify(source, target)
    assert made.before == checked.before == onnxmerge.inspect(source).size
    assert made.after == checked.after == onnxmerge.inspect(target).size
    assert made.after.macs < made.before.macs
    timed = onnxmerge.bench(source, target, provider="cpu")
    assert timed.macs_ratio == made.after.macs / made.before.macs
