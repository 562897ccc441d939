"""A ratio leaves the same share of every layer, also of those that write one stream together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from topologies.net import Net

from onnxmerge import compress

HALF = 40


def shuffle_net(units: int) -> onnx.ModelProto:
    """ShuffleNetV2: in every unit a half of the stream passes, the other one is convolved, and both interleave."""
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, 8, 8), "stem", 3, 2 * HALF))
    for unit in range(units):
        passed, y = net.op("Split", y, net.const(f"halves_{unit}", [HALF, HALF]), outs=2, axis=1)
        y = net.conv(net.relu(net.conv(y, f"first_{unit}", HALF, HALF, 1)), f"depthwise_{unit}", HALF, HALF, group=HALF)
        y = net.op("Concat", passed, net.relu(net.conv(y, f"last_{unit}", HALF, HALF, 1)), axis=1)
        y = net.op("Transpose", net.op("Reshape", y, net.const(f"apart_{unit}", [0, 2, HALF, 8, 8])), perm=[0, 2, 1, 3, 4])
        y = net.op("Reshape", y, net.const(f"together_{unit}", [0, 2 * HALF, 8, 8]))
    net.output(net.conv(y, "out", 2 * HALF, 4, 1), 4, 8, 8)
    return net.model()


@pytest.mark.parametrize("method", ["prune", "auto"])
def test_a_shuffled_stream(method: str, tmp_path: Path) -> None:
    model = shuffle_net(3)
    compress(model, tmp_path / "out.onnx", ratio=0.3, method=method, verify=False, samples=32)
    small = {node.name: node for node in onnx.load(tmp_path / "out.onnx").graph.node}
    weights = {tensor.name: tensor.dims for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        before = next(tensor.dims for tensor in model.graph.initializer if tensor.name == node.input[1])
        after = weights[small[node.name].input[1]]
        for axis in (0, 1):
            if before[axis] >= HALF:
                assert 0.65 <= after[axis] / before[axis] <= 0.75, (node.name, axis, after[axis])
