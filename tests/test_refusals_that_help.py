"""What is said where little can be done: hardly anything removed, and an output that is the same for every input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxmerge import compress, inspect

MIXED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x) => (float[N, 64] y, float[N, 4] z) {
      a = MatMul(x, small)  b = Relu(a)  y = MatMul(b, out)
      c = MatMul(x, large)  d = Softmax(c)  e = MatMul(d, last)  f = Mul(e, hundred)  z = Softmax(f)
    }"""


def test_next_to_nothing_removed_is_warned_of(tmp_path: Path) -> None:
    rng, model = np.random.default_rng(0), parser.parse_model(MIXED)
    values = {"small": rng.normal(size=(8, 4)), "out": rng.normal(size=(4, 64)), "large": rng.normal(size=(8, 4000))}
    values |= {"last": np.arange(16000).reshape(4000, 4) / 16000, "hundred": np.array(1e5)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items())
    result = compress(model, tmp_path / "out.onnx", ratio=0.5, method="prune", bench=False)
    removed, constant = (
        next(text for text in result.warnings if start in text) for start in ("only 0.3%", "output z is the same")
    )
    assert "c keeps its channels: Softmax mixes channels" in removed
    assert "calibration" in constant
    assert [output.is_constant for output in result.fidelity.outputs] == [False, True]
    assert result.fidelity.outputs[1].fidelity == pytest.approx(1.0)
    first = inspect(model).refusals[0]
    assert first.text == "Softmax mixes channels"
    assert first.parameters_share > 0.6


SHARED_WEIGHT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4, 8] x) => (float[N, 4] y)
{
  a = MatMul(x, w)
  b = MatMul(a, w)
  c = MatMul(b, w)
  y = ReduceSum<keepdims = 0>(c, axes)
}"""


def test_what_several_layers_read_is_counted_once(tmp_path: Path) -> None:
    model = parser.parse_model(SHARED_WEIGHT)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axes"))
    found = inspect(model).refusals
    assert {"a", "b", "c"} <= {each.where for each in found}
    assert sum(each.parameters_share for each in found) == pytest.approx(1.0)
