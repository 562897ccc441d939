"""A sensitivity is what the outputs lose: the oracle rewrites the whole model, with weights mixed by a solve of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from running import built, run, weights_of, with_replaced, written
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.algorithms.elimination import kept_after
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Consumer
from onnxmerge.graph.rewrite import Removal, Replacement, rewrite
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model_files import serialise
from onnxmerge.options import InputOptions, PruningOptions, silent
from onnxmerge.pruning import sensitivity
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.methods import METHODS
from onnxmerge.pruning.sensitivity import MAX_INPUTS, measure_sensitivities

pytestmark = pytest.mark.usefixtures("harmless_models", "any_number_of_passes")

DAMPING = 1e-3
OPTIONS = PruningOptions(ratio=0.5, method="reconstruct")


@pytest.fixture
def any_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All shares are measured, on `MAX_INPUTS`."""
    monkeypatch.setattr(sensitivity, "PASSES", 1e9)


def observed(source: Path) -> tuple[AnalysedModel, LayerStatistics]:
    """The model and what the program observes of it, on as many inputs as sensitivities are measured on."""
    analysed = analyse_model(source)
    session = open_session(source, optimise=False, threads=1)
    inputs = inputs_for(session, analysed.shapes, InputOptions(), MAX_INPUTS)
    return analysed, layer_statistics_of(analysed, inputs, 1, silent)


def matched_model(statistics: LayerStatistics) -> onnx.ModelProto:
    """The reference with BatchNormalization matched to the inputs."""
    return with_replaced(export(statistics.context.channels.model), statistics.reference.matched)


