"""Fidelity: against formulas written out on whole arrays, and every kind of failure seen."""

import math
import re

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxmerge.errors import InputError, VerificationError
from onnxmerge.evaluation.fidelity import as_array, compare
from onnxmerge.evaluation.output_metrics import OutputMoments
from onnxmerge.evaluation.thresholds import missed_thresholds
from onnxmerge.execution.sessions import open_session
from onnxmerge.options import Thresholds
from onnxmerge.report.documents import as_json
from onnxmerge.results import Accuracy

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
LINEAR = "g (float[N,4] x) => (float[N,K] y) { y = MatMul(x, w) }"
BLAS_NOISE = 1e-6


def session(text, **weights):
    model = parser.parse_model(HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return open_session(model.SerializeToString(), optimise=False, threads=1)


def linear(weight):
    return session(LINEAR, w=np.asarray(weight, np.float32))


def batches(array, size=7, name="x"):
    return [{name: array[start : start + size]} for start in range(0, len(array), size)]


@pytest.fixture
def inputs():
    return np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


@pytest.fixture
def weight():
    return np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)


@pytest.mark.parametrize(("size", "at_once"), [(1, 1 << 15), (7, 1 << 15), (50, 1 << 15), (50, 30), (7, 15)])
def test_the_documented_formulas(inputs, weight, size, at_once, monkeypatch):
    monkeypatch.setattr("onnxmerge.evaluation.fidelity.DECIDED_AT_ONCE", at_once)
    monkeypatch.setattr("onnxmerge.evaluation.output_metrics.BLOCK_NUMBERS", at_once)
    other = weight + 1.5 * np.random.default_rng(2).standard_normal(weight.shape).astype(np.float32)
    found = compare(linear(weight), linear(other), batches(inputs, size), "noise")
    output = found.outputs[0]
    y, z = (inputs.astype(np.float64) @ matrix.astype(np.float64) for matrix in (weight, other))
    fidelity = 1 - ((y - z) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    relative = np.linalg.norm(y - z, axis=1) / np.linalg.norm(y, axis=1)
    cosine = (y * z).sum(axis=1) / np.linalg.norm(y, axis=1) / np.linalg.norm(z, axis=1)
    best = z.argmax(axis=1)
    five = np.argsort(-y, axis=1)[:, :5]
    expected = {
        "fidelity": fidelity,
        "sqnr_db": -10 * math.log10(1 - fidelity),
        "relative_l2_mean": relative.mean(),
        "relative_l2_worst": relative.max(),
        "cosine_mean": cosine.mean(),
        "cosine_worst": cosine.min(),
        "max_abs_error": np.abs(y - z).max(),
        "worst_input": int(relative.argmax()),
        "top1_agreement": (best == y.argmax(axis=1)).mean(),
        "top5_agreement": (five == best[:, None]).any(axis=1).mean(),
    }
    assert {name: getattr(output, name) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert output.finite
    assert (found.input_count, found.input_description, found.provider) == (50, "noise", "CPUExecutionProvider")


def test_a_large_mean_costs_no_digits(inputs):
    offset = session("g (float[N,4] x) => (double[N,4] y) { d = Cast <to = 11> (x)\n y = Add(d, w) }", w=np.full(4, 1e7))
    noisy = session("g (float[N,4] x) => (double[N,4] y) { d = Cast <to = 11> (x)\n y = Add(d, w) }", w=np.full(4, 1e7 + 0.5))
    y = inputs.astype(np.float64)
    expected = 1 - 0.25 * y.size / ((y - y.mean(axis=0)) ** 2).sum()
    assert compare(offset, noisy, batches(inputs), "").outputs[0].fidelity == pytest.approx(expected, rel=1e-6)


CHANGES = {
    "same": (lambda w: w, 1.0, 1.0, 1.0),
    "wrong sign": (lambda w: -w, -3.0, -1.0, 0.0),
    "all zero": (lambda w: 0 * w, 0.0, 0.0, None),
    "twice": (lambda w: 2 * w, 0.0, 1.0, 1.0),
    "outputs swapped": (lambda w: w[:, ::-1], None, None, 0.0),
}


@pytest.mark.parametrize(("change", "fidelity", "cosine", "top1"), CHANGES.values(), ids=CHANGES.keys())
def test_known_changes(inputs, weight, change, fidelity, cosine, top1):
    both = np.concatenate([inputs, -inputs])  # mean zero, so that the wrong sign has fidelity -3 exactly
    output = compare(linear(weight), linear(change(weight)), batches(both), "").outputs[0]
    if fidelity is not None:
        assert output.fidelity == pytest.approx(fidelity, abs=BLAS_NOISE)
        assert output.cosine_mean == pytest.approx(cosine, abs=BLAS_NOISE)
    else:
        assert output.fidelity < 0.5
    assert top1 is None or output.top1_agreement == top1


def test_a_lost_candidate_has_no_nan_in_its_figures(inputs, weight):
    broken = weight.copy()
    broken[0, 3] = np.nan
    found = compare(linear(weight), linear(broken), batches(inputs), "")
    output = found.outputs[0]
    assert not output.finite
    assert (output.fidelity, output.cosine_mean, output.top1_agreement) == (-math.inf, 0.0, 0.0)
    assert not any(isinstance(value, float) and math.isnan(value) for value in as_json(output).values())
    assert missed_thresholds(found, Thresholds()) == ["output 'y' holds NaN or infinity"]


def test_one_lost_input_is_the_worst(inputs):
    text = "g (float[N,4] x) => (float[N,4] y) { y = Div(x, x) }"
    kind = session("g (float[N,4] x) => (float[N,4] y) { one = Div(x, x)\n n = IsNaN(one)\n y = Where(n, x, one) }")
    inputs[31, 2] = 0
    output = compare(kind, session(text), batches(inputs), "").outputs[0]
    assert (output.finite, output.worst_input) == (False, 31)
    assert output.top1_agreement == pytest.approx(49 / 50)


def test_where_the_reference_is_not_finite_nothing_is_compared_and_the_output_fails(inputs):
    text = "g (float[N,4] x) => (float[N,4] y) { l = Log(x)\n y = Mul(l, w) }"
    same = compare(session(text, w=np.float32([1])), session(text, w=np.float32([1])), batches(inputs), "").outputs[0]
    assert (same.finite, same.fidelity, same.cosine_worst) == (True, 1.0, pytest.approx(1.0))
    assert (same.compared, same.left_out) == ((inputs > 0).sum(), (inputs <= 0).sum())
    assert same.defect == f"output 'y' of the reference holds NaN or infinity: {same.left_out} of 200 values"
    half = compare(session(text, w=np.float32([1])), session(text, w=np.float32([0.5])), batches(inputs), "").outputs[0]
    y = np.log(np.where(inputs > 0, inputs, np.nan).astype(np.float64))
    expected = 1 - 0.25 * np.nansum(y**2) / np.nansum((y - np.nanmean(y, axis=0)) ** 2)
    assert half.fidelity == pytest.approx(expected, rel=1e-5)


CONSTANT = "g (float[N,4] x) => (float[1,3] y, float[N,4] z) { y = Identity(w)\n z = Relu(x) }"


@pytest.mark.parametrize(
    ("reference", "candidate", "low", "high"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], 1.0, 1.0),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3000001], 0.999, 1.0),
        ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], -math.inf, 0.0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1.0, 1.0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.1], -math.inf, -math.inf),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.2], 0.99, 0.999),
    ],
    ids=["equal", "rounding", "swapped", "zero", "not zero", "all the same"],
)
def test_an_output_that_does_not_vary_over_the_inputs(inputs, reference, candidate, low, high):
    pair = (session(CONSTANT, w=np.array([values], np.float32)) for values in (reference, candidate))
    output = compare(*pair, batches(inputs), "").outputs[0]
    assert low <= output.fidelity <= high
    assert output.top1_agreement is None


