"""Consumers in front of joins repair what was lost on the other side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from running import built, check_inputs, fidelity, shrunk, solve_consumers_alone, written
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.statistics import reference_run as reference_module


def joined() -> onnx.ModelProto:
    """skip + fc_c, where the skip reads what goes and fc_c sees all of x, without activations: fc_c can repair everything."""
    net = Net(np.random.default_rng(0))
    x = net.input("x", 8)
    skip = net.gemm(net.gemm(x, "fc_a", 8, 8), "skip", 8, 6)
    y = net.relu(net.op("Add", skip, net.gemm(net.gemm(x, "fc_b", 8, 12), "fc_c", 12, 6)))
    net.output(net.gemm(y, "out", 6, 4), 4)
    return net.model()


def alone(*arguments: object) -> DownstreamAffine:
    """What a consumer knows that does not look ahead."""
    return DownstreamAffine(is_followed=True)


def test_behind_a_join_a_consumer_repairs_what_the_skip_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = written(joined(), tmp_path), tmp_path / "out.onnx"
    inputs = check_inputs(source, 256)
    shrunk(source, target, "reconstruct", ratio=0.8, include=("fc_a",), samples=512)
    assert fidelity(source, target, inputs) > 0.999
    monkeypatch.setattr(reference_module, "downstream_affine_of", alone)
    solve_consumers_alone(monkeypatch)
    shrunk(source, target, "reconstruct", ratio=0.8, include=("fc_a",), samples=512)
    assert fidelity(source, target, inputs) < 0.95


@pytest.mark.parametrize("name", ["residual-two-blocks", "residual-projection", "residual-two-blocks-bn"])
def test_looking_over_joins_helps_in_blocks_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, calibration = written(built(TOPOLOGIES[name]), tmp_path), tmp_path / "out.onnx", tmp_path / "given.npy"
    inputs, reached = check_inputs(source, 256), []
    np.save(calibration, inputs.take(inputs.indices)["x"])
    for look in (reference_module.downstream_affine_of, alone):
        monkeypatch.setattr(reference_module, "downstream_affine_of", look)
        shrunk(source, target, "reconstruct", ratio=0.7, include=("*_conv1",), calibration=calibration, samples=256)
        reached.append(fidelity(source, target, inputs))
    assert reached[0] > reached[1]
