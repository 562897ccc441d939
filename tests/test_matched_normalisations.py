"""BatchNormalization on synthetic inputs: matched to them, as on the inputs of training; as it is stored on a user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import SAMPLES, built, run, shrunk, weights_of, with_replaced, written
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions, silent
from onnxmerge.statistics import reference_run as reference_module
from onnxmerge.statistics.reference_run import ReferenceStatistics, collect_reference_statistics, run_context_of

NORMAL = [
    "conv-bn-relu",
    "residual-two-blocks-bn",
    "residual-preactivation",
    "densenet-bn",
    "relu-then-bn-keras",
    "gemm-bn-relu",
    "inverted-residual-bn",
    "bn-parameters-shared",
    "bn-scale-and-variance-one-tensor",
    "initializers-as-inputs-ir3-opset7",
    "float16",
]


def observed(source: Path, *, synthetic: bool = True) -> tuple[ReferenceStatistics, Inputs]:
    """Statistics of the reference on synthetic inputs, or over the same ones as if a user had given them."""
    analysed_model = analyse_model(source)
    inputs = inputs_for(open_session(source, optimise=False, threads=1), analysed_model.shapes, InputOptions(samples=SAMPLES))
    inputs = inputs if synthetic else replace(inputs, total=inputs.count)
    context = run_context_of(analysed_model, inputs, 1, silent)
    return collect_reference_statistics(context), inputs


def test_a_weight_that_the_graph_computes_does_not_bound_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One behind a Transpose is larger than all of a batch."""
    net = Net(np.random.default_rng(0))
    weight = net.op("Transpose", net.const("stored", net.small(64, 8)), perm=[1, 0])
    net.output(net.op("MatMul", net.input("x", 8), weight), 64)
    analysed_model = analyse_model(written(net.model(), tmp_path))
    inputs = inputs_for(
        open_session(analysed_model.model.path, optimise=False, threads=1), analysed_model.shapes, InputOptions(samples=16)
    )
    monkeypatch.setattr(reference_module, "BATCH_BYTES", 8 * 64 * 4)
    assert [len(feeds["x"]) for feeds in run_context_of(analysed_model, inputs, 1, silent).batches()] == [8, 8]


@pytest.mark.parametrize("name", NORMAL)
def test_matched_normalisations_give_what_training_gave(name: str, tmp_path: Path) -> None:
    """On the inputs at hand every BatchNormalization ends with mean beta and standard deviation |gamma|; stored ones do not."""
    topology, model = TOPOLOGIES[name], built(TOPOLOGIES[name])
    statistics, inputs = observed(written(model, tmp_path))
    feeds = {key: value.astype(topology.dtype) for key, value in inputs.take(inputs.indices).items()}
    changed = with_replaced(model, statistics.matched)
    nodes = [node for _, ((node,), _) in sorted(statistics.matched.items())]
    read = weights_of(model)
    names = tuple(node.output[0] for node in nodes if node.output[0] not in {value.name for value in model.graph.output})
    values = [run(each, feeds, names) for each in (changed, model)]
    keys = [*(value.name for value in model.graph.output), *names]
    matched, stored = (dict(zip(keys, each, strict=True)) for each in values)
    tolerance = 2e-2 if topology.dtype == "float16" else 2e-3
    for node in nodes:
        gamma, beta = (read[tensor].astype(np.float64) for tensor in node.input[1:3])
        axes = tuple(axis for axis in range(matched[node.output[0]].ndim) if axis != 1)
        found, before = (each[node.output[0]].astype(np.float64) for each in (matched, stored))
        np.testing.assert_allclose(found.mean(axes), beta, atol=tolerance)
        np.testing.assert_allclose(found.std(axes), np.abs(gamma), rtol=tolerance)
        assert not np.allclose(before.std(axes), np.abs(gamma), rtol=0.05)


def test_calibration_inputs_leave_normalisations_as_they_are(tmp_path: Path) -> None:
    statistics, _ = observed(written(built(TOPOLOGIES["residual-two-blocks-bn"]), tmp_path), synthetic=False)
    assert not statistics.matched


def test_a_channel_that_synthetic_inputs_leave_constant_is_not_blown_up(tmp_path: Path) -> None:
    model = built(TOPOLOGIES["conv-bn-relu"])
    for tensor in model.graph.initializer:
        if tensor.name == "conv_a_w":
            weight = numpy_helper.to_array(tensor).copy()
            weight[3] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    source = written(model, tmp_path)
    statistics, _ = observed(source)
    ((_, constants),) = [each for each in statistics.matched.values() if "bn_a_y//variance" in each[1]]
    assert constants["bn_a_y//variance"][3] == pytest.approx(1e-4 * weights_of(model)["bn_a_var"][3])
    result = shrunk(source, tmp_path / "out.onnx", "reconstruct", ratio=0.5)
    assert result.groups
    assert all(np.isfinite(value).all() for value in weights_of(onnx.load(tmp_path / "out.onnx")).values())
