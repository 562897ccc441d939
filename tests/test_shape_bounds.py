"""A shape that says where a Slice begins is read whole: channels that are removed must not move it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from running import relative_error, run

from onnxmerge.pipeline.compress import compress

SLICED_FROM_A_WIDTH = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,K,6,6] z) <int64[1] one = {1}, int64[1] big = {1000}> {
    [a] a = Conv<pads=[1,1,1,1]>(x, w)  h = Relu(a)  [out] y = Conv(h, v)
    [f] f = Conv<pads=[1,1,1,1]>(x, u)
    s = Shape<start=1, end=2>(h)  z = Slice(f, s, big, one) }"""


@pytest.mark.parametrize("method", ["prune", "reconstruct"])
def test_a_slice_begins_where_it_did(method: str, tmp_path: Path) -> None:
    model, rng = parser.parse_model(SLICED_FROM_A_WIDTH), np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "v": (4, 8, 1, 1), "u": (12, 3, 3, 3)}
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    model.graph.initializer.extend(weights)
    onnx.save(model, tmp_path / "in.onnx")
    result = compress(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, method=method, samples=16, verify=False, threads=1)
    assert "a" in {group.name for group in result.groups}
    feeds = {"x": rng.normal(size=(1, 3, 6, 6)).astype(np.float32)}
    before, after = run(tmp_path / "in.onnx", feeds), run(tmp_path / "out.onnx", feeds)
    assert relative_error(before[1:], after[1:]) == 0.0
