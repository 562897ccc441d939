"""What a search promises: a fidelity kept, multiples, the same bytes twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import built, chain, written
from test_targets import PRUNE
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.pipeline import fidelity_search
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.fidelity_search import _search
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pruning.budget import Allocation
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import fast_multiple

FAST = {"samples": 24, "threads": 1, "bench": False}

# fidelity

SMALL_PARTS: dict[str, dict[str, Any]] = {
    "digits-mlp.onnx": {"samples": 768},
    "digits-resnet-bn.onnx": {"samples": 8, "include": ("/7/*",), "method": "reconstruct"},
}


@pytest.mark.parametrize("name", SMALL_PARTS)
def test_fidelity_is_kept_and_less_of_it_is_no_larger_model(name: str, tmp_path: Path, models_folder: Path) -> None:
    weights = []
    for fidelity in (0.9, 0.7):
        result = compress(models_folder / name, tmp_path / "o.onnx", fidelity=fidelity, bench=False, **SMALL_PARTS[name])
        assert result.fidelity is not None
        assert result.fidelity.worst.fidelity >= fidelity
        assert result.groups
        weights.append(result.after.parameters)
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] < 0.95 * result.before.parameters


def test_a_gpu_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is decided by runs is run on the CPU: here a session on CUDA would fail."""
    source = written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path)
    compress(source, tmp_path / "cpu.onnx", fidelity=0.5, provider="cpu", verify=False, **FAST)
    monkeypatch.setattr("onnxmerge.execution.providers.find_problem", lambda short: None)
    compress(source, tmp_path / "cuda.onnx", fidelity=0.5, provider="cuda", verify=False, **FAST)
    assert (tmp_path / "cuda.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes() != source.read_bytes()


def test_same_bytes_twice(tmp_path: Path) -> None:
    contents, source = set(), written(built(TOPOLOGIES["flatten-two-layers"]), tmp_path)
    for file in (tmp_path / "a.onnx", tmp_path / "b.onnx"):
        compress(source, file, fidelity=0.5, **FAST)
        contents.add(file.read_bytes())
    assert len(contents) == 1


def test_fidelity_that_nothing_keeps(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.999999, **FAST)
    assert not result.groups
    assert result.after.parameters == result.before.parameters
    assert sum("keeps a fidelity of 0.999999" in warning for warning in result.warnings) == 1


def test_channels_that_nobody_reads_go_at_any_fidelity(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["slice-channels"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.9999, round_to=1, **FAST)
    assert [group.kept for group in result.groups] == [6]
    assert not [warning for warning in result.warnings if "no smaller model" in warning]
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity > 0.9999


def test_channels_that_only_seem_to_be_of_no_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing passes the end of the front is measured before it is taken."""
    of_the_model = fidelity_search._allocations
    monkeypatch.setattr(fidelity_search, "_allocations", lambda *given: of_the_model(*given)[:-1])
    source = written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.999999, **FAST)
    assert not result.groups
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity == 1.0


@pytest.mark.parametrize(("loss", "ends"), [(10.0, True), (2.0, False)], ids=["fails by far", "near miss"])
def test_a_search_ends_where_predictions_are_hopeless(
    loss: float, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not where a candidate nearly passed: a detector's rows lost twice what is allowed, of which nothing was predicted."""
    tried: list[int] = []

    def failing(best: object, builder: object, index: int, *quickly: bool) -> float:
        tried.append(index)
        return loss

    monkeypatch.setattr(fidelity_search, "HOPELESS", 1e9)
    monkeypatch.setattr(fidelity_search._Best, "measure", failing)
    compress(written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path), tmp_path / "o.onnx", fidelity=0.9, round_to=1, **FAST)
    assert (len(tried) == 1) == ends


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(st.sampled_from([0.1, 2.0, 3.0, 6.0, 50.0]), min_size=1, max_size=40),
    prediction=st.floats(0.01, 100.0),
    saved=st.floats(0.0001, 0.5),
)
def test_no_full_candidate_where_the_least_removal_fails_by_far(losses: list[float], prediction: float, saved: float) -> None:
    """Only there, and only where it was predicted; whatever comes first, the least removal is tried third at the latest."""
    losses, count = sorted(losses, reverse=True), len(losses)
    front = [Allocation({"at": at}, 1.0 - saved * (1.0 - at / count), prediction * (1.0 - at / count)) for at in range(count + 1)]
    tried: list[int] = []

    class Best(fidelity_search._Best):
        def measure(self, builder: Any, index: int, candidate: Any, quickly: bool = False) -> float:
            tried.append(index)
            self.count += 1
            return losses[index]

    builder, best, search = SimpleNamespace(quick_loss=1.0, quick_candidate=id, limit=TimeLimit()), Best(), _search(front, 1.0)
    assert not fidelity_search._search_quickly(builder, search, front, best)  # type: ignore[arg-type]
    worth = [at for at in range(count) if front[at].share <= 1.0 - fidelity_search.WORTH_REMOVING]
    assert not set(tried) - set(worth)
    if best.is_hopeless:
        assert tried[-1] == worth[-1]
        assert min(losses[worth[-1]], front[worth[-1]].loss) > fidelity_search.FAR
    elif worth and tried and prediction / count > fidelity_search.FAR < min(losses[at] for at in worth):
        raise AssertionError(tried)
    if worth and losses[worth[-1]] > fidelity_search.FAR:
        assert len(tried) <= 3


