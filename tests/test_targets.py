"""Sizes: what is predicted of counts is what a model with them weighs, and --target is met, on every topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from running import analysed_topology, built, written
from topologies import TOPOLOGIES, Topology

from onnxmerge.algorithms.bilinear_cost import Cost
from onnxmerge.data import selection
from onnxmerge.errors import Refusal
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.cost_terms import COST_TERMS, cost_classes
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.size_search import largest_within_size
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pruning.budget import CLOSE_TO_BUDGET, Allocation
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import kept_count
from onnxmerge.results import Compression

pytestmark = pytest.mark.usefixtures("harmless_models", "few_inputs")

SHRINKING = [each for each in TOPOLOGIES.values() if each.runnable and any((each.removable | each.at_most).values())]
# Nothing can be removed there, though the row allows it.
WHOLE = {"shared-weight-one-in-output", "weight-also-read-as-data"}
ROWS = [pytest.param(each, id=each.id) for each in SHRINKING if each.id not in WHOLE]
# One stored vector read by two layers that lose different channels becomes two.
SPLIT_IN_TWO = {"bias-shared-through-identity", "bn-parameters-shared"}
PRUNE = PruningOptions(ratio=0.0, method="prune")
SHARE = 0.6


@pytest.fixture(scope="module")
def few_inputs() -> Iterator[None]:
    """Sensitivities are measured on few inputs: sizes are met whatever they say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CHECK_INPUTS", 16)
        yield


def pruned(analysed: AnalysedModel, counts: Mapping[str, int]) -> Candidate:
    return candidate_of(analysed, decide(analysed, PRUNE, None, counts))


def predicted(analysed: AnalysedModel, groups: list[ChannelGroup], made: Candidate, kind: str) -> float:
    """What the terms say of the channels that a candidate kept."""
    classes = cost_classes(analysed.channels, groups)
    kept = [np.array(made.kept.get(group.name, range(group.size))) for group in groups]
    tables = []
    for group, own, stays in zip(groups, classes, kept, strict=True):
        tables.append(np.zeros((group.size + 1, int(own.max()) + 1)))
        tables[-1][len(stays)] = np.bincount(own[stays], minlength=int(own.max()) + 1)
    cost = Cost(*COST_TERMS[kind](analysed.channels, groups, classes, analysed.shapes), tuple(tables))
    return cost.total([len(stays) for stays in kept])


@pytest.mark.parametrize("topology", ROWS)
def test_terms_weigh_what_the_model_weighs(topology: Topology, tmp_path: Path) -> None:
    analysed, ratio = analysed_topology(topology, tmp_path), (0.3, 0.6)[SHRINKING.index(topology) % 2]
    groups = prunable_groups(analysed.channels, PRUNE)[0]
    made = pruned(analysed, {group.name: kept_count(group, ratio) for group in groups})
    assert made.size.macs < analysed.size.macs
    assert predicted(analysed, groups, made, "macs") == pytest.approx(made.size.macs, abs=0.01)
    missing = 16 if topology.id in SPLIT_IN_TWO else 0.01
    assert predicted(analysed, groups, made, "params") == pytest.approx(made.size.parameters, abs=missing)


def left(result: Compression | Candidate, before: AnalysedModel, kind: str) -> float:
    size = result.after if isinstance(result, Compression) else result.size
    return size.parameters / before.size.parameters if kind == "params" else size.macs / before.size.macs


def is_open(group: ChannelGroup, analysed: AnalysedModel, options: PruningOptions) -> bool:
    """Whether the method may shrink the group."""
    return options.method != "merge" or not isinstance(pre_activations(analysed.channels, group), Refusal)


def check_target(topology: Topology, folder: Path, kind: str, share: float, method: str, **settings: Any) -> None:
    """At most the share, and not less than it by more than 2 % or one step of any group; or all that can go has gone."""
    source = written(built(topology), folder)
    result = compress(source, folder / "out.onnx", target=(kind, share), method=method, threads=1, **settings)
    before, pruning = analysed_topology(topology, folder), PruningOptions(target=(kind, share), method=method)
    groups = prunable_groups(before.channels, pruning)[0]
    counts = {group.name: group.size for group in groups} | {group.name: group.kept for group in result.groups}
    reached = left(result, before, kind)
    if reached > share:
        for group in groups:
            assert counts[group.name] == (kept_count(group, 1.0) if is_open(group, before, pruning) else group.size)
        assert result.unreached == f"{kind}={share:g} cannot be reached: at least {reached:.1%} must stay"
        return
    assert not result.unreached
    if reached >= CLOSE_TO_BUDGET * share:
        return
    steps = {group.name: len(np.unique(group.conv_groups)) for group in groups}
    for name in [group.name for group in groups if counts[group.name] < group.size and is_open(group, before, pruning)]:
        assert left(pruned(before, counts | {name: counts[name] + steps[name]}), before, kind) > share, name


