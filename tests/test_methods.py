"""The methods of one group: what the table offers, how `auto` chooses, and the errors that it chooses by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import built, run, written
from topologies import TOPOLOGIES

from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.rewrite import Removal
from onnxmerge.onnxio.export import export
from onnxmerge.options import InputOptions, PlannedGroup, PruningOptions, silent
from onnxmerge.options.checks import METHOD_NAMES
from onnxmerge.pruning import layer_statistics as layer_statistics_module
from onnxmerge.pruning import methods as methods_module
from onnxmerge.pruning.expected_error import ExpectedErrors, _share_lost
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import kept_count
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.methods import METHODS, best_removal

pytestmark = pytest.mark.usefixtures("harmless_models")

SAMPLES = 512


def observed(name: str, folder: Path) -> tuple[LayerStatistics, list[ChannelGroup]]:
    """Statistics of a topology, and its groups."""
    source = written(built(TOPOLOGIES[name]), folder)
    analysed = analyse_model(source)
    inputs = inputs_for(open_session(source, optimise=False, threads=1), analysed.shapes, InputOptions(samples=SAMPLES))
    return layer_statistics_of(analysed, inputs, 1, silent), prunable_groups(analysed.channels, PruningOptions())[0]


def removal_by(method: str, statistics: LayerStatistics, group: ChannelGroup, count: int, options: PruningOptions) -> Removal:
    removal = METHODS[method](statistics.context.channels, group, count, options, statistics)
    assert isinstance(removal, Removal)
    return removal


def test_the_table_is_the_menu() -> None:
    assert sorted(METHOD_NAMES) == sorted(["auto", *METHODS])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["conv-relu-conv", "conv-bn-relu", "grouped-conv", "residual-two-blocks", "concat-flatten"])
def test_every_method_keeps_as_many_as_asked_or_those_of_the_plan(method: str, name: str, tmp_path: Path) -> None:
    statistics, groups = observed(name, tmp_path)
    for group in groups:
        count = kept_count(group, 0.5)
        kept = removal_by(method, statistics, group, count, PruningOptions()).kept
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == count
        others = tuple(np.sort(np.random.default_rng(0).permutation(group.size)[:count]).tolist())
        plan = PruningOptions(plan={group.name: PlannedGroup(count, others)})
        assert tuple(removal_by(method, statistics, group, count, plan).kept.tolist()) == others


def test_reconstruct_needs_statistics(tmp_path: Path) -> None:
    statistics, (group, *_) = observed("conv-relu-conv", tmp_path)
    with pytest.raises(ValueError, match="statistics"):
        METHODS["reconstruct"](statistics.context.channels, group, 2, PruningOptions(), None)


@pytest.mark.parametrize("method", METHODS)
def test_expected_error_is_what_the_consumer_loses(method: str, tmp_path: Path) -> None:
    """On samples of what the consumer reads: the variance of W (x - Z x[kept]), for reconstruct with Z by np.linalg.lstsq."""
    statistics, groups = observed("gemm-relu-gemm-transb1", tmp_path)
    group = groups[0]
    removal = removal_by(method, statistics, group, kept_count(group, 0.5), PruningOptions())
    (consumer,) = group.consumers
    model = export(statistics.context.channels.model)
    batches = [run(model, feeds, (consumer.layer.source,))[-1] for feeds in statistics.context.batches()]
    x = np.concatenate(batches).astype(np.float64)
    x -= x.mean(0)
    replaced = {
        "prune": lambda: np.where(np.isin(np.arange(group.size), removal.kept), x, 0.0),
        "merge": lambda: x[:, removal.kept] @ removal.scaling.T,
        "reconstruct": lambda: x[:, removal.kept] @ np.linalg.lstsq(x[:, removal.kept], x, rcond=None)[0],
    }[method]()
    weight = consumer.layer.weight[0, :, :, 0]
    lost = np.square((x - replaced) @ weight.T).sum() / np.square(x @ weight.T).sum()
    assert lost > 0.01
    assert statistics.expected_error(removal) == pytest.approx(lost, rel=1e-3)


@pytest.mark.parametrize("name", ["residual-two-blocks-bn", "grouped-conv", "gemm-relu-gemm-transb1", "unet"])
def test_outputs_matter_as_much_as_what_reads_them(name: str, tmp_path: Path) -> None:
    """The metric against sums over every layer that reads on, group and kernel position by themselves."""
    statistics, _ = observed(name, tmp_path)
    layers, at, metric = statistics.context.channels.layers, statistics.context.node_index, statistics.output_errors
    seen = 0
    for layer in layers:
        ids = layer.out_ids.reshape(-1)
        expected = np.zeros((len(ids), len(ids)))
        for other in [each for each in layers if at[each.key] > at[layer.key] and each.key in metric._variance]:
            readers = max(1, sum(bool(set(other.out_ids.flat) & set(each.in_ids.flat) - {0}) for each in layers))
            weight = statistics.reference.downstream[other.key].scaled(other.weight)
            for g, p in np.ndindex(other.groups, other.kernel_size):
                reading = weight[g, :, :, p] @ ((other.in_ids[g][:, None] == ids) & (ids > 0))
                expected += reading.T @ reading * readers / metric._variance[other.key]
        total, factor = metric.metric(layer)
        found = (0.0 if total is None else total) + (0.0 if factor is None else factor.T @ factor)
        np.testing.assert_allclose(
            np.broadcast_to(found, expected.shape), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max()
        )
        seen += bool(expected.any())
    assert seen


@pytest.mark.parametrize("method", METHODS)
def test_expected_error_is_the_same_from_few_weights_and_from_their_products(method: str, tmp_path: Path) -> None:
    group, rng = observed("conv-relu-conv", tmp_path)[1][0], np.random.default_rng(3)
    samples, weight = rng.normal(size=(40, 9)), rng.normal(size=(4, 9))
    removal = Removal(group, np.array([0, 2, 3, 7]), method, scaling=rng.normal(size=(9, 4)) if method == "merge" else None)
    lost = [_share_lost(removal, np.cov(samples.T).astype(np.float32), seen) for seen in (weight, weight.T @ weight)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-5) != 0.0


@pytest.mark.parametrize("method", [None, *METHODS])
def test_auto_takes_the_least_expected_error_or_the_planned_method(method: str | None, tmp_path: Path) -> None:
    statistics, groups = observed("residual-two-blocks", tmp_path)
    for group in groups:
        count = kept_count(group, 0.5)
        plan = None if method is None else {group.name: PlannedGroup(count, None, method)}
        removal = best_removal(statistics, group, count, PruningOptions(plan=plan))
        errors = {
            name: statistics.expected_error(removal_by(name, statistics, group, count, PruningOptions())) for name in METHODS
        }
        assert removal.method == (method or min(errors, key=lambda name: errors[name]))
        shown = errors if method is None else {name: errors[name] for name in {method, "prune"}}
        assert dict(removal.expected_error) == shown


def test_where_a_method_is_not_valid_another_one_is_taken(tmp_path: Path) -> None:
    """SiLU is not positively homogeneous."""
    statistics, (group, *_) = observed("silu", tmp_path)
    count = kept_count(group, 0.5)
    assert (
        best_removal(statistics, group, count, PruningOptions(plan={group.name: PlannedGroup(count, None, "merge")})).method
        == "prune"
    )
    assert "merge" not in best_removal(statistics, group, count, PruningOptions()).expected_error


@pytest.mark.parametrize("limit", [1 << 29, 0], ids=["held", "only the latest held"])
def test_matrices_and_orders_of_a_group_are_made_once(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of a search share them, as far as memory is set aside for them, and get the same errors either way."""
    made: list[str] = []

    class Counting(ExpectedErrors):
        def __init__(self, channels: object, group: ChannelGroup, reference: object) -> None:
            made.append(group.name)
            super().__init__(channels, group, reference)  # type: ignore[arg-type]

    eliminated: list[str] = []
    elimination_of = layer_statistics_module.elimination_of
    monkeypatch.setattr(layer_statistics_module, "ExpectedErrors", Counting)
    monkeypatch.setattr(layer_statistics_module, "EXPECTED_ERRORS_BYTES", limit)
    monkeypatch.setattr(
        layer_statistics_module, "elimination_of", lambda *args: eliminated.append(args[1].name) or elimination_of(*args)
    )
    statistics, groups = observed("residual-two-blocks", tmp_path)
    assert len(groups) > 1
    for ratio in (0.25, 0.5, 0.25):
        for group in groups:
            best_removal(statistics, group, kept_count(group, ratio), PruningOptions())
    names = [group.name for group in groups]
    assert eliminated == names
    assert made == (names if limit else 3 * names)


def test_a_plan_and_a_weight_criterion_need_no_elimination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, (group, *_) = observed("conv-relu-conv", tmp_path)
    monkeypatch.setattr(layer_statistics_module, "elimination_of", None)
    planned = PruningOptions(plan={group.name: PlannedGroup(2, (0, 1))})
    for options in (planned, replace(planned, plan=None, criterion="l1-norm")):
        assert (
            best_removal(statistics, group, 2, options).kept.tolist()
            == methods_module.METHODS["prune"](statistics.context.channels, group, 2, options, None).kept.tolist()
        )
