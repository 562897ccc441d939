"""A probe says what the outputs lose: the oracle rewrites the whole model, with weights mixed by a solve of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from running import built, run, weights_of, written
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
from onnxmerge.pruning.consumer_update import old_bias
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.plan import decide, selected
from onnxmerge.pruning.sensitivity import MOST_INPUTS, measure_sensitivities

DAMPING = 1e-3
OPTIONS = PruningOptions(ratio=0.5, method="reconstruct")


def studied(source: Path, count: int = MOST_INPUTS) -> tuple[AnalysedModel, LayerStatistics]:
    """What the program studies; on no more inputs than probes run nothing is left to solve readers on."""
    understanding = analyse_model(source)
    session = open_session(source, optimise=False, threads=1)
    inputs = inputs_for(session, understanding.shapes, InputOptions(), count)
    return understanding, layer_statistics_of(understanding, inputs, 1, silent)


def measured_on(layer_statistics: LayerStatistics) -> list[dict[str, np.ndarray]]:
    """The inputs of probes: the first ones."""
    step = layer_statistics.inputs.batch_size or 1
    return list(layer_statistics.inputs.chosen(np.arange(-(-MOST_INPUTS // step) * step), "first").batches(MOST_INPUTS))


ByHand = Callable[[LayerStatistics, AnalysedModel, Consumer, np.ndarray], Replacement]


def oracle(
    layer_statistics: LayerStatistics,
    understanding: AnalysedModel,
    group: ChannelGroup,
    kept: np.ndarray,
    folder: Path,
    by_hand: ByHand,
) -> float:
    """1 - fidelity of the worst output when the matched reference loses these channels and its readers are repaired by hand.

    Mixing by hand: the values that each reader reads are taken from a run, those of removed channels are regressed on those of
    the kept ones (damped as the program does it), and their weights moved.
    """
    reference = folder / "matched.onnx"
    reference.write_bytes(layer_statistics.reference.matched.SerializeToString())
    fresh = analyse_model(reference)
    own = next(each for each in fresh.channels.groups if each.producers[0].key == group.producers[0].key)
    gone = np.setdiff1d(np.arange(group.size), kept)
    replacements = {link.key: by_hand(layer_statistics, fresh, link, gone) for link in own.consumers}
    rewritten = rewrite(fresh.channels, [Removal(own, kept, "reconstruct")], replacements)
    smaller = onnx.ModelProto.FromString(serialise(rewritten))
    pairs = [(run(reference, feeds), run(smaller, feeds)) for feeds in measured_on(layer_statistics)]
    lost = []
    for output in range(len(pairs[0][0])):
        expected, found = (np.concatenate([np.asarray(pair[side][output], np.float64) for pair in pairs]) for side in (0, 1))
        lost.append(np.square(expected - found).sum() / np.square(expected - expected.mean(0)).sum())
    return float(max(lost))


def mixed_by_hand(layer_statistics: LayerStatistics, fresh: AnalysedModel, link: Consumer, gone: np.ndarray) -> Replacement:
    """Each removed position of a reader's input regressed on all that stay, behind Flatten on those of its pixel."""
    moments, channel_of = layer_statistics.reference.covariances[link.key], layer_statistics.reference.layers[link.key].channel_of
    value = link.layer.stored_weight
    weight = link.layer.canonical(value).astype(np.float64)
    new, bias = weight.copy(), np.zeros(weight.shape[0] * weight.shape[1])
    removed = link.positions[gone]
    for g, place in itertools.product(range(weight.shape[0]), range(link.positions.shape[1])):
        first, rows = g * weight.shape[2], slice(g * weight.shape[1], (g + 1) * weight.shape[1])
        inside = np.arange(first, first + weight.shape[2])
        beside = link.positions[:, place] if link.positions.shape[1] > 1 else inside
        out, here = np.intersect1d(removed[:, place], inside), np.setdiff1d(np.intersect1d(beside, inside), removed)
        if not len(out):
            continue
        channels = channel_of[np.concatenate([here, out])]
        xx, mean = moments.xx[np.ix_(channels, channels)], moments.mean_x[channels]
        factors = regression(xx, len(here))
        new[g][:, here - first] += np.einsum("op...,kp->ok...", weight[g][:, out - first], factors)
        bias[rows] += link.layer.alpha * (weight[g][:, out - first].sum(-1) @ (mean[len(here) :] - mean[: len(here)] @ factors))
    return Replacement(link.layer.stored(new).astype(value.dtype), bias)


