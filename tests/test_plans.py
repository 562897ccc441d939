"""Plans: what was decided can be read, edited and done again; one that does not fit is refused before any work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from running import built, written
from topologies import TOPOLOGIES
from topologies.net import Net

import onnxmerge
from onnxmerge.cli import app as cli
from onnxmerge.errors import OptionError
from onnxmerge.options import PlannedGroup, PruningOptions
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.plan_files import LARGEST_FILE
from onnxmerge.pruning.layer_statistics import LayerStatistics

FAST = {"provenance": False, "samples": 24, "threads": 1, "verify": False}


def source_of(name: str, folder: Path) -> Path:
    return written(built(TOPOLOGIES[name]), folder)


FIRST = {
    "ratio": ("residual-two-blocks-bn", {"ratio": 0.4}),
    "parameters": ("residual-two-blocks", {"target": ("params", 0.6)}),
    "macs": ("grouped-conv", {"target": ("macs", 0.6)}),
    "fidelity": ("flatten-two-layers", {"fidelity": 0.5}),
    "prune": ("residual-option-a", {"ratio": 0.5, "method": "prune"}),
    "merge": ("residual-two-blocks", {"ratio": 0.5, "method": "merge"}),
    "merge for some, solved for others": ("squeeze-excite", {"ratio": 0.5}),
    "consumers that share a weight": ("shared-weight-in-sequence", {"ratio": 0.5}),
    "a criterion of weights": ("conv-relu-conv", {"ratio": 0.5, "criterion": "l1-norm", "method": "reconstruct"}),
    "pruning stays closer": ("densenet-bn", {"ratio": 0.3}),
    "float16": ("float16", {"ratio": 0.5}),
}


@pytest.mark.parametrize(("name", "options"), FIRST.values(), ids=FIRST.keys())
def test_plan_gives_the_same_bytes_again(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    source, plan = source_of(name, tmp_path), tmp_path / "plan.json"
    compress(source, tmp_path / "first.onnx", **FAST, **options, save_plan=plan)
    asked = {key: value for key, value in options.items() if key in ("criterion", "method")}
    again = tmp_path / "again.json"
    compress(source, tmp_path / "second.onnx", **FAST, **asked, plan=plan, save_plan=again)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert (tmp_path / "first.onnx").read_bytes() != source.read_bytes()
    assert again.read_bytes() == plan.read_bytes()


SEARCHES: dict[str, dict[str, Any]] = {
    "fidelity": {"fidelity": 0.9},
    "decisions": {"max_changed_decisions": 0.3},
    "not checked": {"fidelity": 0.9, "verify": False},
    "ratio": {"ratio": 0.5},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES.keys())
def test_plan_gives_the_same_bytes_again_on_real_inputs(options: dict[str, Any], tmp_path: Path) -> None:
    """A search leaves more of them to the check than a run of a given size, and layers are solved on the others."""
    source, plan, given = source_of("flatten-two-layers", tmp_path), tmp_path / "plan.json", tmp_path / "given.npy"
    shape = onnx.load(source).graph.input[0].type.tensor_type.shape.dim
    np.save(given, np.random.default_rng(0).normal(size=(200, *(dim.dim_value for dim in shape[1:]))).astype(np.float32))
    common = {"provenance": False, "threads": 1, "calibration": given, "bench": False}
    compress(source, tmp_path / "first.onnx", **{**common, **options}, save_plan=plan)
    for verify in (True, False):
        compress(source, tmp_path / "second.onnx", **common, verify=verify, plan=plan, save_plan=tmp_path / "again.json")
        assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
        assert (tmp_path / "again.json").read_bytes() == plan.read_bytes()
    assert (tmp_path / "first.onnx").read_bytes() != source.read_bytes()


def test_plan_for_more_inputs_than_there_are(tmp_path: Path) -> None:
    """Of 40 inputs 32 would leave too few to solve on."""
    source, plan, given = source_of("flatten-two-layers", tmp_path), tmp_path / "plan.json", tmp_path / "given.npy"
    shape = onnx.load(source).graph.input[0].type.tensor_type.shape.dim
    np.save(given, np.random.default_rng(0).normal(size=(40, *(dim.dim_value for dim in shape[1:]))).astype(np.float32))
    common = {"provenance": False, "threads": 1, "calibration": given, "bench": False}
    compress(source, tmp_path / "o.onnx", **common, ratio=0.5, save_plan=plan)
    plan.write_text(plan.read_text().replace('"held_out": 13', '"held_out": 32'))
    result = compress(source, tmp_path / "o.onnx", **common, plan=plan)
    assert result.fidelity is not None
    assert result.fidelity.input_count == 13


def test_pruning_alone_is_planned_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where auto found that nothing should be repaired, the plan says so, and is not solved when it is done again."""
    monkeypatch.setattr("onnxmerge.evaluation.repeated_fidelity.RepeatedFidelity.worst", pruned_first())
    source, plan = source_of("residual-two-blocks", tmp_path), tmp_path / "plan.json"
    only = {"provenance": False, **FAST, "include": ("one_conv1",)}
    compress(source, tmp_path / "first.onnx", **only, ratio=0.5, save_plan=plan)
    monkeypatch.undo()
    assert json.loads(plan.read_text())["method"] == "prune"
    compress(source, tmp_path / "second.onnx", **only, plan=plan)
    compress(source, tmp_path / "pruned.onnx", **only, ratio=0.5, method="prune")
    contents = {(tmp_path / f"{name}.onnx").read_bytes() for name in ("first", "second", "pruned")}
    assert len(contents) == 1


