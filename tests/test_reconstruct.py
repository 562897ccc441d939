"""`reconstruct` and `auto` from file to file: every topology, exact where exactness is possible, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from dense_samples import dense
from onnx import numpy_helper
from running import (
    analysed,
    built,
    check_inputs,
    fidelity,
    relative_error,
    run,
    shrunk,
    solve_consumers_alone,
    tolerance_of,
    weights_of,
    written,
)
from test_merge_exactness import BY_HAND, cases, duplicated, group_of
from topologies import TOPOLOGIES, Topology, feeds_of
from topologies.net import Net

from onnxmerge.data.inputs import Inputs
from onnxmerge.errors import ModelError
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import PruningOptions, silent
from onnxmerge.pruning import layer_update as solving_module
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import kept_counts
from onnxmerge.pruning.layer_statistics import layer_statistics_of
from onnxmerge.statistics import reference_run as reference_module

pytestmark = pytest.mark.usefixtures("harmless_models")
SHRINKING = [each for each in TOPOLOGIES.values() if each.runnable and any((each.removable | each.at_most).values())]
# Weights that cannot be removed from at all, though the row allows it (`at_most`).
WHOLE = {"shared-weight-one-in-output", "weight-also-read-as-data"}
# Stored statistics of BatchNormalization are random numbers there, far from those of any inputs. What is fitted to the matched
# reference is worth less in the reference as it is stored, but never less than pruning.
NORMALISED = {each.id for each in SHRINKING if any(node.op_type == "BatchNormalization" for node in built(each).graph.node)}


class Recorder(LayerwiseRun):
    """Layer-wise runs that can be asked for afterwards."""

    made: ClassVar[list[LayerwiseRun]] = []

    def __post_init__(self) -> None:
        super().__post_init__()
        self.made.append(self)


@pytest.fixture
def layerwise_runs(monkeypatch: pytest.MonkeyPatch) -> list[LayerwiseRun]:
    """All layer-wise runs of a model and a solve; the last one is that of the compressed model."""
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(reference_module, "LayerwiseRun", Recorder)
    return Recorder.made


def model_of(layerwise_run: LayerwiseRun) -> onnx.ModelProto:
    """The model that a layer-wise run ends with."""
    model = onnx.ModelProto.FromString(layerwise_run.model.SerializeToString())
    own = [each for each in model.graph.initializer if each.name not in layerwise_run.constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(own)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in layerwise_run.constants.items())
    del model.graph.node[:]
    model.graph.node.extend(node for nodes in layerwise_run.nodes for node in nodes)
    return model


# Every topology at one ratio, those whose ids meet (joins, groups of a convolution, shuffles, splits) at a second one.
TWICE = {
    *("residual-identity", "residual-projection", "residual-two-blocks", "residual-two-blocks-bn", "residual-option-a"),
    *("concat-two-producers", "concat-flatten", "densenet", "densenet-bn", "join-sum-of-three", "join-product", "squeeze-excite"),
    *("depthwise", "depthwise-multiplier-2", "inverted-residual", "grouped-conv", "resnext-block", "grouped-conv-output"),
    *("grouped-conv-then-grouped", "channel-shuffle", "channel-shuffle-uneven", "shuffle-v2-unit", "unet", "conv-transpose"),
    *("conv-transpose-grouped", "split-input", "glu", "flatten-spatial", "flatten-two-layers", "pixel-shuffle-dcr"),
}
ENDS = [(each, 0.5) for each in SHRINKING] + [(each, 0.3) for each in SHRINKING if each.id in TWICE]
# A transposed convolution gets channel mixing only, and with groups of four there is little to mix.
WORSE = {("conv-transpose-grouped", 0.3)}


@pytest.mark.parametrize(
    ("topology", "ratio"), [pytest.param(*pair, id=f"{pair[0].id}-{pair[1]}") for pair in ENDS if pair[0].id not in WHOLE]
)
def test_every_topology_ends_no_worse_than_pruned(
    topology: Topology, ratio: float, tmp_path: Path, layerwise_runs: list[LayerwiseRun]
) -> None:
    """And the file computes what the solve saw: nothing that was decided is lost on the way."""
    source = written(built(topology), tmp_path)
    result = shrunk(source, tmp_path / "ours.onnx", "reconstruct", ratio=ratio)
    plain = shrunk(source, tmp_path / "pruned.onnx", "prune", ratio=ratio)
    assert result.groups
    assert [(group.name, group.kept) for group in plain.groups] == [(group.name, group.kept) for group in result.groups]
    inputs = check_inputs(source)
    ours, pruned = (fidelity(source, tmp_path / name, inputs) for name in ("ours.onnx", "pruned.onnx"))
    assert (ours > pruned - 1e-3) != ((topology.id, ratio) in WORSE)
    if topology.id not in NORMALISED:
        feeds = feeds_of(topology)
        # Without a run no layer reads what was removed.
        expected = run(model_of(layerwise_runs[-1]) if layerwise_runs else built(topology), feeds)
        assert relative_error(expected, run(tmp_path / "ours.onnx", feeds)) < tolerance_of(topology, 1e-4)


@pytest.mark.parametrize("topology", [pytest.param(TOPOLOGIES[name], id=name) for name in sorted(WHOLE)])
def test_nothing_to_remove_is_said_in_one_line(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing can be removed"):
        shrunk(written(built(topology), tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.5)


# The ridge pulls what carries little variance towards zero, and least squares in half precision end there.
LESS_EXACT = {
    "float16-conv_a": 5e-3,
    "float16-conv_b": 5e-3,
    "channel-shuffle-uneven-grouped_b": 1e-2,
    "channel-shuffle-grouped_a": 1e-3,
    "conv-transpose-conv_a": 1e-3,
    "conv-transpose-grouped-conv_a": 1e-3,
    "fan-out-conv-and-gemm-conv_a": 1e-3,
    "densenet-layer_2": 1e-3,
    "two-inputs-conv_a": 1e-3,
    "two-inputs-fc_a": 1e-3,
    "concat-flatten-conv_a": 2e-3,
    "concat-flatten-conv_b": 2e-3,
    **{f"{name}-conv_a": 5e-4 for name in ("flatten-spatial", "flatten-two-layers")},
}
# Copies are no copies once BatchNormalization is matched to the inputs: their factor is in the weight, not in its parameters.
UNMATCHED = {name for name in BY_HAND if name in NORMALISED}
EXACT = {
    *("conv-bn-relu", "conv1d", "conv3d", "gemm-transa", "gemm-relu-gemm-alpha-beta", "matmul-weight-left", "matmul-add-3d"),
    *("maxpool", "slice-channels", "two-inputs", "float16", "fan-out-conv-and-gemm", "nhwc-transposes-around-convs"),
}
COPIES = [param for param in cases() if param.values[0].id in (EXACT | TWICE) - UNMATCHED]


@pytest.mark.parametrize(("topology", "producers"), COPIES)
def test_multiples_of_other_channels_go_without_loss(topology: Topology, producers: tuple[str, ...], tmp_path: Path) -> None:
    duplicates, feeds = duplicated(topology, producers), feeds_of(topology)
    group = group_of(analysed(duplicates.model, tmp_path).channels, producers)
    copies = np.isin(group.producers[0].positions, duplicates.copy).any(1)
    source, target = written(duplicates.model, tmp_path), tmp_path / "out.onnx"
    plan = {group.name: group.size - int(copies.sum())}
    shrunk(source, target, "reconstruct", include=producers[:1], plan=plan)
    allowed = LESS_EXACT.get(f"{topology.id}-{producers[0]}", 1e-4)
    assert relative_error(run(duplicates.model, feeds), run(target, feeds)) < allowed


def linear(name: str) -> onnx.ModelProto:
    """Models without activations; channel 5 of the first layer is 0.7 of channel 0 minus 0.4 of channel 2 plus channel 7."""
    net = Net(np.random.default_rng(0))
    if name in ("linear-gemm", "linear-matmul"):
        x = net.input("x", 16)
        y = net.gemm(x, "fc_a", 16, 8) if name == "linear-gemm" else net.matmul(x, "fc_a", 16, 8)
        net.output(net.gemm(y, "out", 8, 4), 4)
    else:
        y = x = net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8)
        if name == "linear-depthwise":
            weight = net.const("depthwise_w", np.broadcast_to(net.he((1, 1, 3, 3), 9), (8, 1, 3, 3)))
            y = net.conv(y, "depthwise", 8, 8, group=8, weight=weight, bias=False)
        if name == "linear-stream":
            y = net.op("Add", net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4), x)
        net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
    model = net.model()
    for tensor in model.graph.initializer:
        if tensor.name in ("conv_a_w", "conv_a_b", "fc_a_w", "fc_a_b"):
            values = numpy_helper.to_array(tensor).copy()
            rows = values.T if tensor.name == "fc_a_w" and name == "linear-matmul" else values
            rows[5] = 0.7 * rows[0] - 0.4 * rows[2] + rows[7]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("name", ["linear-gemm", "linear-matmul", "linear-conv", "linear-depthwise", "linear-stream"])
def test_what_depends_linearly_on_others_goes_without_loss(name: str, tmp_path: Path) -> None:
    """The bias of what depends may be another: constants are no obstacle. Nothing here is a multiple of one other channel."""
    model = linear(name)
    source, target = written(model, tmp_path), tmp_path / "out.onnx"
    group = analyse_model(source).channels.groups[0]
    feeds = {"x": np.random.default_rng(2).normal(size=(4, 16) if "fc" in group.name else (4, 3, 8, 8)).astype(np.float32)}
    result = shrunk(source, target, "auto", plan={group.name: 7}, samples=256)
    assert [(each.kept, each.method) for each in result.groups] == [(7, "reconstruct")]
    assert relative_error(run(model, feeds), run(target, feeds)) < 1e-4
    shrunk(source, target, "prune", plan={group.name: 7})
    assert relative_error(run(model, feeds), run(target, feeds)) > 1e-2


# Topology, producer whose channels go, its only consumer, how many inputs.
SINGLE = [
    ("conv-relu-conv", "conv_a", "out", 60),
    ("silu", "conv_a", "out", 60),
    ("conv1d", "conv_a", "out", 100),
    ("grouped-conv-output", "conv_a", "out", 60),
    ("gemm-relu-gemm-transb0", "fc_b", "out", 800),
    ("gemm-relu-gemm-alpha-beta", "fc_b", "out", 800),
    ("matmul-add-3d", "fc_a", "out", 200),
    ("matmul-weight-left", "mix_a", "out", 200),
    ("gemm-transa", "fc_a", "out", 800),
    ("flatten-spatial", "conv_a", "out", 800),
]


@pytest.mark.parametrize(("name", "producer", "consumer", "count"), SINGLE, ids=[row[0] for row in SINGLE])
def test_one_consumer_gets_what_lstsq_finds(
    name: str, producer: str, consumer: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration inputs, no ridge, consumers alone: np.linalg.lstsq on all samples, with a column of ones for the bias."""
    monkeypatch.setattr(solving_module, "RIDGE", 1e-9)
    solve_consumers_alone(monkeypatch)
    topology, model = TOPOLOGIES[name], built(TOPOLOGIES[name])
    source = written(model, tmp_path)
    rng = np.random.default_rng(4)
    feeds = {key: rng.normal(size=(count, *shape[1:])).astype(np.float32) for key, shape in topology.feeds.items()}
    analysed_model = analyse_model(source)
    inputs = Inputs(count, "", None, np.arange(count), lambda rows: {key: value[rows] for key, value in feeds.items()}, count)
    given = PruningOptions(ratio=0.5, method="reconstruct", include=(producer,))
    counts = kept_counts(prunable_groups(analysed_model.channels, given)[0], given)
    plan = decide(analysed_model, given, layer_statistics_of(analysed_model, inputs, 1, silent), counts)
    (removal,) = plan.removals
    (layer,) = [each for each in analysed_model.channels.layers if each.node.name == consumer]
    wanted = [value.name for value in model.graph.output]
    extra = tuple(tensor for tensor in (layer.source, layer.key) if tensor not in wanted)
    tensors = dict(zip([*wanted, *extra], run(model, feeds, extra), strict=True))
    x, y = dense(name, consumer, layer, (), tensors[layer.source], tensors[layer.key])
    stays = np.isin(layer.in_ids, removal.group.channel_ids[removal.kept])
    assert stays.mean() == 0.5
    new = plan.replacements[layer.key]
    weight = layer.canonical(new.weight) * layer.node.attrs.get("alpha", 1.0)
    node = next(node for node in model.graph.node if node.name == consumer)
    old = weights_of(model)[node.input[2]] if len(node.input) > 2 else np.zeros(1)
    bias = old * layer.node.attrs.get("beta", 1.0) + new.bias
    for group in range(layer.groups):
        inside, positions = layer.weight.shape[2:]
        columns = (np.arange(positions)[:, None] * inside + np.flatnonzero(stays[group])).reshape(-1)
        samples = np.c_[x[group][:, columns], np.ones(x.shape[1])]
        best = np.linalg.lstsq(samples, y[group], rcond=None)[0]
        found = np.moveaxis(weight[group][:, stays[group]], 1, 2).reshape(weight.shape[1], -1)
        scale = np.abs(best).max()
        np.testing.assert_allclose(found, best[:-1].T, atol=2e-4 * scale)
        np.testing.assert_allclose(bias.reshape(layer.groups, -1)[group], best[-1], atol=1e-3 * scale)
        assert not weight[group][:, ~stays[group]].any()