def test_variation_by_rounding_alone_is_none(inputs):
    text = "g (float[N,4] x) => (float[N,4] y) { small = Mul(x, s)\n y = Add(small, w) }"
    values = np.array([0.1, 0.2, 0.3, 0.7], np.float32)
    pair = (session(text, w=values, s=np.float32([size])) for size in (5e-8, 0))
    assert compare(*pair, batches(inputs), "").outputs[0].fidelity == pytest.approx(1.0, abs=1e-9)


NUMBERS = {
    "integers": ("g (float[N,4] x) => (int64[N,1] y) { y = ArgMax <axis = 1> (x) }", 1.0),
    "booleans": ("g (float[N,4] x) => (bool[N,4] y) { z = Sub(x, x)\n y = Greater(x, z) }", 1.0),
    "float16": ("g (float[N,4] x) => (float16[N,4] y) { y = Cast <to = 10> (x) }", 1.0),
    "sequence": ("g (float[N,4] x) => (seq(float[N,4]) y) { y = SplitToSequence <axis = 1> (x) }", 1.0),
    "string": ("g (float[N,4] x) => (string[N,4] y) { y = Cast <to = 8> (x) }", 1.0),
    "a scalar": ("g (float[N,4] x) => (float y) { y = ReduceMean <keepdims = 0> (x) }", 1.0),
}