# multiples

WAYS = {"ratio": {"ratio": 0.4}, "target": {"target": ("macs", 0.6)}, "fidelity": {"fidelity": 0.3}}
MULTIPLES = {
    "chain": ("gemm-relu-gemm-transb1", 4),
    "more than a group": ("residual-two-blocks", 32),
    "stream": ("residual-two-blocks", 2),
    "groups of a convolution": ("grouped-conv", 8),
    "not a divisor": ("resnext-block", 3),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "multiple"), MULTIPLES.values(), ids=MULTIPLES.keys())
def test_groups_that_shrink_are_multiples(name: str, multiple: int, way: str, tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES[name]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", round_to=multiple, method="prune", **FAST, **WAYS[way])
    groups, _ = prunable_groups(analyse_model(source).channels, PRUNE)
    conv_groups = {group.name: len(np.unique(group.conv_groups)) for group in groups}
    for group in result.groups:
        assert group.kept % multiple == 0
        assert group.kept % conv_groups[group.name] == 0
        assert group.kept < group.channels
    if multiple == 32:
        assert all(group.kept == 0 for group in result.groups)  # branches alone


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize("way", [{"ratio": 0.4}, {"target": "macs=0.5"}, {"fidelity": 0.5}], ids=["ratio", "target", "fidelity"])
def test_multiples_of_8_by_default(way: dict[str, Any], tmp_path: Path) -> None:
    result = compress(chain(tmp_path, (64, 64, 24)), tmp_path / "o.onnx", method="prune", **FAST, **way)
    assert result.groups
    assert all(group.kept % 8 == 0 for group in result.groups)
    if "target" in way:
        assert 0.475 * result.before.macs <= result.after.macs <= 0.5 * result.before.macs


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize(("widths", "target"), [((64, 64), "macs=0.05"), ((32,), "params=0.95")], ids=["small", "one group"])
def test_what_multiples_of_8_do_not_come_close_to_takes_finer_ones(widths: tuple[int, ...], target: str, tmp_path: Path) -> None:
    result = compress(chain(tmp_path, widths), tmp_path / "o.onnx", method="prune", target=target, **FAST)
    share = float(target.partition("=")[2])
    reached = result.after.macs / result.before.macs if "macs" in target else result.after.parameters / result.before.parameters
    assert 0.9 * share <= reached <= share
    assert not result.unreached


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize("way", [{"ratio": 0.5}, {"target": "params=0.5"}], ids=["ratio", "target"])
def test_grouped_convolutions_shrink_by_default(way: dict[str, Any], tmp_path: Path) -> None:
    """40 channels in five groups of a convolution: 8 and 5 have no common multiple below 40."""
    assert (fast_multiple(48, 3), fast_multiple(40, 5)) == (8, 4)
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, 6, 6), "first", 3, 40))
    y = net.relu(net.conv(y, "grouped", 40, 40, group=5))
    net.output(net.conv(y, "last", 40, 4), 4, 6, 6)
    result = compress(written(net.model(), tmp_path), tmp_path / "o.onnx", method="prune", **FAST, **way)
    assert len(result.groups) == 2
    assert "ratio" not in way or {group.kept for group in result.groups} == {20}
    assert 0.4 * result.before.parameters < result.after.parameters < 0.6 * result.before.parameters or "ratio" in way
