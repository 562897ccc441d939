"""Multiply-accumulates and parameters of what is no Conv, Gemm or MatMul with float weights; and what is told of it first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from running import analysed

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