@pytest.mark.parametrize(("text", "fidelity"), NUMBERS.values(), ids=NUMBERS.keys())
def test_other_kinds_of_outputs(inputs, text, fidelity):
    output = compare(session(text), session(text), batches(inputs), "").outputs[0]
    assert (output.fidelity, output.finite) == (fidelity, True)
    moved = session(text.replace("{", "{ x = Neg(x0)\n").replace("float[N,4] x)", "float[N,4] x0)", 1))
    flipped = [{"x": batch["x"], "x0": batch["x"]} for batch in batches(inputs)]
    assert compare(_Taking(session(text), "x"), _Taking(moved, "x0"), flipped, "").outputs[0].fidelity < 0.6


class _Taking:
    """A session that takes only one of the feeds."""

    def __init__(self, inner, name):
        self.inner, self.name = inner, name
        self.output_names, self.label = inner.output_names, inner.label
        self.provider, self.handle, self.in_float32 = inner.provider, inner.handle, inner.in_float32

    def run(self, feeds):
        return self.inner.run({self.name: feeds[self.name]})


DIFFERENT = {
    "shape": (
        "g (float[N,4] x) => (float[N,M] y) { y = Concat <axis = 1> (x, x) }",
        r"float32 \(7, 4\), .* \(7, 8\); .* lists",
    ),
    "type": ("g (float[N,4] x) => (double[N,4] y) { y = Cast <to = 11> (x) }", r"float32 \(7, 4\), .* float64 \(7, 4\)"),
}


