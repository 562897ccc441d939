"""`reconstruct` and `auto` from file to file: every topology, exact where exactness is possible, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from dense_samples import dense
from onnx import helper, numpy_helper
from running import analysed, built, relative_error, run, tolerance_of, weights_of, with_replaced, written
from test_execution_layerwise import sequence_model
from test_merge_exactness import BY_HAND, cases, duplicated, group_of
from topologies import TOPOLOGIES, Topology, feeds_of
from topologies.net import Net

from onnxmerge.data.balance import held
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import ModelError
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.shapes import observe_twice
from onnxmerge.graph.analysed_model import analyse_model, shapes_of
from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.options import InputOptions, PruningOptions, silent
from onnxmerge.pipeline.compress import compress
from onnxmerge.pruning import layer_update as solving_module
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import kept_counts
from onnxmerge.pruning.layer_statistics import layer_statistics_of
from onnxmerge.results import Compression
from onnxmerge.statistics import reference_run as reference_module
from onnxmerge.statistics import wide_layers as wide_module
from onnxmerge.statistics.reference_run import ReferenceStatistics, collect_reference_statistics, run_context_of

pytestmark = pytest.mark.usefixtures("harmless_models")

SAMPLES = 64
FAST = {"samples": SAMPLES, "verify": False, "threads": 1}
SHRINKING = [each for each in TOPOLOGIES.values() if each.runnable and any((each.removable | each.at_most).values())]
# Weights that cannot be removed from at all, though the row allows it (`at_most`).
WHOLE = {"shared-weight-one-in-output", "weight-also-read-as-data"}
# Stored statistics of BatchNormalization are random numbers there, far from those of any inputs. What is fitted to the matched
# reference is worth less in the reference as it is stored, but never less than pruning.
NORMALISED = {each.id for each in SHRINKING if any(node.op_type == "BatchNormalization" for node in built(each).graph.node)}


CONSUMERS_ALONE = partial(reference_module.RunContext, updates_producers=False)


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


def check_inputs(source: Path, samples: int = SAMPLES) -> Inputs:
    session = open_session(source, optimise=False, threads=1)
    return held(inputs_for(session, shapes_of(observe_twice(source).first), InputOptions(samples=samples, seed=5)))


def fidelity(source: Path, target: Path, inputs: Inputs) -> float:
    pair = [open_session(path, optimise=False, threads=1) for path in (source, target)]
    return compare(pair[0], pair[1], inputs.batches(32), "").worst.fidelity


def shrunk(source: Path, target: Path, method: str, **options: object) -> Compression:
    return compress(source, target, method=method, **{**FAST, **options})


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


def test_a_sequence_between_two_layers_is_no_obstacle(tmp_path: Path) -> None:
    model = sequence_model()
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "stem"], ["stem_y"], name="stem"))
    model.graph.node[1].input[0] = "stem_y"
    weight = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "stem"))
    result = shrunk(written(model, tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.3)
    assert [group.method for group in result.groups] == ["reconstruct"]


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
    monkeypatch.setattr(reference_module, "RunContext", CONSUMERS_ALONE)
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
    monkeypatch.setattr(reference_module, "RunContext", CONSUMERS_ALONE)
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
