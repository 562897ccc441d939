"""On real inputs the channels of a pair of convolutions are chosen where its consumer is solved."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from running import check_inputs, fidelity, written
from topologies.net import Net

from onnxmerge import compress
from onnxmerge.errors import ModelError
from onnxmerge.graph.rewrite import rewrite
from onnxmerge.pipeline import candidates
from onnxmerge.pruning import solve_consumers as solve_module

FAST = {"method": "reconstruct", "verify": False, "provenance": False, "threads": 1}
SPACE = (12, 12)


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    np.save(tmp_path / "given.npy", np.random.default_rng(5).normal(size=(64, 3, *SPACE)).astype(np.float32))
    return tmp_path / "given.npy"


def shifted() -> onnx.ModelProto:
    """Channel 1 of conv_a is channel 0 one row on, of which a kernel of 3 x 3 needs but one; channel 2 counts half."""
    net, first, second = Net(np.random.default_rng(0)), np.zeros((3, 3, 3, 3)), np.zeros((4, 3, 3, 3))
    for channel, (read, row) in enumerate([(0, 1), (0, 2), (1, 1)]):
        first[channel, read, row, 1] = 1.0
    second[:, :, 1, 1] = net.he((4, 3), 3) * [1.0, 1.0, 0.5]
    x = net.conv(net.input("x", 3, *SPACE), "conv_a", 3, 3, weight=net.const("first", first), bias=False)
    y = net.conv(net.relu(x), "conv_b", 3, 4, weight=net.const("second", second), bias=False)
    net.output(y, 4, *SPACE)
    return net.model()


def test_what_neighbouring_positions_hold_leaves(tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels at one position alone are independent, and the one with the least weight would go."""
    source, target, reached = written(shifted(), tmp_path), tmp_path / "out.onnx", []
    for is_cheap in (solve_module.is_cheap_to_choose, lambda layer: False):
        monkeypatch.setattr(solve_module, "is_cheap_to_choose", is_cheap)
        compress(source, target, ratio=0.3, round_to=1, calibration=calibration, **FAST)
        reached.append(fidelity(source, target, check_inputs(source)))
    assert reached[0] > 0.999
    assert reached[1] < 0.99


def sequence() -> onnx.ModelProto:
    """Every convolution but the last is the producer of one pair, all but the first the consumer of one."""
    net = Net(np.random.default_rng(0))
    y, widths = net.input("x", 3, *SPACE), (3, 12, 12, 12, 12, 4)
    for number, (read, wrote) in enumerate(pairwise(widths)):
        y = net.conv(y if number == 0 else net.relu(y), f"conv_{number}", read, wrote)
    net.output(y, 4, *SPACE)
    return net.model()


def test_a_plan_of_chosen_channels_gives_the_same_bytes_again(tmp_path: Path, calibration: Path) -> None:
    source, plan, written_files = written(sequence(), tmp_path), tmp_path / "plan.json", []
    for options in ({"ratio": 0.5, "round_to": 1, "save_plan": plan}, {"plan": plan}):
        compress(source, tmp_path / "out.onnx", calibration=calibration, **FAST, **options)
        written_files.append((tmp_path / "out.onnx").read_bytes())
    assert written_files[0] == written_files[1]


@pytest.mark.parametrize("criterion", ["l1-norm", "l2-gm"])
def test_a_criterion_of_weights_holds(criterion: str, tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is chosen again."""
    monkeypatch.setattr(solve_module.LayerUpdate, "kept_channels", None)
    options = {"ratio": 0.5, "round_to": 1, "calibration": calibration, **FAST}
    compress(written(sequence(), tmp_path), tmp_path / "out.onnx", criterion=criterion, **options)
    with pytest.raises(TypeError):
        compress(written(sequence(), tmp_path), tmp_path / "out.onnx", **options)


def test_the_expected_error_is_that_of_the_channels_that_stay(tmp_path: Path, calibration: Path) -> None:
    """As a plan that names these channels finds it."""
    source, plan, found = written(sequence(), tmp_path), tmp_path / "plan.json", []
    for options in ({"ratio": 0.5, "round_to": 1, "save_plan": plan}, {"plan": plan}):
        result = compress(source, tmp_path / "out.onnx", calibration=calibration, **FAST, **options)
        found.append({group.name: group.expected_error[group.method] for group in result.groups})
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("least", [8, 12], ids=["of fewer channels", "left out"])
def test_layers_are_solved_for_what_is_left_of_a_removal_that_does_not_run(
    least: int, tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plan of the others has it: the rows of conv_1 had changed for a conv_2 that reads half of its channels."""

    def failing(channels, removals, replacements):  # type: ignore[no-untyped-def]
        if any(removal.group.name == "conv_1" and len(removal.kept) < least for removal in removals):
            raise ModelError("too few")
        return rewrite(channels, removals, replacements)

    source, plan, options = written(sequence(), tmp_path), tmp_path / "plan.json", {"calibration": calibration, **FAST}
    with monkeypatch.context() as patched:
        patched.setattr(candidates, "rewrite", failing)
        result = compress(source, tmp_path / "out.onnx", ratio=0.5, round_to=1, save_plan=plan, **options)
    assert {group.name: group.kept for group in result.groups}.get("conv_1", 12) == {8: 9, 12: 12}[least]
    compress(source, tmp_path / "again.onnx", plan=plan, **{**options, "method": "auto"})
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