@pytest.mark.parametrize(("text", "why"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_outputs_that_cannot_be_compared_fail_and_say_why(inputs, text, why):
    reference = session("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    found = compare(reference, session(text), batches(inputs), "")
    assert (found.worst.fidelity, found.worst.compared, found.worst.relative_l2_quantiles) == (-math.inf, 0, ())
    (failure,) = missed_thresholds(found, Thresholds())
    assert re.fullmatch(f"how close output 'y' stayed could not be measured: the reference gives {why}.*", failure)


MISMATCHES = {
    "name": ("g (float[N,4] x) => (float[N,4] z) { z = Relu(x) }", "has y; .* has z"),
    "one more": ("g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Relu(x)\n z = Neg(x) }", "has y; .* has y, z"),
}


@pytest.mark.parametrize(("text", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_outputs_that_changed(inputs, text, message):
    reference = session("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    with pytest.raises(VerificationError, match=message):
        compare(reference, session(text), batches(inputs), "")


NOTHING = {
    "all left out": (
        "g (float[N,4] x) => (float[N,4] y) { z = Sub(x, x)\n y = Div(z, z) }",
        ": 200 of 200 values",
    ),
    "no elements": ("g (float[N,4] x) => (float[N,0] y) { y = Slice(x, begin, end, axis) }", "nothing was compared"),
    "no strings": (
        "g (float[N,4] x) => (string[N,0] y) { s = Cast <to = 8> (x)\n y = Slice(s, begin, end, axis) }",
        "nothing was",
    ),
}


@pytest.mark.parametrize(("text", "line"), NOTHING.values(), ids=NOTHING.keys())
def test_a_comparison_of_nothing_is_no_success(inputs, text, line):
    arrays = {"begin": np.array([2]), "end": np.array([2]), "axis": np.array([1])} if "begin" in text else {}
    found = compare(session(text, **arrays), session(text, **arrays), batches(inputs), "")
    assert found.outputs[0].fidelity == -math.inf
    assert [line in failure for failure in missed_thresholds(found, Thresholds())] == [True]


def test_inputs_that_are_not_finite_fail(inputs, weight):
    inputs[7, 1] = np.inf
    relu = session("g (float[N,4] x) => (float[N,4] y) { y = Clip(x, low, high) }", low=np.float32(0), high=np.float32(1))
    assert missed_thresholds(compare(relu, relu, batches(inputs), ""), Thresholds()) == ["input 'x' holds NaN or infinity"]


def test_no_batches(weight):
    with pytest.raises(InputError, match="no check inputs"):
        compare(linear(weight), linear(weight), [], "")


def test_scores_with_spatial_axes(inputs, weight):
    text = "g (float[N,4] x) => (float[N,8,1,1] y) { m = MatMul(x, w)\n y = Unsqueeze(m, axes) }"
    axes = np.array([2, 3])
    pair = (session(text, w=matrix, axes=axes) for matrix in (weight, -weight))
    output = compare(*pair, batches(inputs), "").outputs[0]
    assert output.top1_agreement == 0.0
    assert output.top5_agreement is not None
    few = compare(linear(weight[:, :4]), linear(weight[:, :4]), batches(inputs), "").outputs[0]
    assert (few.top1_agreement, few.top5_agreement) == (1.0, None)


def test_maps_become_rows():
    assert as_array([{"b": 2.0, "a": 1.0}, {"a": 3.0, "b": 4.0}]).tolist() == [[1, 2], [3, 4]]


LABELLED = Accuracy(pytest.approx(0.9), pytest.approx(0.9))


def test_accuracy(inputs, weight):
    labels = (inputs @ weight).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 8
    assert compare(linear(weight), linear(weight), batches(inputs), "", labels).accuracy == LABELLED
    classes = session("g (float[N,4] x) => (int64[N] y) { m = MatMul(x, w)\n y = ArgMax <axis = 1, keepdims = 0> (m) }", w=weight)
    assert compare(classes, classes, batches(inputs), "", labels).accuracy == LABELLED
    with pytest.raises(InputError, match="49 labels do not fit 50 inputs"):
        compare(linear(weight), linear(weight), batches(inputs), "", labels[:49])
    with pytest.raises(InputError, match="no output of class scores"):
        compare(linear(weight[:, :1]), linear(weight[:, :1]), batches(inputs), "", labels)
    with pytest.raises(InputError, match="the labels hold class 7, but the model has 2 classes"):
        compare(linear(weight[:, :2]), linear(weight[:, :2]), batches(inputs), "", labels)


# how sure it is


@pytest.mark.parametrize(
    ("count", "batch", "spread", "widest"), [(24, 24, 0.3, 4.5), (64, 16, 0.3, 2.5), (24, 1, 0.3, 4.5), (64, 64, 0.8, 10)]
)
def test_the_interval_covers_the_fidelity_on_other_inputs(count, batch, spread, widest):
    """Errors that grow with the input, and a few large ones, as those of networks; with a spread of 0.8 a few have
    much of the sum."""
    rng = np.random.default_rng(5)
    reference = rng.standard_normal((400 * count, 4)) * np.exp(0.3 * rng.standard_normal((400 * count, 1)))
    candidate = reference + 0.1 * reference * np.exp(spread * rng.standard_normal((400 * count, 1))) * rng.standard_normal((1, 4))
    true = 1 - ((candidate - reference) ** 2).sum() / ((reference - reference.mean(axis=0)) ** 2).sum()
    covered, lowest = [], []
    for start in range(0, 400 * count, count):
        moments = OutputMoments("y")
        for first in range(start, start + count, batch):
            moments.add(reference[first : first + batch], candidate[first : first + batch], first - start, scores=False)
        found = moments.result()
        assert found.fidelity_low < found.fidelity < found.fidelity_high < 1
        covered.append(found.fidelity_low <= true <= found.fidelity_high)
        lowest.append(found.fidelity_low)
    assert np.mean(covered) > 0.92
    assert 1 - np.median(lowest) < widest * (1 - true)


@pytest.mark.parametrize("change", [0.0, 1e-15, np.nan])
def test_no_interval_where_nothing_differs_or_is_not_finite(change):
    moments = OutputMoments("y")
    values = np.random.default_rng(0).standard_normal((8, 3))
    moments.add(values, values + change, 0, scores=False)
    assert (moments.result().fidelity_low, moments.result().fidelity_high) == (None, None)
