"""Sizes: what is predicted of counts is what a model with them weighs, and --target is met, on every topology."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from running import built, written
from topologies import TOPOLOGIES, Topology

from onnxmerge.candidates import Candidate, candidate_of
from onnxmerge.compress import compress
from onnxmerge.graph.channels import ChannelGroup
from onnxmerge.graph.cost_terms import COST_TERMS, kinds_of
from onnxmerge.graph.paths import neurons
from onnxmerge.merging.budget import Cost
from onnxmerge.methods.planning import decide, kept_count, selected
from onnxmerge.options import Options
from onnxmerge.results import Compression, Refusal
from onnxmerge.understanding import Understanding, understand

SHRINKING = [each for each in TOPOLOGIES.values() if each.runnable and any((each.removable | each.at_most).values())]
# Nothing can be removed there, though the row allows it.
WHOLE = {"shared-weight-one-in-output", "weight-also-read-as-data"}
ROWS = [pytest.param(each, id=each.id) for each in SHRINKING if each.id not in WHOLE]
# One stored vector read by two layers that lose different channels becomes two.
SPLIT_IN_TWO = {"bias-shared-through-identity", "bn-parameters-shared"}
PRUNE = Options(ratio=0.0, method="prune")
SHARE = 0.6


def pruned(source: Path, counts: Mapping[str, int]) -> Candidate:
    understood = understand(source)
    return candidate_of(source, understood, decide(understood, PRUNE, None, counts))


def predicted(understood: Understanding, groups: list[ChannelGroup], made: Candidate, kind: str) -> float:
    """What the terms say of the channels that a candidate kept."""
    kinds = kinds_of(understood.channels, groups)
    kept = [np.array(made.kept.get(group.name, range(group.size))) for group in groups]
    tables = []
    for group, own, stays in zip(groups, kinds, kept, strict=True):
        tables.append(np.zeros((group.size + 1, int(own.max()) + 1)))
        tables[-1][len(stays)] = np.bincount(own[stays], minlength=int(own.max()) + 1)
    cost = Cost(*COST_TERMS[kind](understood.channels, groups, kinds, understood.shapes), tuple(tables))
    return cost.total([len(stays) for stays in kept])


@pytest.mark.parametrize("topology", ROWS)
def test_terms_weigh_what_the_model_weighs(topology: Topology, tmp_path: Path) -> None:
    source, ratio = written(built(topology), tmp_path), (0.3, 0.6)[SHRINKING.index(topology) % 2]
    understood = understand(source)
    groups = selected(understood, PRUNE)[0]
    made = pruned(source, {group.name: kept_count(group, ratio) for group in groups})
    assert made.size.macs < understood.size.macs
    assert predicted(understood, groups, made, "macs") == pytest.approx(made.size.macs, abs=0.01)
    missing = 16 if topology.id in SPLIT_IN_TWO else 0.01
    assert predicted(understood, groups, made, "params") == pytest.approx(made.size.parameters, abs=missing)


def left(result: Compression | Candidate, before: Understanding, kind: str) -> float:
    size = result.after if isinstance(result, Compression) else result.size
    return size.parameters / before.size.parameters if kind == "params" else size.macs / before.size.macs


def is_open(group: ChannelGroup, understood: Understanding, options: Options) -> bool:
    """Whether the method may shrink the group."""
    return options.method != "merge" or not isinstance(neurons(understood.channels, group), Refusal)


def check_target(source: Path, target: Path, kind: str, share: float, options: Options) -> None:
    """At most the share, and not less than it by more than 1 % or one step of any group; or all that can go has gone."""
    result = compress(source, target, options)
    before = understand(source)
    groups = selected(before, options)[0]
    counts = {group.name: group.size for group in groups} | {group.name: group.kept for group in result.groups}
    reached = left(result, before, kind)
    told = [warning for warning in result.warnings if "cannot be reached" in warning]
    if reached > share:
        for group in groups:
            assert counts[group.name] == (kept_count(group, 1.0) if is_open(group, before, options) else group.size)
        assert told == [f"{kind}={share:g} cannot be reached: at least {reached:.1%} must stay"]
        return
    assert not told
    if reached >= 0.99 * share:
        return
    steps = {group.name: len(np.unique(group.cells)) for group in groups}
    for name in [group.name for group in groups if counts[group.name] < group.size and is_open(group, before, options)]:
        assert left(pruned(source, counts | {name: counts[name] + steps[name]}), before, kind) > share, name


@pytest.mark.parametrize("topology", ROWS)
def test_target_is_met(topology: Topology, tmp_path: Path) -> None:
    kind = ("params", "macs")[SHRINKING.index(topology) % 2]
    options = Options(target=(kind, SHARE), method="prune", samples=8, verify=False, threads=1)
    check_target(written(built(topology), tmp_path), tmp_path / "out.onnx", kind, SHARE, options)


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
    options = Options(target=(kind, SHARE), method=method, samples=16, bench=False, threads=1)
    check_target(written(built(TOPOLOGIES[name]), tmp_path), tmp_path / "out.onnx", kind, SHARE, options)


def test_merge_says_why_groups_stay_whole(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["gelu-op"]), tmp_path)
    options = Options(target=("macs", SHARE), method="merge", samples=8, verify=False, threads=1)
    refusals = compress(source, tmp_path / "out.onnx", options).refusals
    assert "Gelu" in next(refusal.reason for refusal in refusals if refusal.where == "conv_a")


def test_solve_that_adds_biases_stays_below_the_target(tmp_path: Path) -> None:
    """Every share is met although layers without a bias get one."""
    source = written(built(TOPOLOGIES["gemm-relu-gemm-no-bias"]), tmp_path)
    for share in (0.35, 0.5, 0.65, 0.8):
        options = Options(target=("params", share), method="reconstruct", samples=16, verify=False, threads=1)
        result = compress(source, tmp_path / "out.onnx", options)
        assert 0.9 * share < result.after.parameters / result.before.parameters <= share