BYTES = ["conv-bn-relu", "residual-two-blocks", "gemm-relu-gemm-transb1"]


@pytest.mark.parametrize("name", BYTES)
def test_same_seed_same_bytes_and_another_seed_others(name: str, tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES[name]), tmp_path)
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        shrunk(source, tmp_path / f"{number}.onnx", "auto", ratio=0.5, seed=seed)
        contents.append((tmp_path / f"{number}.onnx").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order of sets and the number of threads that another process has."""
    source = written(built(TOPOLOGIES["residual-two-blocks-bn"]), tmp_path)
    for seed in ("1", "2"):
        words = ["compress", str(source), str(tmp_path / f"{seed}.onnx"), "--ratio", "0.5", "--no-verify", "--samples", "64"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "onnxmerge", *words], check=True, capture_output=True, env=environment)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


@pytest.mark.parametrize(
    "name", ["conv-bn-relu", "residual-two-blocks", "gemm-relu-gemm-alpha-beta", "unet", "matmul-add-3d", "float16"]
)
def test_a_ratio_of_zero_changes_no_weight(name: str, tmp_path: Path) -> None:
    topology, model = TOPOLOGIES[name], built(TOPOLOGIES[name])
    calibration = tmp_path / "given.npz"
    np.savez(calibration, **feeds_of(topology))
    for options in ({}, {"calibration": calibration}):
        result = shrunk(written(model, tmp_path), tmp_path / "out.onnx", "auto", ratio=0.0, **options)
        assert not result.groups
        before, after = weights_of(model), weights_of(onnx.load(tmp_path / "out.onnx"))
        assert {name: value.tobytes() for name, value in before.items()} == {
            name: value.tobytes() for name, value in after.items()
        }


def test_consumers_that_lose_no_input_are_refitted_in_the_file_too(tmp_path: Path) -> None:
    """They were once solved and then dropped on the way to the file."""
    model = built(TOPOLOGIES["gemm-relu-gemm-transb1"])
    calibration = tmp_path / "given.npy"
    np.save(calibration, np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32))
    options = {"include": ("fc_a",), "calibration": calibration, "samples": 400}
    shrunk(written(model, tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.5, **options)
    small = onnx.load(tmp_path / "out.onnx")
    before, after = (weights_of(each)[last_of(each).input[1]] for each in (model, small))
    assert before.shape == after.shape
    assert not np.allclose(before, after, atol=1e-3)
    assert relative_error([before], [after]) < 1


def last_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == "out")


@pytest.mark.parametrize("name", ["residual-two-blocks", "gemm-relu-gemm-transb1", "matmul-add-3d", "grouped-conv", "unet"])
def test_with_calibration_the_file_is_what_was_run(name: str, tmp_path: Path, layerwise_runs: list[LayerwiseRun]) -> None:
    """Every consumer from the first removal on is refitted, the last one too."""
    topology, model = TOPOLOGIES[name], built(TOPOLOGIES[name])
    calibration, rng = tmp_path / "given.npz", np.random.default_rng(0)
    np.savez(calibration, **{key: rng.normal(size=(40, *shape[1:])).astype("f") for key, shape in topology.feeds.items()})
    shrunk(written(model, tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.5, calibration=calibration)
    feeds = feeds_of(topology)
    assert relative_error(run(model_of(layerwise_runs[-1]), feeds), run(tmp_path / "out.onnx", feeds)) < 1e-4


AUTO = [
    "residual-two-blocks-bn",
    "inverted-residual",
    "resnext-block",
    "unet",
    "conv-transpose-grouped",
    "concat-flatten",
    "silu",
]


@pytest.mark.parametrize("name", AUTO)
def test_auto_takes_what_is_expected_to_lose_least(name: str, tmp_path: Path) -> None:
    source, target = written(built(TOPOLOGIES[name]), tmp_path), tmp_path / "out.onnx"
    result, inputs = shrunk(source, target, "auto", ratio=0.3), check_inputs(source)
    reached = fidelity(source, target, inputs)
    for group in result.groups:
        if "pruning alone" in group.note:
            continue
        assert {"prune", "reconstruct"} <= group.expected_error.keys()
        assert group.expected_error[group.method] == min(group.expected_error.values())
    shrunk(source, target, "prune", ratio=0.3)
    assert reached >= fidelity(source, target, inputs) - 0.02
