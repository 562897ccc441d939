"""float16 and bfloat16 under every method as in float32, numbers beyond the range of float16 included."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from running import analysed, built, relative_error, run
from topologies import TOPOLOGIES, feeds_of

from onnxmerge import bench, compress, inspect, verify
from onnxmerge.errors import VerificationError
from onnxmerge.report.sentences import execution_lines


def converted(model: onnx.ModelProto, data_type: int, dtype: type, factor: float = 1.0) -> onnx.ModelProto:
    """The model in another type of numbers; factor: of the weights of the layer `fc_b`."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.BFLOAT16):
            values = numpy_helper.to_array(tensor).astype(np.float32) * np.float32(factor if tensor.name == "fc_b_w" else 1.0)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = data_type
    return model


@pytest.mark.parametrize("method", ["prune", "merge", "reconstruct"])
@pytest.mark.parametrize("name", ["residual-projection", "matmul-add-3d", "squeeze-excite-gemm"])
def test_as_in_float32(name: str, method: str, tmp_path: Path) -> None:
    topology = TOPOLOGIES[name]
    model, outputs = built(topology), []
    for each in (model, converted(model, TensorProto.FLOAT16, np.float16)):
        compress(each, tmp_path / "out.onnx", ratio=0.3, method=method, bench=False, samples=64)
        kind = np.float32 if each is model else np.float16
        feeds = {key: value.astype(kind) for key, value in feeds_of(topology).items()}
        outputs.append([output.astype(np.float32) for output in run(tmp_path / "out.onnx", feeds)])
    assert relative_error(*outputs) < 0.02


def test_what_is_beyond_the_range_becomes_its_end(tmp_path: Path) -> None:
    """Channels that are equal are merged into one, whose weight would be twice as large: beyond the largest float16."""
    topology = TOPOLOGIES["gemm-relu-gemm-transb1"]
    model = built(topology)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("fc_a_w", "fc_a_b"):
        values = numpy_helper.to_array(tensors[name]).copy()
        values[1::2] = values[::2]
        tensors[name].CopyFrom(numpy_helper.from_array(values * np.float32(1e-4), name))
    half = converted(model, TensorProto.FLOAT16, np.float16, factor=5.5e4)
    result = compress(half, tmp_path / "out.onnx", ratio=0.5, method="merge", include=("fc_a",), bench=False)
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer]
    assert max(float(np.abs(values).max()) for values in weights) == np.finfo(np.float16).max
    assert result.fidelity.worst.fidelity > 0.5
    assert any("larger numbers than float16 has" in each for each in result.warnings)


