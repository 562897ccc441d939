"""float16 under every method as in float32, numbers beyond its range included; bfloat16 is refused with the cure."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from running import built, relative_error, run
from topologies import TOPOLOGIES, feeds_of

from onnxmerge import compress
from onnxmerge.errors import ModelError


def converted(model: onnx.ModelProto, data_type: int, dtype: type, factor: float = 1.0) -> onnx.ModelProto:
    """The model in another type of numbers; factor: of the weights of the layer `fc_b`."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(factor if tensor.name == "fc_b_w" else 1.0)
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


def test_bfloat16_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = converted(built(TOPOLOGIES["matmul-add-3d"]), TensorProto.BFLOAT16, ml_dtypes.bfloat16)
    with pytest.raises(ModelError, match=r"is in bfloat16, which .* convert it to float32 or float16, compress that"):
        compress(model, tmp_path / "out.onnx", ratio=0.5)
