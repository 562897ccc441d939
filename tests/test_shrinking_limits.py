"""How far channels go: one of every producer, rider and piece stays, and what does not run is tried with more channels."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from running import analysed, relative_error, run, written
from topologies.net import Net

from onnxmerge.errors import ModelError, Reason
from onnxmerge.graph.rewrite import Removal, rewrite
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline import candidates
from onnxmerge.pipeline.candidates import candidate_of
from onnxmerge.pipeline.compress import compress
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import smallest_count


def halves(net: Net, y: str, by_slice: bool = False) -> tuple[str, str]:
    if not by_slice:
        first, second = net.op("Split", y, net.const("sizes", [4, 4]), outs=2, axis=1)
        return first, second
    bounds = [net.const(f"bound_{at}", [at]) for at in (0, 4, 8)]
    axis = net.const("axis", [1])
    return net.op("Slice", y, bounds[0], bounds[1], axis), net.op("Slice", y, bounds[1], bounds[2], axis)


def bare(net: Net, first: str, second: str) -> str:
    return net.op("Concat", first, second, axis=1)


def with_slopes(net: Net, first: str, second: str) -> str:
    return bare(net, net.op("PRelu", first, net.const("slopes", net.positive(4, 1, 1))), second)


def depthwise(net: Net, first: str, second: str) -> str:
    return bare(net, net.conv(first, "depthwise", 4, 4, group=4), second)


def pooled(net: Net, first: str, second: str) -> str:
    return bare(net, net.op("MaxPool", first, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), second)


def c2f(net: Net, first: str, second: str) -> str:
    return net.op("Concat", first, second, net.conv(second, "conv_c", 4, 4), axis=1)


def weak_half(make, by_slice: bool):
    """The first half of the channels of conv_a is weak, so that all of it would be the first to go."""
    net = Net(np.random.default_rng(0))
    weight = net.he((8, 3, 3, 3), 27)
    weight[:4] *= 0.01
    y = net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8, weight=net.const("weak_w", weight))
    y = make(net, *halves(net, y, by_slice))
    net.output(net.conv(y, "out", 12 if make is c2f else 8, 4), 4, 8, 8)
    return net.model()


@pytest.mark.parametrize("options", [{"ratio": 0.5, "method": "prune"}, {"target": "macs=0.5"}], ids=["ratio", "target"])
@pytest.mark.parametrize("by_slice", [False, True], ids=["split", "slice"])
@pytest.mark.parametrize("make", [bare, with_slopes, depthwise, pooled, c2f])
def test_a_piece_never_leaves_as_a_whole(make, by_slice: bool, options: dict, tmp_path: Path) -> None:
    source, target = written(weak_half(make, by_slice), tmp_path), tmp_path / "out.onnx"
    given = {"round_to": 1, "samples": 16, "threads": 1, "verify": False, "bench": False}
    result = compress(source, target, **given, **options)
    assert {group.name: group.kept for group in result.groups}["conv_a"] < 8
    assert not [refusal for refusal in result.refusals if refusal.reason is Reason.DOES_NOT_RUN]
    assert not result.unreached
    outputs = run(target, {"x": np.ones((2, 3, 8, 8), np.float32)})
    assert outputs[0].shape == (2, 4, 8, 8)


def test_a_producer_behind_concat_keeps_a_channel(tmp_path: Path) -> None:
    """Two producers of one group, one much weaker than the other: both stay."""
    net = Net(np.random.default_rng(0))
    x = net.input("x", 3, 8, 8)
    weak = net.const("weak_w", 0.01 * net.he((2, 3, 3, 3), 27))
    y = net.op("Concat", net.conv(x, "weak", 3, 2, weight=weak, bias=False), net.conv(x, "strong", 3, 6), axis=1)
    y = net.op("Add", y, net.conv(x, "whole", 3, 8))
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
    (group,) = prunable_groups(analysed(net.model(), tmp_path).channels, PruningOptions(ratio=0.5))[0]
    assert smallest_count(group) == 2
    assert (group.pieces & ~group.removable).any(1).all()


def test_nothing_left_is_an_error_and_no_broken_model(tmp_path: Path) -> None:
    channels = analysed(weak_half(with_slopes, False), tmp_path).channels
    with pytest.raises(ModelError, match="would be left"):
        rewrite(channels, [Removal(channels.groups[0], np.arange(4, 8), "prune")], {})


@pytest.mark.parametrize(("least", "kept", "refused"), [(3, 5, False), (6, 7, False), (8, 8, True)])
def test_what_does_not_run_is_tried_with_more_channels(
    least: int, kept: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite that fails below some count: two of eight are asked for, then 5, 7 and all stay."""
    model = weak_half(bare, False)
    found = analysed(model, tmp_path)

    def failing(channels, removals, replacements):
        if any(len(removal.kept) < least for removal in removals):
            raise ModelError("too few")
        return rewrite(channels, removals, replacements)

    monkeypatch.setattr(candidates, "rewrite", failing)
    made = candidate_of(found, decide(found, PruningOptions(method="prune"), None, {"conv_a": 2}))
    assert len(made.kept.get("conv_a", range(8))) == kept
    assert any(refusal.reason is Reason.DOES_NOT_RUN for refusal in made.refusals) == refused


def test_functions_are_inlined(tmp_path: Path) -> None:
    """A layer inside a function of the model loses channels as one outside."""
    net = Net(np.random.default_rng(0))
    weight = net.const("conv_a_w", net.he((8, 3, 3, 3), 27))
    y = net.op("Block", net.input("x", 3, 8, 8), weight, domain="local")
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
    model = net.model()
    nodes = [
        helper.make_node("Conv", ["a", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
    ]
    model.functions.append(helper.make_function("local", "Block", ["a", "b"], ["r"], nodes, [helper.make_opsetid("", 17)]))
    source, target, feeds = written(model, tmp_path), tmp_path / "out.onnx", {"x": np.ones((2, 3, 8, 8), np.float32)}
    result = compress(source, target, ratio=0.0, method="prune", verify=False)
    assert relative_error(run(source, feeds), run(target, feeds)) == 0.0
    result = compress(source, target, ratio=0.5, method="reconstruct", samples=16, verify=False, bench=False, threads=1)
    assert [(group.kept, group.channels) for group in result.groups] == [(4, 8)]
