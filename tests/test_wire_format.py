"""Models read without their weights, and written one weight after the other, are those that protobuf reads and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError

from onnxmerge.onnxio import wire_format
from onnxmerge.onnxio.external_data import is_external
from onnxmerge.onnxio.model import from_proto
from onnxmerge.onnxio.model_files import write_model
from onnxmerge.onnxio.tensors import array_of
from onnxmerge.onnxio.wire_format import read_model

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_format, "LEAST_FILE_BYTES", 0)
    monkeypatch.setattr(wire_format, "LEAST_WEIGHT_BYTES", 256)
    monkeypatch.setattr("onnxmerge.onnxio.storage.SMALL_TENSOR_BYTES", 256)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_same_model(path: Path, tmp_path: Path) -> None:
    whole, outside = onnx.load(path), read_model(path)
    assert any(map(is_external, outside.graph.initializer))
    for tensor, left in zip(whole.graph.initializer, outside.graph.initializer, strict=True):
        np.testing.assert_array_equal(array_of(left, path.parent), onnx.numpy_helper.to_array(tensor))
        assert (left.name, list(left.dims), left.data_type) == (tensor.name, list(tensor.dims), tensor.data_type)
    write_model(from_proto(outside, path), tmp_path / "new.onnx", None)
    written = onnx.load(tmp_path / "new.onnx")
    assert written.graph.initializer == whole.graph.initializer
    assert (tmp_path / "new.onnx").read_bytes() == written.SerializeToString()


def test_weights_of_bodies_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxmerge.onnxio.storage.SMALL_TENSOR_BYTES", 4)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[2] x) => (float[2] y) { y = If(c) <
            then_branch = t () => (float[2] a) <float[2] w = {1, 2}> { a = Add(x, w) },
            else_branch = e () => (float[2] b) <float[2] w = {3, 4}> { b = Add(x, w) }> }""")
    write_model(from_proto(model), tmp_path / "new.onnx", None)
    bodies = [attribute.g for attribute in onnx.load(tmp_path / "new.onnx").graph.node[0].attribute]
    assert [list(array_of(body.initializer[0], tmp_path)) for body in bodies] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off(share: float, tmp_path: Path) -> None:
    content = MODELS[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DecodeError):
        read_model(tmp_path / "cut.onnx")