@pytest.mark.parametrize("least", ["merge", "prune", "reconstruct"])
def test_methods_that_auto_found_hold(least: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the same channels would be treated otherwise now, and where pruning them would stay closer."""
    monkeypatch.setattr(LayerStatistics, "expected_error", lambda _, removal: float(removal.method != least))
    monkeypatch.setattr("onnxmerge.evaluation.repeated_fidelity.RepeatedFidelity.worst", pruned_first(start=1))
    source, plan = source_of("residual-two-blocks", tmp_path), tmp_path / "plan.json"
    compress(source, tmp_path / "first.onnx", **FAST, ratio=0.5, save_plan=plan)
    assert {row["method"] for row in json.loads(plan.read_text())["groups"]} == {least}
    monkeypatch.setattr(LayerStatistics, "expected_error", lambda _, removal: float(removal.method == least))
    monkeypatch.setattr("onnxmerge.evaluation.repeated_fidelity.RepeatedFidelity.worst", pruned_first())
    compress(source, tmp_path / "second.onnx", **FAST, plan=plan)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def pruned_first(start: int = 0) -> Callable[..., Any]:
    """A comparison in which the second of every two candidates, the pruned one, is closer; from start 1 on the first one."""
    calls: list[float] = []

    def worst(*_: Any) -> float:
        calls.append(1.0 - 0.5 * ((len(calls) + 1 + start) % 2))
        return calls[-1]

    return worst


def test_edited_plan_is_done(tmp_path: Path) -> None:
    source, plan = source_of("residual-two-blocks", tmp_path), tmp_path / "plan.json"
    compress(source, tmp_path / "o.onnx", **FAST, ratio=0.5, save_plan=plan)
    edited = json.loads(plan.read_text())
    by_name = {row["name"]: row for row in edited["groups"]}
    by_name["stem"]["kept"] = 7
    del by_name["stem"]["kept_channels"]
    by_name["one_conv1"].update(kept=2, kept_channels=[5, 0])
    edited["groups"].remove(by_name["two_conv1"])
    plan.write_text(json.dumps(edited))
    result = compress(source, tmp_path / "o.onnx", **FAST, plan=plan, save_plan=tmp_path / "again.json")
    assert {group.name: group.kept for group in result.groups} == {"stem": 7, "one_conv1": 2}
    again = {row["name"]: row for row in json.loads((tmp_path / "again.json").read_text())["groups"]}
    assert again["one_conv1"]["kept_channels"] == [0, 5]
    assert again["two_conv1"] == {"name": "two_conv1", "channels": 5, "kept": 5}


def test_plan_is_a_line_a_group(tmp_path: Path) -> None:
    source, plan = source_of("residual-two-blocks", tmp_path), tmp_path / "plan.json"
    compress(source, tmp_path / "o.onnx", **FAST, ratio=0.5, method="prune", save_plan=plan)
    lines = [line for line in plan.read_text().splitlines() if '"kept_channels"' in line]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == ["stem", "one_conv1", "two_conv1"]


def good_plan(folder: Path, name: str = "grouped-conv") -> tuple[Path, dict[str, Any]]:
    source = source_of(name, folder)
    compress(source, folder / "made.onnx", ratio=0.5, method="prune", verify=False, save_plan=folder / "plan.json")
    (folder / "made.onnx").unlink()
    return source, json.loads((folder / "plan.json").read_text())


def group(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """The plan with its first group changed; None takes a field out."""

    def change(plan: dict[str, Any]) -> dict[str, Any]:
        row = {**plan["groups"][0], **changes}
        plan["groups"][0] = {key: value for key, value in row.items() if value is not None}
        return plan

    return change


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another model": (lambda plan: {**plan, "model": {"file": "other.onnx", "sha256": "0" * 64}}, "another model ('other.onnx')"),
    "no model": (lambda plan: {**plan, "model": None}, 'needs "model" with its sha256'),
    "wrong schema": (lambda plan: {**plan, "schema": "onnxmerge.plan/2"}, "schema is 'onnxmerge.plan/2'"),
    "no schema": (lambda plan: [plan], "schema is None"),
    "held out none": (lambda plan: {**plan, "held_out": 0}, "held_out must be a number of inputs, at least 1, not 0"),
    "held out a text": (lambda plan: {**plan, "held_out": "8"}, "held_out must be a number of inputs, at least 1, not '8'"),
    "no groups": (lambda plan: {**plan, "groups": {}}, '"groups", a list'),
    "groups of numbers": (lambda plan: {**plan, "groups": [1]}, '"groups", a list'),
    "unknown method": (lambda plan: {**plan, "method": "magic"}, "method must be one of"),
    "unknown method of a group": (group(method="magic"), "must be one of"),
    "unhashable method": (group(method=["prune"]), "must be one of"),
    "misspelt key": (group(kpt=4), "'kpt' is no key here; known are channels, kept, kept_channels, method, name"),
    "misspelt key of the whole": (lambda plan: {**plan, "metod": "prune"}, "'metod' is no key here"),
    "another number of channels": (group(channels=16), "has 8 channels, not 16"),
    "group twice": (lambda plan: {**plan, "groups": [plan["groups"][0]] * 2}, "is listed twice"),
    "unknown group": (group(name="no_such"), "no group that may shrink"),
    "unnamed group": (group(name=None), "no group that may shrink"),
    "kept 0": (
        group(kept=0, kept_channels=None),
        "cannot keep 0 of its 8 channels: needed is a number from 4 to 8 and a multiple of 4",
    ),
    "kept too many": (group(kept=9, kept_channels=None), "cannot keep 9 of its 8"),
    "kept true": (group(kept=True, kept_channels=None), "not True"),
    "kept a text": (group(kept="4", kept_channels=None), "not '4'"),
    "kept unequal in cells": (group(kept=6, kept_channels=None), "a multiple of 4"),
    "channels too few": (group(kept_channels=[0, 2]), "holds 2; without kept_channels they are chosen"),
    "channel twice": (group(kept_channels=[0, 0, 2, 4]), "holds 3; without kept_channels"),
    "channel outside": (group(kept_channels=[0, 2, 4, 8]), "channels 0 to 7, and none 8"),
    "channel below": (group(kept_channels=[-1, 2, 4, 6]), "whole numbers of channels, not -1"),
    "channels no list": (group(kept_channels="0246"), "must be a list"),
    "channels unequal in cells": (group(kept_channels=[0, 1, 2, 4]), "equally many in each group"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_plan_is_refused(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path, capsys: Any) -> None:
    source, plan = good_plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(change(plan)))
    assert_refused(tmp_path, capsys, message, source, tmp_path / "o.onnx", "--plan", tmp_path / "plan.json")


def assert_refused(folder: Path, capsys: Any, message: str, *arguments: object) -> None:
    """Exit code 2, one line, and every file as it was."""
    before = {path.name: path.stat() if path.stat().st_size > 1 << 20 else path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit) as ending:
        cli.main(["compress", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (ending.value.code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert {each.name: each.stat() if each.stat().st_size > 1 << 20 else each.read_bytes() for each in folder.iterdir()} == before


def test_pinned_channel_cannot_leave(tmp_path: Path, capsys: Any) -> None:
    """Channels 0 and 1 reach the output, and one of the others stays so that the Split has something to write."""
    net = Net(np.random.default_rng(0))
    y = net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8)
    first, _ = net.op("Split", y, net.const("sizes", [2, 6]), outs=2, axis=1)
    net.output(net.conv(y, "out", 8, 4), 4, 8, 8)
    net.output(first, 2, 8, 8)
    source = written(net.model(), tmp_path)
    compress(source, tmp_path / "made.onnx", ratio=0.5, method="prune", verify=False, save_plan=tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    place = ("o.onnx", "--plan", tmp_path / "plan.json")
    for change, message in (
        (group(kept_channels=[1, 2, 3, 4]), "channel 0 of 'conv_a' must stay"),
        (group(kept=1, kept_channels=None), "needed is a number from 3 to 8"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps(change(json.loads(json.dumps(plan)))))
        assert_refused(tmp_path, capsys, message, source, tmp_path / place[0], *place[1:])


FILES = {
    "not JSON": (b"{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "empty": (b"", "is not JSON"),
    "NaN": (b"NaN", "schema is None"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_no_plan_at_all(content: bytes, message: str, tmp_path: Path, capsys: Any) -> None:
    source = source_of("conv-relu-conv", tmp_path)
    (tmp_path / "plan.json").write_bytes(content)
    assert_refused(tmp_path, capsys, message, source, tmp_path / "o.onnx", "--plan", tmp_path / "plan.json")


def test_huge_plan_is_not_read(tmp_path: Path, capsys: Any) -> None:
    source = source_of("conv-relu-conv", tmp_path)
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    assert_refused(tmp_path, capsys, "too large to be a plan", source, tmp_path / "o.onnx", "--plan", tmp_path / "plan.json")


def test_fingerprint_covers_the_weights_beside_the_model(tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(built(TOPOLOGIES["conv-relu-conv"]), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    plan = tmp_path / "plan.json"
    compress(source, tmp_path / "made.onnx", ratio=0.5, method="prune", verify=False, save_plan=plan)
    compress(source, tmp_path / "made.onnx", plan=plan, method="prune", verify=False)
    saved = (str(source), str(tmp_path / "o.onnx"), "--ratio", "0.5")
    assert_refused(tmp_path, capsys, "would overwrite weights of the model", *saved, "--save-plan", tmp_path / "w.bin")
    weights = np.frombuffer((tmp_path / "w.bin").read_bytes(), np.float32).copy()
    weights[0] += 1.0
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    assert_refused(tmp_path, capsys, "was made for another model", source, tmp_path / "o.onnx", "--plan", plan)
    assert "o.onnx" not in os.listdir(tmp_path)


BAD_PLANNED_GROUPS: dict[str, tuple[Callable[[], Any], str]] = {
    "channel twice": (lambda: PlannedGroup(2, (0, 0)), "kept is 2 but kept_channels holds 1"),
    "channel counted from the end": (lambda: PlannedGroup(2, (0, -1)), "whole numbers"),
    "another number of channels": (lambda: PlannedGroup(3, (0, 1)), "kept is 3 but kept_channels holds 2"),
    "text": (lambda: PruningOptions(plan={"g": "3"}), "whole numbers"),  # type: ignore[dict-item]
    "half a channel": (lambda: PruningOptions(plan={"g": 3.5}), "whole numbers"),  # type: ignore[dict-item]
    "a boolean": (lambda: PruningOptions(plan={"g": True}), "whole numbers"),
    "unknown method": (lambda: PlannedGroup(3, method="magic"), "must be one of"),
    "rounded beside a plan": (lambda: PruningOptions(plan={"g": 3}, round_to=4), "nothing to round"),
}


@pytest.mark.parametrize(("given", "message"), BAD_PLANNED_GROUPS.values(), ids=BAD_PLANNED_GROUPS)
def test_bad_planned_group_is_refused(given: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        given()


def test_planned_channel_must_be_there(tmp_path: Path) -> None:
    source = source_of("conv-relu-conv", tmp_path)
    (group,) = onnxmerge.inspect(source).groups
    plan = {group.name: PlannedGroup(2, (0, group.channels))}
    with pytest.raises(OptionError, match=f"channels 0 to {group.channels - 1}"):
        compress(source, tmp_path / "o.onnx", **FAST, plan=plan)


def test_count_of_a_plan_may_be_of_numpy() -> None:
    assert PruningOptions(plan={"g": np.int64(8)}).planned["g"].kept == 8  # type: ignore[dict-item]
