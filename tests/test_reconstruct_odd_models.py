"""Reconstruction where models or inputs are not as usual: shared weights, few samples, dead or very wide layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from running import analysed, built, check_inputs, fidelity, shrunk, weights_of, written
from test_execution_layerwise import sequence_model
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.pipeline.compress import compress
from onnxmerge.statistics import wide_layers as wide_module


def test_a_sequence_between_two_layers_is_no_obstacle(tmp_path: Path) -> None:
    model = sequence_model()
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "stem"], ["stem_y"], name="stem"))
    model.graph.node[1].input[0] = "stem_y"
    weight = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "stem"))
    result = shrunk(written(model, tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.3)
    assert [group.method for group in result.groups] == ["reconstruct"]


@pytest.mark.parametrize("second", [False, True], ids=["in-sequence", "side-by-side"])
def test_a_weight_of_several_consumers_stays_one(second: bool, tmp_path: Path) -> None:
    """Solving each consumer on its own would store the weight twice."""
    model = siamese() if second else built(TOPOLOGIES["shared-weight-in-sequence"])
    shrunk(written(model, tmp_path), tmp_path / "out.onnx", "auto", ratio=0.5)
    small = onnx.load(tmp_path / "out.onnx")
    layers = {node.name: node.input[1] for node in small.graph.node if node.name in ("conv_a", "conv_b")}
    assert layers["conv_a"] == layers["conv_b"]
    assert weights_of(small)[layers["conv_a"]].shape[1] == 4


def siamese() -> onnx.ModelProto:
    """Two inputs through the same two layers; the second layer reads channels that go."""
    net = Net(np.random.default_rng(0))
    first, second = net.const("first", net.he((8, 3, 3, 3), 27)), net.const("second", net.he((6, 8, 3, 3), 72))
    branches = []
    for name in "ab":
        y = net.relu(net.conv(net.input(f"x_{name}", 3, 8, 8), f"stem_{name}", 3, 8, weight=first, bias=False))
        branches.append(net.conv(y, f"conv_{name}", 8, 6, weight=second, bias=False))
    net.output(net.op("Sub", *branches), 6, 8, 8)
    return net.model()


def test_few_samples_an_unknown_do_not_spoil_the_fit(tmp_path: Path) -> None:
    """64 samples for 64 unknowns: plain least squares would hit every sample and miss everything else."""
    source = written(built(TOPOLOGIES["flatten-spatial"]), tmp_path)
    shrunk(source, tmp_path / "out.onnx", "reconstruct", ratio=0.5)
    assert fidelity(source, tmp_path / "out.onnx", check_inputs(source)) > 0.7


def test_thinning_sees_every_phase_of_an_upsampled_map(tmp_path: Path) -> None:
    """Every second output of a map that was upsampled by two is of one kind."""
    source = written(built(TOPOLOGIES["conv-transpose-grouped"]), tmp_path)
    shrunk(source, tmp_path / "out.onnx", "reconstruct", ratio=0.3, include=("up",), samples=512)
    assert fidelity(source, tmp_path / "out.onnx", check_inputs(source)) > 0.9


def test_a_dead_consumer_does_not_stop_the_selection(tmp_path: Path) -> None:
    """Behind a ReLU that no input of the pool opens, nothing varies, and no error there matters."""
    net = Net(np.random.default_rng(0))
    y = net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8)
    shift = net.const("shift", np.full((8, 1, 1), -1e4))
    y = net.relu(net.conv(net.relu(net.op("Add", y, shift)), "conv_b", 8, 6))
    net.output(net.conv(y, "out", 6, 4), 4, 8, 8)
    source = written(net.model(), tmp_path)
    assert len(shrunk(source, tmp_path / "out.onnx", "reconstruct", ratio=0.5).groups) == 2
    assert fidelity(source, tmp_path / "out.onnx", check_inputs(source)) == pytest.approx(1.0)


@pytest.mark.parametrize(("first", "added"), [("x", "p"), ("p", "x")], ids=["added for all inputs", "read for all inputs"])
def test_a_summand_that_inputs_share(first: str, added: str, tmp_path: Path) -> None:
    """One row of it stands beside a row for each input."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6,16] x, float[1,6,16] p) => (float[N,6,5] y) <float[16,16] w0, float[16,16] w1, float[16,5] w2>
        {{ a = MatMul({first}, w0)  b = Relu(a)  h = MatMul(b, w1)  s = Add(h, {added})  t = Relu(s)  y = MatMul(t, w2) }}"""
    )
    generator = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), info.name))
    del model.graph.value_info[:]
    source = written(model, tmp_path)
    assert shrunk(source, tmp_path / "out.onnx", "reconstruct", ratio=0.3).groups


@pytest.mark.parametrize(("limit", "reason"), [("WIDEST", "only of up to 3"), ("MEMORY_SHARE", "of this machine are for them")])
@pytest.mark.parametrize("ratio", [{"ratio": 0.5}, {"target": "params=0.7"}], ids=["ratio", "target"])
def test_layers_too_wide_for_statistics_are_pruned_and_the_report_says_why(
    limit: str, reason: str, ratio: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_module, limit, 3 if limit == "WIDEST" else 0.0)
    source, target = written(built(TOPOLOGIES["gemm-relu-gemm-transb1"]), tmp_path), tmp_path / "out.onnx"
    result = compress(source, target, bench=False, **ratio)
    assert result.groups
    assert all(group.method == "prune" and reason in group.note for group in result.groups)


def test_the_narrowest_layers_share_the_memory(tmp_path: Path) -> None:
    layers = analysed(built(TOPOLOGIES["gemm-relu-gemm-transb1"]), tmp_path).channels.layers
    widths = sorted(len(layer.channel_positions) for layer in layers)
    assert not wide_module.too_wide(layers, 10**9)
    needed = (wide_module.HELD_BYTES + wide_module.WORKING_BYTES) * widths[-1] ** 2 / wide_module.MEMORY_SHARE
    left_out = wide_module.too_wide(layers, int(needed))
    assert 0 < len(left_out) < len(layers)
    assert set(left_out) <= {layer.key for layer in layers if len(layer.channel_positions) == widths[-1]}