def solved_by_hand(layer_statistics: LayerStatistics, fresh: AnalysedModel, link: Consumer, gone: np.ndarray) -> Replacement:
    """The reader's outputs regressed on the patches of what stays, both taken from a run; stride 1, the same size."""
    value = link.layer.stored_weight
    weight = link.layer.canonical(value).astype(np.float64)
    groups, out, inside, positions = weight.shape
    kernel = link.layer.kernel_shape
    removed = link.positions[gone].reshape(-1)
    source, read = link.layer.node.outputs[0].name, link.layer.node.inputs[0].name
    proto = layer_statistics.reference.matched
    runs = [run(proto, feeds, (read, source))[-2:] for feeds in fitted_on(layer_statistics)]
    x, y = (np.concatenate([each[side] for each in runs]).astype(np.float64) for side in (0, 1))
    if kernel:
        padded = np.pad(x, [(0, 0), (0, 0), *[(k // 2, k // 2) for k in kernel]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
        x = np.moveaxis(windows, 1, 3).reshape(-1, groups * inside, positions)  # (samples, channel, position)
        y = np.moveaxis(y, 1, -1).reshape(-1, groups * out)
    else:
        x = x[:, :, None]
    new, bias = np.zeros(weight.shape), np.zeros(groups * out)
    for g in range(groups):
        stays = np.setdiff1d(np.arange(inside), removed - g * inside)
        rows = slice(g * out, (g + 1) * out)
        samples, targets = x[:, g * inside + stays].reshape(len(x), -1), y[:, rows]
        mean_x, mean_y = samples.mean(0), targets.mean(0)
        solved = np.linalg.lstsq(samples - mean_x, targets - mean_y, rcond=1e-6)[0]
        new[g][:, stays] = solved.T.reshape(out, len(stays), positions)
        bias[rows] = mean_y - mean_x @ solved
    layer = layer_statistics.reference.layers[link.key]
    old = old_bias(layer_statistics.context.channels, layer)
    return Replacement(link.layer.stored(new / layer.alpha).astype(value.dtype), bias - old)


def fitted_on(layer_statistics: LayerStatistics) -> list[dict[str, np.ndarray]]:
    """The inputs that readers are solved on: all others."""
    return list(
        layer_statistics.inputs.chosen(np.arange(MOST_INPUTS, layer_statistics.inputs.count), "other").batches(MOST_INPUTS)
    )


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
    """The group's reader feeds an LSTM."""
    y = net.relu(net.conv(net.input("x", 3, 10), "conv_a", 3, 8, rank=1))
    y = net.op("Transpose", net.conv(y, "conv_b", 8, 5, rank=1), perm=[2, 0, 1])
    weights = [net.const("w", net.he((1, 24, 5), 5)), net.const("r", net.he((1, 24, 6), 6)), net.const("b", net.small(1, 48))]
    _, last, _ = net.op("LSTM", y, *weights, hidden_size=6, outs=3)
    net.output(net.gemm(net.op("Squeeze", last, net.const("axes", [0])), "out", 6, 4), 4)


def body_behind(net: Net) -> None:
    """A body reads what the group's reader gives from outside."""
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
def test_loss_of_mixing_is_that_of_the_rewritten_model(
    model: Callable[[], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What probes measure where solves would take too long."""
    monkeypatch.setattr("onnxmerge.pruning.trial_solves.AFFORDED", 0.0)
    check_loss(written(model(), tmp_path), partial(oracle, by_hand=mixed_by_hand), tmp_path, 0.03)


SOLVED = ("conv-relu-conv", "gemm-relu-gemm-alpha-beta", "residual-two-blocks-bn", "concat-two-producers", "grouped-conv")


@pytest.mark.parametrize("name", SOLVED)
def test_loss_of_solves_is_that_of_the_rewritten_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxmerge.pruning.sensitivity._far_from_data", lambda layer_statistics: False)
    monkeypatch.setattr("onnxmerge.pruning.trial_solves.SAMPLES_PER_UNKNOWN", 1000)  # all inputs that are left
    source = written(built(TOPOLOGIES[name]), tmp_path)
    check_loss(source, partial(oracle, by_hand=solved_by_hand), tmp_path, 0.1, count=12 * MOST_INPUTS)


def test_solves_are_measured_on_inputs_that_they_have_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 inputs for a reader of 96 numbers: on those it loses nothing, and what it loses on others must not be believed less."""
    net = Net(np.random.default_rng(0))
    y = net.relu(net.gemm(net.input("x", 12), "first", 12, 96))
    net.output(net.gemm(net.relu(net.gemm(y, "second", 96, 64)), "out", 64, 4), 4)
    understanding, layer_statistics = studied(written(net.model(), tmp_path), count=2 * MOST_INPUTS)
    groups = selected(understanding, OPTIONS)[0]
    monkeypatch.setattr("onnxmerge.pruning.sensitivity._far_from_data", lambda layer_statistics: False)
    (last,) = [each for each in measure_sensitivities(layer_statistics, groups, 1, OPTIONS)["second"] if each.removed == 0.75]
    assert last.loss > 0.02


def test_one_batch_of_a_fixed_size_leaves_nothing_to_solve_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxmerge.pruning.sensitivity._far_from_data", lambda _: False)
    source = written(made(fixed_batch, 2 * MOST_INPUTS), tmp_path)
    understanding, layer_statistics = studied(source, count=2 * MOST_INPUTS)
    assert all(measure_sensitivities(layer_statistics, selected(understanding, OPTIONS)[0], 1, OPTIONS).values())


def test_without_data_and_normalisation_nothing_is_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    understanding, layer_statistics = studied(written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path), count=3 * MOST_INPUTS)
    (group,) = selected(understanding, OPTIONS)[0]
    mixed = measure_sensitivities(layer_statistics, [group], 1, OPTIONS)[group.name]
    monkeypatch.setattr("onnxmerge.pruning.sensitivity._far_from_data", lambda _: False)
    solved = measure_sensitivities(layer_statistics, [group], 1, OPTIONS)[group.name]
    assert all(one.loss < 0.9 * other.loss for one, other in zip(solved, mixed, strict=True))
    monkeypatch.setattr("onnxmerge.pruning.trial_solves.AFFORDED", 0.0)
    assert measure_sensitivities(layer_statistics, [group], 1, OPTIONS)[group.name] == mixed


def check_loss(source: Path, expected: Callable[..., float], folder: Path, tolerance: float, count: int = MOST_INPUTS) -> None:
    understanding, layer_statistics = studied(source, count=count)
    groups = selected(understanding, OPTIONS)[0]
    sensitivities = measure_sensitivities(layer_statistics, groups, 1, OPTIONS)
    assert groups
    for group in groups:
        assert [each.removed for each in sensitivities[group.name]] == sorted(each.removed for each in sensitivities[group.name])
        elimination = layer_statistics.elimination(group)
        assert elimination is not None
        assert sensitivities[group.name]
        for found in sensitivities[group.name][-2:]:
            kept = kept_after(elimination, group.size, found.kept)
            assert found.loss == pytest.approx(
                expected(layer_statistics, understanding, group, kept, folder), rel=tolerance, abs=1e-4
            )


def test_readers_that_share_a_weight_are_probed_as_they_are_treated(tmp_path: Path) -> None:
    """Their weight stays shared, so that channels are dropped: the oracle is the pruned model."""
    understanding, layer_statistics = studied(written(built(TOPOLOGIES["shared-weight-in-sequence"]), tmp_path))
    (group,) = selected(understanding, OPTIONS)[0]
    for found in measure_sensitivities(layer_statistics, [group], 1, OPTIONS)[group.name]:
        made = decide(understanding, replace(OPTIONS, method="prune"), None, {group.name: found.kept})
        smaller = export(rewrite(understanding.channels, made.removals, made.replacements))
        pairs = [(run(understanding.model.path, feeds), run(smaller, feeds)) for feeds in layer_statistics.context.batches()]
        expected, reached = (np.concatenate([pair[side][0] for pair in pairs]).astype(np.float64) for side in (0, 1))
        lost = np.square(expected - reached).sum() / np.square(expected - expected.mean(0)).sum()
        assert found.loss == pytest.approx(lost, rel=0.01)


def test_normalisation_is_that_of_the_inputs(tmp_path: Path) -> None:
    """On synthetic inputs every BatchNormalization of the probed model gives its stored mean and deviation, scale and bias."""
    _, layer_statistics = studied(written(built(TOPOLOGIES["conv-bn-relu"]), tmp_path))
    outputs = ("bn_a_y", "bn_b_y", "bn_out_y")
    seen = [run(layer_statistics.reference.matched, feeds, outputs)[1:] for feeds in layer_statistics.context.batches()]
    stored_values = weights_of(built(TOPOLOGIES["conv-bn-relu"]))
    for number, name in enumerate(("bn_a", "bn_b", "bn_out")):
        values = np.concatenate([each[number] for each in seen]).astype(np.float64)
        np.testing.assert_allclose(values.mean((0, 2, 3)), stored_values[f"{name}_bias"], atol=1e-4)
        np.testing.assert_allclose(values.std((0, 2, 3)), stored_values[f"{name}_scale"], rtol=1e-3)


def test_more_removed_is_more_loss_and_measurements_repeat(tmp_path: Path) -> None:
    understanding, layer_statistics = studied(written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path))
    groups = selected(understanding, OPTIONS)[0]
    first = measure_sensitivities(layer_statistics, groups, 1, OPTIONS)
    assert first == measure_sensitivities(layer_statistics, groups, 1, OPTIONS)
    assert first == {name: measure_sensitivities(layer_statistics, groups[::-1], 1, OPTIONS)[name] for name in first}
    losses = [[each.loss for each in sensitivities] for sensitivities in first.values()]
    assert all(each == sorted(each) and each[0] > 0 for each in losses)


def test_fewer_inputs_for_dear_models(tmp_path: Path) -> None:
    """What probes cost in all is bounded, down to a few inputs."""
    understanding, layer_statistics = studied(written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path))
    groups = selected(understanding, OPTIONS)[0]
    dear, cheap = (measure_sensitivities(layer_statistics, groups, macs, OPTIONS)["conv_a"] for macs in (10**12, 1))
    assert [each.kept for each in dear] == [each.kept for each in cheap]
    assert [each.loss for each in dear] != [each.loss for each in cheap]