@pytest.mark.parametrize("topology", ROWS)
def test_target_is_met(topology: Topology, tmp_path: Path) -> None:
    """A quarter as by default: which of the sizes that fit is faster does not depend on the operators."""
    number = SHRINKING.index(topology)
    kind, round_to = ("params", "macs")[number % 2], 1 if number % 8 > 1 else None
    check_target(topology, tmp_path, kind, SHARE, "prune", samples=8, verify=False, round_to=round_to)


SOLVED = {
    "biases added": ("resnext-block", "reconstruct", "macs"),
    "biases added behind BatchNormalization": ("residual-two-blocks-bn", "auto", "params"),
    "MatMul without bias": ("matmul-add-3d", "auto", "params"),
    "channels in other places": ("residual-option-a", "auto", "macs"),
    "merge, not valid": ("gelu-op", "merge", "params"),
    "merge, valid for some": ("inverted-residual", "merge", "params"),
    "merge, valid for all": ("residual-two-blocks", "merge", "macs"),
}


@pytest.mark.parametrize(("name", "method", "kind"), SOLVED.values(), ids=SOLVED.keys())
def test_target_is_met_by_other_methods(name: str, method: str, kind: str, tmp_path: Path) -> None:
    check_target(TOPOLOGIES[name], tmp_path, kind, SHARE, method, samples=16, bench=False)


def test_merge_says_why_groups_stay_whole(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["gelu-op"]), tmp_path)
    options = {"target": ("macs", SHARE), "method": "merge", "samples": 8, "verify": False, "threads": 1}
    refusals = compress(source, tmp_path / "out.onnx", **options).refusals
    assert "Gelu" in next(refusal.text for refusal in refusals if refusal.where == "conv_a")


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The counts of every candidate of a search."""
    seen: list[object] = []
    build = CandidateBuilder.candidate
    monkeypatch.setattr(CandidateBuilder, "candidate", lambda builder, counts: (seen.append(counts), build(builder, counts))[1])
    return seen


def test_biases_that_a_solve_adds_are_foreseen(tmp_path: Path, solves: list[object]) -> None:
    """Every share is met at the first attempt although layers without a bias get one."""
    source, shares = written(built(TOPOLOGIES["gemm-relu-gemm-no-bias"]), tmp_path), (0.3, 0.35, 0.4, 0.5, 0.55, 0.6)
    for share in shares:
        options = {"target": ("params", share), "method": "reconstruct", "samples": 16}
        result = compress(source, tmp_path / "out.onnx", verify=False, threads=1, **options)
        assert 0.9 * share < result.after.parameters / result.before.parameters <= share
    assert len(solves) == len(shares)


def test_a_share_that_every_candidate_misses_is_approached_in_steps() -> None:
    """Candidates that weigh more than was predicted: what fits is taken, not the smallest model there is."""
    sizes = SimpleNamespace(counts_for=lambda kind, share, multiple: Allocation({"g": max(1, int(100 * share))}, share, 0.0))
    builder = SimpleNamespace(
        budget=sizes,
        pruning=SimpleNamespace(round_to=1),
        limit=TimeLimit(),
        analysed=SimpleNamespace(size=None),
        candidate=lambda counts: SimpleNamespace(remaining_share=lambda kind, whole: counts["g"] / 100 + 0.3, counts=counts),
    )
    found = largest_within_size(builder, "params", 0.5)  # type: ignore[arg-type]
    assert (found.warnings, found.unreached) == ((), "")
    assert 0.45 <= found.candidate.remaining_share("params", None) <= 0.5  # type: ignore[arg-type]


def test_sizes_that_cannot_be_foreseen_move_the_aim(tmp_path: Path, solves: list[object]) -> None:
    """One stored bias that becomes two: some shares need a second attempt, and none is missed."""
    source, shares = (
        written(built(TOPOLOGIES["bias-shared-through-identity"]), tmp_path),
        (0.3, 0.35, 0.43, 0.45, 0.55, 0.64, 0.73, 0.8),
    )
    for share in shares:  # some lie between what is predicted of counts and what these weigh
        options = {"target": ("params", share), "method": "prune", "samples": 8}
        result = compress(source, tmp_path / "out.onnx", verify=False, threads=1, **options)
        assert 0.85 * share < result.after.parameters / result.before.parameters <= share
    assert len(shares) < len(solves) < 2 * len(shares)
