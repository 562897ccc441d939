"""A model of two layers in a file, its weights inside or beside it, for the tests of how files are read and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, parser
from onnx.external_data_helper import convert_model_to_external_data

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
example (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 0, -1}>
{
  hidden = MatMul(x, w)
  y = Add(hidden, b)
}"""


def inline_file(folder: Path) -> Path:
    """Its weights inside."""
    path = folder / "in.onnx"
    onnx.save(parser.parse_model(TEXT), path)
    return path


def outside_file(folder: Path) -> Path:
    """A model whose weights (as raw bytes) are in a subfolder."""
    (folder / "weights").mkdir()
    path = folder / "in.onnx"
    proto = parser.parse_model(TEXT)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    convert_model_to_external_data(proto, location="weights/w.bin", size_threshold=0)
    onnx.save(proto, path)
    return path


def run(path: Path | bytes) -> np.ndarray:
    """Its output."""
    content = str(path) if isinstance(path, Path) else path
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)})[0]


def edit(path: Path, change: Callable[[ModelProto], object]) -> None:
    """Change what the file holds, but for weights beside it."""
    proto = onnx.load(path, load_external_data=False)
    change(proto)
    path.write_bytes(proto.SerializeToString())
