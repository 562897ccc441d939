"""Changed decisions: the measure against its formula and against what a user counts, and the searches that hold it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxmerge import compress, verify
from onnxmerge.errors import OptionError
from onnxmerge.evaluation.decisions import SYNTHETIC_SHARE, ChangedDecisions
from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.options import DECIDED_FIDELITY, DEFAULT_CHANGED_DECISIONS, DEFAULT_FIDELITY, PruningOptions
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.compression_warnings import _no_decisions
from onnxmerge.pipeline.fidelity_search import asked_of, loss_of
from onnxmerge.results import Fidelity, OutputFidelity
from onnxmerge.results.fidelity_warnings import constant_outputs, lost_parts, unsure_decisions

DIGITS = np.load(Path(__file__).parents[1] / "models" / "digits.npz")
INPUTS = ((DIGITS["images"][:128] / 255.0 - 0.3054) / 0.3758).astype(np.float32)
RNG = np.random.default_rng(0)
SCORES = 4.0 * RNG.standard_normal((200, 6))
SURE, TOSS_UP = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]), np.array([[0.5, 0.49, 0.01], [0.01, 0.5, 0.49]])


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def changed(reference: np.ndarray, candidate: np.ndarray, *, synthetic: bool = False, batch: int = 16) -> float | None:
    sums = ChangedDecisions()
    for start in range(0, len(reference), batch):
        sums.add(reference[start : start + batch], candidate[start : start + batch])
    return sums.share(len(reference), synthetic=synthetic)


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_the_formula(batch: int) -> None:
    other = SCORES + RNG.standard_normal(SCORES.shape)
    p, q = softmax(SCORES), softmax(other)
    lead = np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2]
    expected = np.mean(lead * 0.5 * np.abs(p - q).sum(axis=1))
    flips = np.mean(p.argmax(axis=1) != q.argmax(axis=1))
    for reference, candidate in ((SCORES, other), (p, q), (SCORES[:, :, None, None], other[:, :, None, None])):
        assert changed(reference, candidate, batch=batch) == pytest.approx(expected, rel=1e-9)
        assert changed(reference, candidate, batch=batch, synthetic=True) == pytest.approx(SYNTHETIC_SHARE * flips)


@pytest.mark.parametrize(("sureness", "widest"), [(4.0, 2.0), (40.0, 10.0)], ids=["doubtful", "nearly all sure"])
def test_the_interval_covers_what_other_inputs_give(sureness: float, widest: float) -> None:
    scores = sureness * RNG.standard_normal((400 * 64, 6))
    p, q = softmax(scores), softmax(scores + RNG.standard_normal(scores.shape))
    true, covered, highest = changed(p, q, batch=len(p)), [], []
    assert true is not None
    for start in range(0, len(p), 64):
        sums = ChangedDecisions()
        sums.add(p[start : start + 64], q[start : start + 64])
        low, high = sums.interval(64, synthetic=False)
        assert low is not None
        assert high is not None
        covered.append(low <= true <= high)
        highest.append(high)
    assert np.mean(covered) > 0.9
    assert np.median(highest) < widest * true
    assert sums.interval(64, synthetic=True) == (None, None)


def test_the_interval_covers_rare_inputs_that_break() -> None:
    """Of a sure classifier that hardly changes but for 3 % of the inputs, which few dozen inputs may not hold at all."""
    rng, count = np.random.default_rng(0), 38
    classes, breaks = rng.integers(0, 6, 400 * count), rng.random(400 * count) < 0.03
    p = softmax(25.0 * np.eye(6)[classes])
    q = softmax(25.0 * np.eye(6)[(classes + breaks) % 6] + 0.05 * rng.standard_normal(p.shape))
    true, covered = changed(p, q, batch=len(p)), []
    for start in range(0, len(p), count):
        sums = ChangedDecisions()
        sums.add(p[start : start + count], q[start : start + count])
        low, high = sums.interval(count, synthetic=False)
        covered.append(low <= true <= high)  # type: ignore[operator]
    assert np.mean(covered) > 0.94


def test_ids_that_all_stay_may_change_on_other_inputs() -> None:
    """As many as would be missed by chance once in forty times, the rule of Clopper and Pearson."""
    sums = ChangedDecisions(holds="ids")
    sums.add(np.arange(38) % 5, np.arange(38) % 5)
    low, high = sums.interval(38, synthetic=False)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 38), rel=0.1)
    assert ChangedDecisions().interval(38, synthetic=False) == (None, None)


def test_few_inputs_of_a_sure_classifier_cannot_tell_that_few_decisions_change() -> None:
    """One network changed 0.4 % on 38 inputs, nearly all of them sure, and 1.3 % on 300 others."""
    rng = np.random.default_rng(0)
    scores = 40.0 * rng.standard_normal((38, 6))
    values = {"y": softmax(scores)}, {"y": softmax(scores + 0.3 * rng.standard_normal(scores.shape))}
    fidelity = Fidelity(*compare_outputs([(38, *values)], ["y"]), "38 of 150 calibration inputs", "CPU")
    (told,) = unsure_decisions(fidelity, 0.02)
    assert re.search(r"on 38 inputs [01]\.\d% .* up to \d+\.\d%, and 2\.0% was allowed", told)
    assert not unsure_decisions(fidelity, None)
    assert not unsure_decisions(fidelity, 0.2)


def test_a_sure_decision_counts_and_a_toss_up_hardly() -> None:
    assert changed(SURE, SURE) == 0.0
    assert changed(SURE, SURE[::-1]) == pytest.approx(0.97 * 0.97)
    assert changed(TOSS_UP, TOSS_UP[:, [1, 0, 2]]) < 0.01  # type: ignore[operator]
    assert changed(SURE, np.full_like(SURE, np.nan)) == pytest.approx(0.97)


def test_one_changed_step_changes_a_sequence() -> None:
    steps = np.stack([SURE, SURE[::-1]] * 5, axis=1)
    other = steps.copy()
    other[:, 3] = other[:, 3, [1, 0, 2]]
    assert changed(steps, other) == pytest.approx(0.97 * 0.97)
    assert changed(steps, other, synthetic=True) == pytest.approx(SYNTHETIC_SHARE / 10)


@pytest.mark.parametrize("bias", [0.0, 20.0])
def test_one_decision_for_all_inputs_is_warned_of(bias: float) -> None:
    """A figure that looks at decisions is missing then, and a fidelity of scores that hardly differ says little."""
    scores = SCORES + bias * np.eye(6)[2]
    outputs, count = compare_outputs([(len(scores), {"y": softmax(scores)}, {"y": softmax(scores + 0.1)})], ["y"])
    assert (outputs[0].changed_decisions is None) == (bias > 0.0)
    (warning,) = constant_outputs(Fidelity(outputs, count, "inputs", "CPU")) or [""]
    assert ("decided the same for all inputs" in warning) == (bias > 0.0)


@pytest.mark.parametrize(
    ("offset", "inputs", "warned"), [(99.0, "synthetic", True), (9.0, "synthetic", False), (99.0, "mine", False)]
)
def test_outputs_that_hardly_differ_between_synthetic_inputs_are_warned_of(offset: float, inputs: str, warned: bool) -> None:
    values = offset + 0.5 * RNG.standard_normal((64, 2))
    outputs, count = compare_outputs([(32, {"y": part}, {"y": part}) for part in np.split(values, 2)], ["y"])
    assert outputs[0].variation == pytest.approx(np.sqrt(np.var(values, axis=0).sum() / np.mean(values**2, axis=0).sum()))
    found = constant_outputs(Fidelity(outputs, count, f"64 {inputs} inputs", "CPU"))
    assert [text.partition(" (")[0] for text in found] == ["outputs hardly differ between the synthetic inputs"] * warned


def test_sequences_over_many_classes_are_decisions() -> None:
    steps = softmax(4.0 * RNG.standard_normal((64, 5, 24)))
    assert changed(steps, steps) == 0.0


def output(fidelity: float, changed_decisions: float | None) -> OutputFidelity:
    others = ("y", fidelity, 20.0, 0.1, 0.1, 0.9, 0.9, 0.1, 0, None, None, True, 10, 0)
    return OutputFidelity(*others, changed_decisions=changed_decisions)


@pytest.mark.parametrize(
    ("asked", "passing", "failing"),
    [
        ({}, (DECIDED_FIDELITY, 0.02), (0.99, 0.0201)),
        ({}, (DECIDED_FIDELITY, 0.0), (DECIDED_FIDELITY - 0.001, 0.0)),
        ({}, (DEFAULT_FIDELITY, None), (DEFAULT_FIDELITY - 0.001, None)),
        ({"max_changed_decisions": "5%"}, (0.95, 0.05), (0.95, 0.051)),
        ({"max_changed_decisions": 0.05, "fidelity": 0.5}, (0.5, 0.05), (0.49, 0.0)),
        ({"fidelity": 0.5}, (0.5, 0.9), (0.49, 0.0)),
        ({"max_changed_decisions": 0}, (DECIDED_FIDELITY, 0.0), (0.99, 0.001)),
    ],
    ids=str,
)
def test_what_a_search_allows(asked: dict[str, Any], passing: tuple[float, float], failing: tuple[float, float]) -> None:
    pruning = PruningOptions(**asked).sized()
    assert pruning.is_searched
    assert loss_of([output(*passing)], pruning) == pytest.approx(1.0)
    assert loss_of([output(*failing), output(1.0, 0.0)], pruning) > 1.0


def test_what_was_asked_for_in_words() -> None:
    classes, features = output(0.9, 0.5), output(0.9, None)
    default = PruningOptions().sized()
    assert asked_of(default, [classes]) == "a fidelity of 0.94 and all but 2% of the decisions"
    assert asked_of(default, [features]) == "a fidelity of 0.97"
    assert asked_of(PruningOptions(fidelity=0.9), [classes]) == "a fidelity of 0.9"
    assert asked_of(PruningOptions(max_changed_decisions=0), [classes]) == "a fidelity of 0.94 and all of the decisions"


def test_a_share_of_decisions_that_are_not_there_is_told() -> None:
    def told(changed_decisions: float | None, **asked: Any) -> list[str]:
        options = CompressOptions.from_keywords(asked)
        sized = replace(options, pruning=options.pruning.sized())
        return _no_decisions(Fidelity((output(0.98, changed_decisions),), 64, "inputs", "CPU"), sized)

    (warning,) = told(None, max_changed_decisions=0.05)
    assert warning.endswith("so that a fidelity of 0.97 was kept in place of `max_changed_decisions`")
    assert not told(0.01, max_changed_decisions=0.05)
    assert not told(None)
    assert not told(None, fidelity=0.9)


@pytest.mark.parametrize("shape", [(64, 3, 40), (64, 40, 3), (64, 3, 5, 8)])
def test_rows_that_vary_little_beside_others_are_judged_by_themselves(shape: tuple[int, ...]) -> None:
    """Boxes in pixels, scores, and a row that is the same for all inputs; the candidate loses the scores."""
    axis = shape.index(3)
    boxes, scores, constant = (scale * RNG.standard_normal((64, 40)) for scale in (100.0, 0.01, 0.0))
    reference, candidate = (
        np.moveaxis(np.stack(rows, axis=1).reshape(64, 3, *np.delete(shape[1:], axis - 1)), 1, axis)
        for rows in ([boxes, scores, constant + 7.0], [boxes + 1.0, 0.3 * scores, constant + 7.0])
    )
    halves = zip(np.split(reference, 2), np.split(candidate, 2), strict=True)
    (found,), count = compare_outputs([(32, {"y": one}, {"y": other}) for one, other in halves], ["y"])
    assert (found.rows, found.lost_rows) == (2, int(found.worst_row_fidelity < 0.5))
    assert found.worst_row_fidelity == pytest.approx(1 - 0.49 * np.sum(scores**2) / np.sum((scores - scores.mean(0)) ** 2))
    assert found.fidelity > 0.999
    told = lost_parts(Fidelity((replace(found, lost_rows=1),), count, "inputs", "CPU"))
    assert told[0].startswith("more than half of what 1 of the 2 rows of 'y' tell is lost, ")
    assert not lost_parts(Fidelity((replace(found, lost_rows=0),), count, "inputs", "CPU"))


def test_the_default_loses_no_row_for_others() -> None:
    default, lost = PruningOptions().sized(), replace(output(0.99, None), rows=9, lost_rows=1, worst_row_fidelity=0.4)
    assert loss_of([lost], default) == pytest.approx(1.2)
    assert asked_of(default, [lost]) == "a fidelity of 0.97 (0.5 in every row)"
    assert loss_of([lost], PruningOptions(fidelity=0.9)) == pytest.approx(0.1)
    assert loss_of([replace(lost, changed_decisions=0.01)], default) < 1.0
    assert not lost_parts(Fidelity((replace(lost, has_one_decision=True),), 64, "inputs", "CPU"))


BOTH = {"max_changed_decisions": 0.1, "fidelity": 0.8}


def test_the_default_keeps_decisions(tmp_path: Path, models_folder: Path) -> None:
    model, left = models_folder / "digits-mlp.onnx", []
    for asked, most, least in (({}, DEFAULT_CHANGED_DECISIONS, DECIDED_FIDELITY), (BOTH, 0.1, 0.8)):
        result = compress(model, tmp_path / "o.onnx", calibration=INPUTS, bench=False, threads=1, **asked)
        assert result.fidelity is not None
        worst = result.fidelity.worst
        assert worst.changed_decisions is not None
        assert worst.changed_decisions <= most
        assert worst.fidelity >= least
        left.append(result.after.parameters)
    assert result.before.parameters > left[0] > left[1]
    found = verify(model, tmp_path / "o.onnx", calibration=INPUTS)
    assert 0.0 < found.fidelity.worst.changed_decisions < 0.1  # type: ignore[operator]


@pytest.mark.parametrize("value", [1, "x", "100%", -0.1])
def test_a_share_that_is_none(value: Any) -> None:
    with pytest.raises(OptionError, match="`max_changed_decisions` must be at least 0 and below 1, such as"):
        PruningOptions(max_changed_decisions=value)


def test_none_of_the_decisions_may_change(tmp_path: Path) -> None:
    """What goes without a trace goes: of 64 channels one half are multiples of the others."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(32, 32)), 3.0 * rng.normal(size=(64, 10))
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 32] x) => (float[N, 10] y)'
        "{h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)}"
    )
    stored = (("w", np.hstack([w, 1.7 * w])), ("v", v))
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored)
    given = {"calibration": rng.normal(size=(200, 32)).astype(np.float32)}
    result = compress(model, tmp_path / "o.onnx", max_changed_decisions="0%", bench=False, **given)
    assert result.fidelity is not None
    assert (result.fidelity.worst.changed_decisions, result.after.macs < result.before.macs) == (0.0, True)
    assert verify(model, tmp_path / "o.onnx", max_changed_decisions=0, **given).passed
    compress(model, tmp_path / "o.onnx", ratio=0.8, bench=False, **given)
    (failure,) = verify(model, tmp_path / "o.onnx", max_changed_decisions=0, **given).failures
    assert failure.endswith(" is above 0")


def test_rounding_changes_no_decision() -> None:
    p = softmax(SCORES).astype(np.float32)
    assert changed(p, np.nextafter(p, np.float32(1.0))) == 0.0
    assert changed(p, p * (1.0 + 1e-3 * RNG.standard_normal(p.shape))) > 0.0  # type: ignore[operator]


def test_what_speaks_against_it() -> None:
    with pytest.raises(OptionError, match="`ratio` and `max_changed_decisions` both say how small the model becomes"):
        PruningOptions(max_changed_decisions=0.02, ratio=0.5)
    assert PruningOptions(max_changed_decisions=0.02, minimize="macs").is_searched
