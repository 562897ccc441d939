"""Files that ONNX Runtime has optimised: what it fuses is taken apart, and what it lays out for one processor is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from running import analysed, built, relative_error, run
from topologies import TOPOLOGIES, feeds_of

from onnxmerge import compress
from onnxmerge.errors import ModelError
from onnxmerge.onnxio.unfusing import is_fused

FUSED = {
    "residual-two-blocks": "FusedConv",
    "inverted-residual": "FusedConv",
    "clip-inputs": "FusedConv",
    "clip-attributes": "FusedConv",
    "leaky-relu": "FusedConv",
    "sigmoid": "FusedConv",
    "gelu-erf": "Gelu",
    "gelu-tanh": "FastGelu",
    "attention-block": "FusedMatMul",
    "gemm-relu-gemm-alpha-beta": "FusedGemm",
}
"""Topologies without anything that is folded into weights, and what they are fused to."""


def optimised(model: onnx.ModelProto, folder: Path, level: str) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(folder / f"{level}.onnx"), 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / f"{level}.onnx")


@pytest.mark.usefixtures("harmless_models")
@pytest.mark.parametrize(("name", "operator"), FUSED.items(), ids=FUSED)
def test_a_fused_model_shrinks_like_the_model(name: str, operator: str, tmp_path: Path) -> None:
    topology, smaller = TOPOLOGIES[name], []
    model = built(topology)
    fused = optimised(model, tmp_path, "EXTENDED")
    assert operator in {node.op_type for node in fused.graph.node if node.domain == "com.microsoft"}
    for each in (model, fused):
        compress(each, tmp_path / "out.onnx", ratio=0.5, method="prune", verify=False)
        smaller.append(onnx.load(tmp_path / "out.onnx"))
    feeds = feeds_of(topology)
    assert relative_error(*(run(each, feeds) for each in smaller)) < 1e-5
    assert not any(map(is_fused, smaller[1].graph.node))


def test_a_layout_of_one_processor_is_refused_with_the_cure(tmp_path: Path) -> None:
    model = optimised(built(TOPOLOGIES["residual-two-blocks"]), tmp_path, "ALL")
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("this processor has no blocked layout")
    with pytest.raises(ModelError, match=r"nothing can be removed: it is in ONNX Runtime's layout .* at level extended at most"):
        compress(model, tmp_path / "out.onnx", ratio=0.5)


def test_a_layout_of_gpus_is_refused_with_the_cure(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}> { y = com.microsoft.NhwcConv(x, w) }"""
    with pytest.raises(ModelError, match=r"holds NhwcConv, which .* give the model from before it was optimised"):
        compress(parser.parse_model(text), tmp_path / "out.onnx", ratio=0.5)


NORMS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 5, 8] x, float[N, 5, 8] s) => (float[N, 5, 8] y) {
      a = Add(x, s)  q = Pow(a, two)  m = ReduceMean<axes = [-1]>(q)  e = Add(m, small)  r = Sqrt(e)  d = Div(a, r)
      n = Mul(d, g)  h = MatMul(n, w)
      i = Add(h, b)  k = Div(i, root)  f = Erf(k)  o = Add(f, one)  p = Mul(i, o)  t = Mul(p, half)
      z = MatMul(t, v)  y = Add(z, a)
    }"""


def test_norms_and_gelus_of_transformers(tmp_path: Path) -> None:
    """RMSNorm and the bias in front of a Gelu are fused too; the width of the MLP goes all the same."""
    rng, model = np.random.default_rng(0), parser.parse_model(NORMS)
    numbers = {"two": 2.0, "small": 1e-5, "one": 1.0, "half": 0.5, "root": 2**0.5}
    values = {name: np.array(value) for name, value in numbers.items()}
    values |= {
        "g": rng.uniform(0.5, 1.5, 8),
        "w": rng.normal(size=(8, 16)),
        "b": rng.normal(size=16),
        "v": rng.normal(size=(16, 8)),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items())
    fused = optimised(model, tmp_path, "EXTENDED")
    operators = {node.op_type for node in fused.graph.node}
    assert operators & {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
    assert "BiasGelu" in operators
    (group,) = analysed(fused, tmp_path).channels.groups
    assert group.size == 16
    compress(fused, tmp_path / "out.onnx", ratio=0.5, method="prune", verify=False)
    feeds = {name: rng.normal(size=(2, 5, 8)).astype(np.float32) for name in ("x", "s")}
    kept = compress(model, tmp_path / "plain.onnx", ratio=0.5, method="prune", verify=False).groups[0].kept
    assert kept == 8
    assert relative_error(run(tmp_path / "plain.onnx", feeds), run(tmp_path / "out.onnx", feeds)) < 1e-5