def measured_on(statistics: LayerStatistics) -> list[dict[str, np.ndarray]]:
    """The inputs that sensitivities are measured on: the first ones."""
    step = statistics.inputs.batch_size or 1
    return list(statistics.inputs.subset(np.arange(-(-MAX_INPUTS // step) * step), "first").batches(MAX_INPUTS))


def loss_by_rewriting(statistics: LayerStatistics, group: ChannelGroup, kept: np.ndarray, folder: Path) -> float:
    """1 - fidelity of the worst output when the matched reference loses these channels and its consumers are mixed by hand."""
    reference = folder / "matched.onnx"
    reference.write_bytes(matched_model(statistics).SerializeToString())
    fresh = analyse_model(reference)
    own = next(each for each in fresh.channels.groups if each.producers[0].key == group.producers[0].key)
    removed = np.setdiff1d(np.arange(group.size), kept)
    replacements = {consumer.key: mixed_by_hand(statistics, consumer, removed) for consumer in own.consumers}
    rewritten = rewrite(fresh.channels, [Removal(own, kept, "reconstruct")], replacements)
    smaller = onnx.ModelProto.FromString(serialise(rewritten))
    pairs = [(run(reference, feeds), run(smaller, feeds)) for feeds in measured_on(statistics)]
    lost = []
    for output in range(len(pairs[0][0])):
        expected, found = (np.concatenate([np.asarray(pair[side][output], np.float64) for pair in pairs]) for side in (0, 1))
        lost.append(np.square(expected - found).sum() / np.square(expected - expected.mean(0)).sum())
    return float(max(lost))


def mixed_by_hand(statistics: LayerStatistics, consumer: Consumer, removed: np.ndarray) -> Replacement:
    """Each removed position of a consumer's input regressed on all that stay, behind Flatten on those of its pixel.

    The values that the consumer reads are taken from a run, those of removed channels are regressed on those of the kept ones
    (damped as the program does it), and their weights moved.
    """
    moments, channel_of = statistics.reference.covariances[consumer.key], statistics.reference.layers[consumer.key].channel_of
    value = consumer.layer.stored_weight
    weight = consumer.layer.canonical(value).astype(np.float64)
    new, bias = weight.copy(), np.zeros(weight.shape[0] * weight.shape[1])
    removed = consumer.positions[removed]
    for g, place in itertools.product(range(weight.shape[0]), range(consumer.positions.shape[1])):
        first, rows = g * weight.shape[2], slice(g * weight.shape[1], (g + 1) * weight.shape[1])
        inside = np.arange(first, first + weight.shape[2])
        beside = consumer.positions[:, place] if consumer.positions.shape[1] > 1 else inside
        out, here = np.intersect1d(removed[:, place], inside), np.setdiff1d(np.intersect1d(beside, inside), removed)
        if not len(out):
            continue
        channels = channel_of[np.concatenate([here, out])]
        xx, mean = moments.xx[np.ix_(channels, channels)].astype(np.float64), moments.mean_x[channels]
        factors = regression(xx, len(here))
        shift = mean[len(here) :] - mean[: len(here)] @ factors
        new[g][:, here - first] += np.einsum("op...,kp->ok...", weight[g][:, out - first], factors)
        bias[rows] += consumer.layer.alpha * (weight[g][:, out - first].sum(-1) @ shift)
    return Replacement(consumer.layer.stored(new).astype(value.dtype), bias)


def regression(xx: np.ndarray, here: int) -> np.ndarray:
    """(kept, removed) factors of the least squares of removed on kept values, on standardised channels, hardly damped."""
    deviation = np.sqrt(np.maximum(np.diag(xx), 1e-300))
    correlation = xx / np.outer(deviation, deviation)
    solved = np.linalg.solve(correlation[:here, :here] + DAMPING * np.eye(here), correlation[:here, here:])
    return solved * deviation[here:] / deviation[:here, None]


def early_exit(net: Net) -> None:
    """An output that precedes the second group, one that the first group reaches in time for."""
    y = net.relu(net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8))
    net.output(net.conv(y, "early", 8, 2), 2, 8, 8)
    y = net.relu(net.conv(y, "conv_b", 8, 6))
    net.output(net.gemm(net.op("Flatten", y), "out", 384, 4), 4)


def fixed_batch(net: Net) -> None:
    y = net.relu(net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)


def recurrent_behind(net: Net) -> None:
    """The group's consumer feeds an LSTM."""
    y = net.relu(net.conv(net.input("x", 3, 10), "conv_a", 3, 8, rank=1))
    y = net.op("Transpose", net.conv(y, "conv_b", 8, 5, rank=1), perm=[2, 0, 1])
    weights = [net.const("w", net.he((1, 24, 5), 5)), net.const("r", net.he((1, 24, 6), 6)), net.const("b", net.small(1, 48))]
    _, last, _ = net.op("LSTM", y, *weights, hidden_size=6, outs=3)
    net.output(net.gemm(net.op("Squeeze", last, net.const("axes", [0])), "out", 6, 4), 4)


def body_behind(net: Net) -> None:
    """A body reads what the group's consumer gives from outside."""
    x = net.input("x", 3, 8, 8)
    y = net.conv(net.relu(net.conv(x, "conv_a", 3, 8)), "conv_b", 8, 6)
    positive = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.const("zero", -100.0))
    branches = {
        "then_branch": net.body("then", "then_y", lambda inner: inner.op("Mul", y, inner.const("two", 2.0), name="twice")),
        "else_branch": net.body("else", "else_y", lambda inner: inner.op("Tanh", y, name="other")),
    }
    net.output(net.conv(net.op("If", positive, name="choose", **branches), "out", 6, 4), 4, 8, 8)


def made(fill: Callable[[Net], None], batch: str | int = "N") -> onnx.ModelProto:
    net = Net(np.random.default_rng(1), batch=batch)
    fill(net)
    return net.model()


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{
        name: partial(built, TOPOLOGIES[name])
        for name in (
            "conv-relu-conv",
            "gemm-relu-gemm-alpha-beta",
            "residual-two-blocks-bn",
            "concat-two-producers",
            "flatten-two-layers",
            "matmul-add-3d",
            "matmul-weight-left",
            "grouped-conv",
            "two-inputs",
            "squeeze-excite-gemm",
        )
    },
    "early exit": partial(made, early_exit),
    "fixed batch": partial(made, fixed_batch, 4),
    "recurrent behind": partial(made, recurrent_behind),
    "body behind": partial(made, body_behind),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_loss_is_that_of_the_rewritten_model(
    model: Callable[[], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PASSES", 1e3)  # on all inputs
    analysed, statistics = observed(written(model(), tmp_path))
    groups = prunable_groups(analysed.channels, OPTIONS)[0]
    sensitivities = measure_sensitivities(statistics, groups, OPTIONS)
    assert groups
    for group in groups:
        removed = [each.removed for each in sensitivities[group.name]]
        assert removed
        assert removed == sorted(removed)
        elimination = statistics.elimination(group)
        assert elimination is not None
        for found in sensitivities[group.name][-2:]:
            kept = kept_after(elimination, group.size, found.kept)
            assert found.loss == pytest.approx(loss_by_rewriting(statistics, group, kept, tmp_path), rel=0.03, abs=1e-4)


def loss_of_decision(
    analysed: AnalysedModel, statistics: LayerStatistics, options: PruningOptions, counts: dict[str, int]
) -> float:
    """1 - fidelity of the model that `decide` gives by weights alone."""
    decision = decide(analysed, options, None, counts)
    smaller = export(rewrite(analysed.channels, decision.removals, decision.replacements))
    pairs = [(run(analysed.model.path, feeds), run(smaller, feeds)) for feeds in statistics.context.batches()]
    expected, reached = (np.concatenate([pair[side][0] for pair in pairs]).astype(np.float64) for side in (0, 1))
    return float(np.square(expected - reached).sum() / np.square(expected - expected.mean(0)).sum())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "reconstruct"])
def test_what_is_measured_is_what_the_method_does(method: str, tmp_path: Path) -> None:
    """It was once what `auto` would have done: counts for pruning were chosen by what a reconstruction loses."""
    analysed, statistics = observed(written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path))
    options = replace(OPTIONS, method=method)
    (group,) = prunable_groups(analysed.channels, options)[0]
    measured = measure_sensitivities(statistics, [group], options)[group.name]
    expected = [loss_of_decision(analysed, statistics, options, {group.name: found.kept}) for found in measured]
    assert [found.loss for found in measured] == pytest.approx(expected, rel=0.01)


def test_consumers_that_share_a_weight_are_measured_as_they_are_pruned(tmp_path: Path) -> None:
    """Their weight stays shared, so that channels are dropped: the oracle is the pruned model."""
    analysed, statistics = observed(written(built(TOPOLOGIES["shared-weight-in-sequence"]), tmp_path))
    (group,) = prunable_groups(analysed.channels, OPTIONS)[0]
    for found in measure_sensitivities(statistics, [group], OPTIONS)[group.name]:
        lost = loss_of_decision(analysed, statistics, replace(OPTIONS, method="prune"), {group.name: found.kept})
        assert found.loss == pytest.approx(lost, rel=0.01)


def test_batch_normalization_is_that_of_the_inputs(tmp_path: Path) -> None:
    """On synthetic inputs every BatchNormalization of the measured model gives its stored mean and deviation, scale and bias."""
    _, statistics = observed(written(built(TOPOLOGIES["conv-bn-relu"]), tmp_path))
    outputs = ("bn_a_y", "bn_b_y", "bn_out_y")
    matched = matched_model(statistics)
    seen = [run(matched, feeds, outputs)[1:] for feeds in statistics.context.batches()]
    stored_values = weights_of(built(TOPOLOGIES["conv-bn-relu"]))
    for number, name in enumerate(("bn_a", "bn_b", "bn_out")):
        values = np.concatenate([each[number] for each in seen]).astype(np.float64)
        np.testing.assert_allclose(values.mean((0, 2, 3)), stored_values[f"{name}_bias"], atol=1e-4)
        np.testing.assert_allclose(values.std((0, 2, 3)), stored_values[f"{name}_scale"], rtol=1e-3)


def test_more_removed_is_more_loss_and_measurements_repeat(tmp_path: Path) -> None:
    analysed, statistics = observed(written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path))
    groups = prunable_groups(analysed.channels, OPTIONS)[0]
    first = measure_sensitivities(statistics, groups, OPTIONS)
    assert first == measure_sensitivities(statistics, groups, OPTIONS)
    assert first == {name: measure_sensitivities(statistics, groups[::-1], OPTIONS)[name] for name in first}
    losses = [[each.loss for each in sensitivities] for sensitivities in first.values()]
    assert all(each == sorted(each) and each[0] > 0 for each in losses)


@pytest.mark.parametrize(("passes", "removed"), [(1.0, [0.5]), (100.0, [0.25, 0.5, 0.75])])
def test_few_passes_measure_the_middle_share_alone(
    passes: float, removed: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PASSES", passes)
    analysed, statistics = observed(written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path))
    groups = prunable_groups(analysed.channels, OPTIONS)[0]
    for found in measure_sensitivities(statistics, groups, OPTIONS).values():
        assert [each.removed for each in found if each.kept] == removed
    for found in measure_sensitivities(statistics, groups, OPTIONS, all_shares=True).values():
        assert [each.removed for each in found if each.kept] == [0.25, 0.5, 0.75]
