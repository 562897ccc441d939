"""Options of the Python API: what does not go together, and forms that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_plans import assert_refused, good_plan

from onnxmerge.errors import OptionError
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions

PLACES = {
    "plan that is not there": (("o.onnx", "--plan", "no.json"), "no.json cannot be read"),
    "plan is a folder": (("o.onnx", "--plan", "."), "cannot be read"),
    "plan is the model": (("o.onnx", "--plan", "model.onnx"), "is not JSON"),
    "plan is the output": (("plan.json", "--plan", "plan.json"), "holds the plan that is read"),
    "saved over the model": (("o.onnx", "--ratio", "0.5", "--save-plan", "model.onnx"), "would overwrite the model"),
    "saved over the output": (("o.onnx", "--ratio", "0.5", "--save-plan", "o.onnx"), "would overwrite the output"),
    "saved over the plan": (
        ("o.onnx", "--plan", "plan.json", "--save-plan", "plan.json"),
        "would overwrite the plan that is read",
    ),
    "saved nowhere": (("o.onnx", "--ratio", "0.5", "--save-plan", "no/plan.json"), "does not exist"),
    "saved in a folder's place": (("o.onnx", "--ratio", "0.5", "--save-plan", "."), "no regular file"),
    "report over the plan": (("o.onnx", "--plan", "plan.json", "--report", "plan.json"), "would overwrite the plan"),
    "plan and ratio": (("o.onnx", "--plan", "plan.json", "--ratio", "0.5"), "drop one of the two"),
    "plan and rounding": (("o.onnx", "--plan", "plan.json", "--round-to", "4"), "nothing to round"),
    "ratio and target": (("o.onnx", "--ratio", "0.5", "--target", "macs=0.5"), "drop one of the two"),
    "fidelity and target": (("o.onnx", "--fidelity", "0.9", "--target", "macs=0.5"), "drop one of the two"),
    "target of words": (("o.onnx", "--target", "macs"), "such as macs=0.5 or macs=50%, not 'macs'"),
    "target of nothing known": (("o.onnx", "--target", "size=0.5"), "one of params, macs, latency"),
    "target above 1": (("o.onnx", "--target", "macs=1.5"), "above 0 and at most 1"),
    "target 0": (("o.onnx", "--target", "macs=0"), "above 0 and at most 1"),
    "target NaN": (("o.onnx", "--target", "macs=nan"), "above 0 and at most 1"),
    "target of a kind alone": (("o.onnx", "--target", "=0.5"), "one of params, macs, latency"),
    "fidelity 1": (("o.onnx", "--fidelity", "1"), "above 0 and below 1"),
    "rounding 0": (("o.onnx", "--ratio", "0.5", "--round-to", "0"), "at least 1, auto"),
    "rounding of words": (("o.onnx", "--ratio", "0.5", "--round-to", "eight"), "at least 1, auto"),
    "rounding of a superscript": (
        ("o.onnx", "--ratio", "0.5", "--round-to", "\N{SUPERSCRIPT TWO}"),
        "at least 1, auto",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), PLACES.values(), ids=PLACES.keys())
def test_options_that_do_not_go_together(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    good_plan(tmp_path, "conv-relu-conv")
    monkeypatch.chdir(tmp_path)
    assert_refused(tmp_path, capsys, message, "model.onnx", *arguments)


@pytest.mark.parametrize("target", [("macs", 0.5), "macs=0.5", " macs =0.5"], ids=repr)
def test_target_in_two_forms(target: object) -> None:
    assert PruningOptions(target=target).target == ("macs", 0.5)


@pytest.mark.parametrize("target", [("macs",), ("macs", "0.5"), ("macs", None), ("macs", 0.5, 1), 0.5, ["macs", 0.5]], ids=repr)
def test_bad_forms_of_a_target(target: object) -> None:
    with pytest.raises(OptionError, match="`target` must be one of params, macs, latency"):
        PruningOptions(target=target)


@pytest.mark.parametrize("multiple", [True, 1.5, (8,)], ids=repr)
def test_bad_forms_of_a_multiple(multiple: object) -> None:
    with pytest.raises(OptionError, match="`round_to` must be"):
        PruningOptions(ratio=0.5, round_to=multiple)


@pytest.mark.parametrize(
    "given", [{"samples": 32.5}, {"seed": 1.5}, {"seed": True}, {"mean": ("a",)}, {"input_range": "01"}], ids=repr
)
def test_input_options_of_another_type_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"`{next(iter(given))}` must be"):
        InputOptions(**given)


def test_one_value_stands_for_one_of_several() -> None:
    assert InputOptions(mean=0.5, std=2).mean == (0.5,)  # type: ignore[arg-type]
    assert PruningOptions(include="conv*").include == ("conv*",)  # type: ignore[arg-type]
    assert RuntimeOptions(batch=np.int64(2)).batch == 2  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="`threads` must be a whole number"):
        RuntimeOptions(threads=1.5)  # type: ignore[arg-type]
