"""Steps of sequences, and outputs without a batch, told from inputs by runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from running import written
from test_batch_axes import HEAD

import onnxmerge
from onnxmerge.graph.analysed_model import analyse_model

SEQUENCE = """{ s, last = GRU<hidden_size=8>(x, W, R, , , h0)  l = Squeeze(last, first)  a = MatMul(l, w)  b = Relu(a)
    y = MatMul(b, v) }"""
IN_DOUBT = {
    "named": "g (float[T, N, 4] x, float[1, N, 8] h0) => (float[N, 3] y)",
    "two names": "g (float[T, N, 4] x, float[1, M, 8] h0) => (float[K, 3] y)",
    "not named": "g (float[?, ?, 4] x, float[1, ?, 8] h0) => (float[?, 3] y)",
    "state first": "g (float[1, N, 8] h0, float[T, N, 4] x) => (float[N, 3] y)",
    "no state": "g (float[T, N, 4] x) => (float[N, 3] y)",
}


def sequence_model(signature: str) -> onnx.ModelProto:
    """A GRU whose last state is read through 16 channels."""
    nodes = SEQUENCE if "h0" in signature else SEQUENCE.replace(", , , h0", "")
    model, rng = parser.parse_model(f"{HEAD} {signature} {nodes}"), np.random.default_rng(0)
    shapes = {"W": (1, 24, 4), "R": (1, 24, 8), "w": (8, 16), "v": (16, 3)}
    stored = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    stored["first"] = np.array([0])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return model


@pytest.mark.parametrize("signature", IN_DOUBT.values(), ids=IN_DOUBT)
def test_steps_of_a_sequence_in_front_of_the_batch_are_none(signature: str, tmp_path: Path) -> None:
    """Inputs along the batch are computed each by itself, and steps are not, whatever their axis is called."""
    path, rng = written(sequence_model(signature), tmp_path), np.random.default_rng(1)
    call = analyse_model(path).call
    names = [name for name in ("x", "h0") if f"{name}" in signature]
    assert call.axes == {**dict.fromkeys(names, 1), "y": 0}
    feeds = {"x": rng.normal(size=(5, 40, 4)).astype(np.float32), "h0": rng.normal(size=(1, 40, 8)).astype(np.float32)}
    feeds = {name: feeds[name] for name in names}
    result = onnxmerge.compress(path, tmp_path / "o.onnx", ratio=0.5, method="prune", bench=False, calibration=feeds)
    assert result.fidelity is not None
    assert result.fidelity.input_count == 40
    assert {each.name: each.shape for each in result.inputs}["x"] == (5, 1, 4)


def test_where_all_axes_are_computed_apart_the_first_is_the_batch(tmp_path: Path) -> None:
    model = sequence_model("g (float[A, B, 4] x, float[1, B, 8] h0) => (float[A, B, 3] y, float[1, B, 8] z)")
    nodes = parser.parse_graph(f"{IN_DOUBT['named']} {{ q = MatMul(x, r)  p = Relu(q)  y = MatMul(p, v)  z = Relu(h0) }}").node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 16), np.float32), "r"))
    assert analyse_model(written(model, tmp_path)).call.axes["x"] == 0


def test_an_output_as_long_as_a_call_is_not_taken_for_its_inputs(tmp_path: Path) -> None:
    """A table of 32 rows, beside calls of 32 inputs, has the same size in calls of one and of two."""
    text = """g (float[N, 16] x) => (float[N, 10] y, float[32, 3] table) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v)
        q = ReduceMean<axes=[0], keepdims=1>(r)  p = MatMul(q, u)  table = Mul(p, column) }"""
    model, rng = parser.parse_model(f"{HEAD} {text}"), np.random.default_rng(0)
    for name, shape in {"w": (16, 32), "v": (32, 10), "u": (32, 3), "column": (32, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    path = written(model, tmp_path)
    assert analyse_model(path).call.whole == ("table",)
    given = {"calibration": rng.normal(size=(64, 16)).astype(np.float32), "bench": False}
    outputs = onnxmerge.compress(path, tmp_path / "o.onnx", ratio=0.5, method="prune", **given).fidelity.outputs  # type: ignore[union-attr]
    assert [output.top1_agreement is None for output in outputs] == [False, True]
    assert [output.compared for output in outputs] == [640, 2 * 96]
    assert outputs[1].worst_input in (0, 32)  # the first of a call