def with_bfloat16(name: str) -> onnx.ModelProto:
    """A topology in bfloat16, at an opset whose Conv has that type."""
    model = onnx.version_converter.convert_version(built(TOPOLOGIES[name]), 22)
    model.ir_version = 10
    del model.graph.value_info[:]
    return converted(model, TensorProto.BFLOAT16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("method", ["prune", "reconstruct"])
@pytest.mark.parametrize("name", ["residual-projection", "matmul-add-3d"])
def test_bfloat16_stays_bfloat16(name: str, method: str, tmp_path: Path) -> None:
    """What is compared is the file as it is written: its own rounded weights, here cast to float32 once more."""
    model = with_bfloat16(name)
    result = compress(model, tmp_path / "out.onnx", ratio=0.3, method=method, bench=False, samples=64)
    small = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(small, full_check=True)
    assert {each.data_type for each in small.graph.initializer} <= {TensorProto.BFLOAT16, TensorProto.INT64}
    assert [*small.graph.input, *small.graph.output] == [*model.graph.input, *model.graph.output]
    assert result.after.parameters < result.before.parameters
    in_float32 = converted(model, TensorProto.FLOAT, np.float32)
    same = compress(in_float32, tmp_path / "float32.onnx", ratio=0.3, method=method, bench=False, samples=64)
    assert result.fidelity.worst.fidelity == pytest.approx(same.fidelity.worst.fidelity, abs=0.02)
    outputs = [run_in_float32(each, feeds_of(TOPOLOGIES[name])) for each in (small, onnx.load(tmp_path / "float32.onnx"))]
    assert relative_error(*outputs) < 0.02


@pytest.mark.parametrize("name", ["attention-llama", "group-norm-of-dynamic-size"])
def test_groups_of_an_opset_without_bfloat16(name: str, tmp_path: Path) -> None:
    """Exporters write it all the same; shapes that the graph computes, and tables of rotations, are followed as in float32."""
    model = built(TOPOLOGIES[name])
    both = (model, converted(model, TensorProto.BFLOAT16, ml_dtypes.bfloat16))
    found = [[(group.name, group.size) for group in analysed(each, tmp_path).channels.groups] for each in both]
    assert found[0] == found[1]


def test_another_type_of_an_output_is_no_small_difference() -> None:
    model = with_bfloat16("matmul-add-3d")
    with pytest.raises(
        VerificationError, match=r"changed: the reference gives tensor\(float\), the candidate tensor\(bfloat16\)"
    ):
        verify(converted(model, TensorProto.FLOAT, np.float32), model)


def run_in_float32(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a model whose only bfloat16 are initializers, inputs and outputs."""
    return run(converted(model, TensorProto.FLOAT, np.float32), feeds)


def test_every_verb_takes_bfloat16_and_says_that_it_is_computed_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file with external data, and by way of a temporary file, as of large models."""
    monkeypatch.setattr("onnxmerge.execution.sessions.TRIAL_LIMIT_BYTES", 0)
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(with_bfloat16("matmul-add-3d"), model, save_as_external_data=True, location="weights", size_threshold=0)
    assert inspect(model).groups
    result = compress(model, out, ratio=0.3, method="prune", samples=64)
    assert result.latency is not None
    verified = verify(model, out)
    timed = bench(model, out)
    for each in (result.fidelity, result.latency, verified.fidelity, timed):
        assert any("computed and timed in float32" in line for line in execution_lines(each.execution))


BEHIND_CAST = "a = Cast<to = 1>(v)  b = MatMul(x, a)  c = Relu(b)  d = Cast<to = 1>(w)  y = MatMul(c, d)"
CAST_BETWEEN = """h = Cast<to = 16>(x)  b = MatMul(h, v)  f = Cast<to = 1>(b)  s = Sigmoid(f)  c = Cast<to = 16>(s)
    d = MatMul(c, w)  y = Cast<to = 1>(d)"""
FUSED = """h = Cast<to = 16>(x)  b = com.microsoft.FusedMatMul<alpha = 0.3>(h, v)  c = Relu(b)
    d = MatMul(c, w)  y = Cast<to = 1>(d)"""
INTERFACE = """h = Cast<to = 1>(x)  a = Cast<to = 1>(v)  b = MatMul(h, a)
    d = Cast<to = 1>(w)  c = MatMul(b, d)  y = Cast<to = 16>(c)"""


@pytest.mark.parametrize(
    ("layers", "kind", "in_float32"),
    [(BEHIND_CAST, "float", False), (CAST_BETWEEN, "float", True), (FUSED, "float", True), (INTERFACE, "bfloat16", False)],
    ids=["weights", "parts", "fused", "interface"],
)
def test_mixed_with_float32(layers: str, kind: str, in_float32: bool, tmp_path: Path) -> None:
    """Only what ONNX Runtime cannot compute is computed in float32; what was float32 in the file stays that."""
    text = f'<ir_version: 10, opset_import: ["": 22, "com.microsoft": 1]> g ({kind}[N, 4] x) => ({kind}[N, 2] y) {{ {layers} }}'
    model, generator = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in (("v", (4, 8)), ("w", (8, 2))):
        values = generator.normal(size=shape).astype(ml_dtypes.bfloat16)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    result = compress(model, tmp_path / "out.onnx", ratio=0.5, method="prune", round_to=1, bench=False, samples=64)
    assert result.fidelity.execution.in_float32 == in_float32
    small = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(small, full_check=True)
    assert sorted(list(each.dims) for each in small.graph.initializer) == [[4, 2], [4, 4]]
    if layers is CAST_BETWEEN:  # elsewhere what is computed from constants becomes one
        assert [node.op_type for node in small.graph.node] == [node.op_type for node in model.graph.node]
        assert {each.data_type for each in small.graph.initializer} == {TensorProto.BFLOAT16}
