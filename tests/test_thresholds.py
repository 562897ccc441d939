"""Thresholds: what misses one, what is said of those that are kept, in every kind of report."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_cli import MLP

import onnxmerge
from onnxmerge.errors import VerificationError
from onnxmerge.evaluation.thresholds import asked_of_outputs, missed_sizes, missed_thresholds, output_checks, size_checks
from onnxmerge.options import PruningOptions, Thresholds
from onnxmerge.pipeline.fidelity_search import loss_of
from onnxmerge.results import Fidelity, OutputFidelity, Size


def output(name, fidelity=0.9, cosine=0.95, top1=None, relative=0.3, finite=True):
    return OutputFidelity(name, fidelity, 10.0, relative, relative, cosine, cosine, 0.1, 0, top1, None, finite, 10, 0)


THRESHOLDS = {
    "none": ({}, []),
    "all hold": ({"min_fidelity": 0.9, "min_cosine": 0.8, "min_top1_agreement": 0.5, "max_relative_l2": 0.3}, []),
    "fidelity": ({"min_fidelity": 0.91}, ["output 'a': fidelity 0.9 is below 0.91"]),
    "cosine of the worst": ({"min_cosine": 0.9}, ["output 'b': mean cosine 0.8 is below 0.9"]),
    "top1": ({"min_top1_agreement": 0.7}, ["output 'b': top-1 agreement 0.5 is below 0.7"]),
    "relative": ({"max_relative_l2": 0.2}, ["output 'a': mean relative L2 0.3 is above 0.2"]),
}


@pytest.mark.parametrize(("limits", "lines"), THRESHOLDS.values(), ids=THRESHOLDS.keys())
def test_thresholds(limits, lines):
    fidelity = Fidelity((output("a"), output("b", 0.95, 0.8, 0.5, 0.1)), 1, "", "")
    assert missed_thresholds(fidelity, Thresholds(**limits)) == lines


@pytest.mark.parametrize("limit", ["min_fidelity", "min_cosine"])
def test_nan_holds_no_threshold(limit):
    nan = float("nan")
    assert missed_thresholds(Fidelity((output("a", nan, nan),), 1, "", ""), Thresholds(**{limit: -10.0}))


def test_top1_without_class_scores():
    assert missed_thresholds(Fidelity((output("a"),), 1, "", ""), Thresholds(min_top1_agreement=0.5)) == [
        "top-1 agreement cannot be checked: no output looks like class scores"
    ]


BY_DEFAULT = {
    "decisions": ({"changed_decisions": 0.019}, 0.94, [("fidelity", 0.94), ("changed decisions", 0.02)], 0),
    "too many of them": ({"changed_decisions": 0.021}, 0.95, [("fidelity", 0.94), ("changed decisions", 0.02)], 1),
    "too far off": ({"changed_decisions": 0.019}, 0.93, [("fidelity", 0.94), ("changed decisions", 0.02)], 1),
    "one decision": ({"has_one_decision": True, "rows": 4, "worst_row_fidelity": 0.1}, 0.96, [("fidelity", 0.97)], 1),
    "no decisions": ({}, 0.97, [("fidelity", 0.97)], 0),
    "rows": ({"rows": 4, "worst_row_fidelity": 0.4}, 0.98, [("fidelity", 0.97), ("fidelity of the worst row", 0.5)], 1),
    "states": ({"changed_decisions": 0.01}, 0.99, [("fidelity", 0.998), ("changed decisions", 0.02)], 1),
    "rows of states": ({"rows": 4, "worst_row_fidelity": 0.4}, 0.999, [("fidelity", 0.998)], 0),
}


@pytest.mark.parametrize(("has", "kept", "asked", "missed"), BY_DEFAULT.values(), ids=BY_DEFAULT)
def test_what_compress_keeps_by_default_stands_beside_what_is_asked_for(request, has, kept, asked, missed):
    fidelity = Fidelity((replace(output("a", kept), **has),), 1, "", "", same_channel_counts=False)
    has_states = "states" in request.node.callspec.id
    (required, *beside), failures = asked_of_outputs(fidelity, Thresholds(), frozenset(), has_states=has_states)
    assert (required.measure, required.limit, required.is_required) == ("mean cosine", 0.9, True)
    assert [(check.measure, check.limit) for check in beside] == asked
    assert (sum(not check.passes for check in beside), any(check.is_required for check in beside)) == (missed, False)
    assert failures == []
    assert all(check.is_default for check in (required, *beside))
    pruning = PruningOptions(fidelity=0.998 if has_states else None, max_changed_decisions=0.02)
    assert (loss_of(fidelity.outputs, pruning) <= 1.0) == (not missed)


def test_outputs_of_all_kinds_have_their_own_defaults():
    outputs = replace(output("a", 0.95), changed_decisions=0.01), output("b", 0.98), replace(output("c"), unmeasured="it is new")
    checks, failures = asked_of_outputs(Fidelity(outputs, 1, "", ""), Thresholds(), frozenset())
    assert [(check.output, check.limit) for check in checks[1:]] == [("a", 0.94), ("a", 0.02), ("b", 0.97)]
    assert failures == ["how close output 'c' stayed could not be measured: it is new"]


@pytest.mark.parametrize("changed", [None, 0.3])
def test_decisions_that_may_change(changed):
    fidelity = Fidelity((replace(output("a"), changed_decisions=changed),), 1, "", "")
    (failure,) = asked_of_outputs(fidelity, Thresholds(), frozenset(), 0.2)[1]
    told = "output 'a': changed decisions 0.3 is above 0.2", "changed decisions cannot be checked: no output holds best classes"
    assert failure.startswith(told[changed is None])
    assert asked_of_outputs(fidelity, Thresholds(), frozenset(), 0.3)[1] == ([] if changed else [failure])


def test_a_model_that_lost_decisions_is_not_said_to_pass(run, tmp_path):
    """Though a mean cosine of 0.9, which is asked for by default, is kept."""
    onnxmerge.compress(MLP, tmp_path / "o.onnx", ratio=0.7, bench=False)
    code, out, _ = run("verify", MLP, tmp_path / "o.onnx")
    told = " ".join(out.split())
    assert code == 0
    assert "No threshold was missed, but" in told
    assert "(compress: at most 2% by default)" in told
    assert "Passed" not in told
    assert run("verify", MLP, tmp_path / "o.onnx", "--max-changed-decisions", "1%")[0] == 1
    found = onnxmerge.verify(MLP, tmp_path / "o.onnx", max_changed_decisions="30%")
    assert (found.passed, [check.measure for check in found.thresholds]) == (True, ["changed decisions"])
    assert not onnxmerge.verify(MLP, tmp_path / "o.onnx", max_changed_decisions=0.01).passed


def test_checks_hold_what_is_missed_and_what_is_not():
    fidelity = Fidelity((output("a"), output("b", 0.95, 0.8, 0.5, 0.1)), 1, "", "")
    limits = Thresholds(min_fidelity=0.9, min_cosine=0.9, min_top1_agreement=0.5, max_relative_l2=0.2)
    checks = output_checks(fidelity, limits)
    assert [(check.measure, check.output, check.value, check.passes) for check in checks] == [
        ("fidelity", "a", 0.9, True),
        ("mean cosine", "b", 0.8, False),
        ("top-1 agreement", "b", 0.5, True),
        ("mean relative L2", "a", 0.3, False),
    ]
    assert [check.passes for check in checks] == [not missed_thresholds(fidelity, Thresholds(**one)) for one in each(limits)]


def each(limits):
    """A dictionary for every threshold that is given, in the order of the checks."""
    names = ("min_fidelity", "min_cosine", "min_top1_agreement", "max_relative_l2")
    return [{name: getattr(limits, name)} for name in names]


@pytest.mark.parametrize(("limit", "passes"), [(0.5, True), (0.49, False), (0.51, True)])
def test_sizes(limit, passes):
    before, after = Size(1000, 0, 9), Size(500, 0, 9)
    limits = Thresholds(max_params=limit, max_macs=limit)
    assert [check.passes for check in size_checks(before, after, limits)] == [passes, True]
    assert len(missed_sizes(before, after, limits)) == (not passes)


KEPT = {
    "default of a smaller model": ((), "mean cosine 0.9", "(at least 0.9 by default)"),
    "changed decisions": (("--max-changed-decisions", "40%"), "changed decisions ", "(at most 40%)"),
    "default of an equal one": (("same",), "mean relative L2 0", "(at most 0.0001 by default)"),
    "fidelity": (("--min-fidelity", "50%"), "fidelity 0.", "(at least 0.5)"),
    "several": (("--min-cosine", "-1", "--max-macs", "99.5%"), "of the MACs left", "(at most 99.5%)"),
}


@pytest.mark.parametrize(("options", "measured", "limit"), KEPT.values(), ids=KEPT)
def test_what_passes_is_told_beside_its_threshold(run, tmp_path, options, measured, limit):
    onnxmerge.compress(MLP, tmp_path / "o.onnx", ratio=0.1, samples=64, bench=False)
    same = options == ("same",)
    files = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "r.json"
    reports = [word for file in files for word in ("--report", file)]
    code, out, err = run("verify", MLP, MLP if same else tmp_path / "o.onnx", *(() if same else options), *reports)
    assert (code, err) == (0, "")
    found = json.loads(files[2].read_text())
    for text in (out, files[0].read_text(), files[1].read_text(), found["verdict"]):
        told = " ".join(text.split())
        assert "Passed: fidelity" in told
        assert measured in told
        assert limit in told
    asked = [check for check in found["thresholds"] if not check["is_default"]]
    assert len(asked) == len([word for word in options if word.startswith("--")])
    assert len([check for check in found["thresholds"] if check["is_required"]]) == max(1, len(asked))


def test_a_compression_tells_them_too(tmp_path):
    given = {"ratio": 0.5, "method": "prune", "samples": 16, "bench": False, "max_macs": 0.9}
    kept = onnxmerge.compress(MLP, tmp_path / "o.onnx", min_fidelity=-5.0, **given)
    assert [(check.measure, check.passes) for check in kept.thresholds] == [("fidelity", True), ("MACs", True)]
    with pytest.raises(VerificationError) as told:
        onnxmerge.compress(MLP, tmp_path / "o.onnx", min_fidelity=1.0, **given)
    assert [(check.measure, check.passes) for check in told.value.result.thresholds] == [("fidelity", False), ("MACs", True)]


def test_an_output_that_is_not_finite_passes_nothing():
    found = Fidelity((output("a", math.nan, math.nan, finite=False),), 1, "", "")
    assert not any(check.passes for check in output_checks(found, Thresholds(min_fidelity=-np.inf, min_cosine=-1.0)))
