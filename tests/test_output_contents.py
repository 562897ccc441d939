"""What outputs are taken to hold, scores, ids, features, and how each is judged."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from test_decisions import SCORES, changed, softmax

from onnxmerge import compress, verify
from onnxmerge.evaluation.decisions import SYNTHETIC_SHARE
from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.evaluation.neighbours import Neighbours
from onnxmerge.evaluation.output_kinds import SIGMOID
from onnxmerge.options import DEFAULT_CHANGED_DECISIONS
from onnxmerge.pipeline import fidelity_search
from onnxmerge.report.sentences import content_lines
from onnxmerge.results import OutputFidelity

RNG = np.random.default_rng(0)


NO_DECISIONS = {
    "features": 0.3 * RNG.standard_normal((64, 128)),
    "always one class": np.array([[0.9, 0.1]]).repeat(8, axis=0),
    "two numbers": RNG.standard_normal((64, 2)),
    "boxes": RNG.standard_normal((64, 20, 4)),
    "a box, in pixels": RNG.uniform(0, 640, (64, 4)),
    "key points, as shares of the image": 9 * RNG.random((64, 136)),
    "classes of anchors": softmax(9 * RNG.standard_normal((4, 1917, 3))),
    "classes of pixels, channels last": softmax(9 * RNG.standard_normal((4, 24, 24, 3))),
    "map": RNG.random((8, 1, 4, 4)),
    "map of classes": softmax(RNG.standard_normal((8, 4, 4, 3))).transpose(0, 3, 1, 2),
    "class numbers": RNG.integers(0, 9, (64, 10)),
    "heat maps": softmax(-((np.arange(24) - RNG.uniform(0, 24, (64, 5, 1))) ** 2) / 8),
    "not finite": np.where(SCORES > 9.0, np.inf, SCORES),
}


@pytest.mark.parametrize("name", NO_DECISIONS)
def test_what_holds_no_decisions_for_certain(name: str) -> None:
    assert changed(NO_DECISIONS[name], NO_DECISIONS[name]) is None


HEAD = '<ir_version: 8, opset_import: ["": 20, "ai.onnx.ml": 3]> g (float[N, 64] x)'
LAYERS = "h = MatMul(x, w)  r = Relu(h)  s = MatMul(r, v)"
CONTENTS = {
    "probabilities": (f"=> (float[N, 20] y) {{ {LAYERS} y = Softmax(s) }}", "probabilities"),
    "scores": (f"=> (float[N, 20] y) {{ {LAYERS} y = Mul(s, ten) }}", "scores"),
    "a name": (f"=> (float[N, 20] imageEmbeds) {{ {LAYERS} imageEmbeds = Mul(s, ten) }}", "features"),
    "a part of that name": (f"=> (float[N, 20] embedder) {{ {LAYERS} embedder = Mul(s, ten) }}", "scores"),
    "LpNormalization": (f"=> (float[N, 20] y) {{ {LAYERS} y = LpNormalization(s) }}", "features"),
    "a length of 1": (
        f"=> (float[N, 20] y) {{ {LAYERS} q = Mul(s, s) t = ReduceSum(q, one) l = Sqrt(t) y = Div(s, l) }}",
        "features",
    ),
    "SiLU": (f"=> (float[N, 20] y) {{ {LAYERS} k = Mul(s, ten) g = Sigmoid(k) z = Mul(k, g) y = Identity(z) }}", "features"),
    "Relu": (f"=> (float[N, 20] y) {{ {LAYERS} y = Relu(s) }}", ""),
    "classes": (f"=> (int64[N] y) {{ {LAYERS} y = ArgMax<axis = 1, keepdims = 0>(s) }}", "ids"),
    "classes as floats": (f"=> (float[N, 1] y) {{ {LAYERS} a = ArgMax<axis = 1>(s) y = Cast<to = 1>(a) }}", "ids"),
    "rounded": (f"=> (int64[N, 20] y) {{ {LAYERS} k = Mul(s, ten) y = Cast<to = 7>(k) }}", ""),
    "a sigmoid": (f"=> (float[N, 1] y) {{ {LAYERS} t = ReduceSum(s, one) k = Mul(t, ten) y = Sigmoid(k) }}", "sigmoid"),
    "a sigmoid (N)": (
        f"=> (float[N] y) {{ {LAYERS} t = ReduceSum(s, one) k = Mul(t, ten) p = Sigmoid(k) y = Squeeze(p, one) }}",
        "sigmoid",
    ),
    "a share of something": (f"=> (float[N, 1] y) {{ {LAYERS} t = ReduceSum(s, one) k = Div(t, ten) y = Sigmoid(k) }}", ""),
    "a part of sigmoids": (f"=> (float[N, 1] y) {{ {LAYERS} k = Mul(s, ten) p = Sigmoid(k) y = Slice(p, zero, one, one) }}", ""),
    "sigmoids": (f"=> (float[N, 20] y) {{ {LAYERS} k = Mul(s, ten) y = Sigmoid(k) }}", ""),
    "texts": (
        f"=> (string[N] y) {{ {LAYERS} a = ArgMax<axis = 1, keepdims = 0>(s) y = ai.onnx.ml.LabelEncoder"
        '<keys_int64s = [0, 1], values_strings = ["a", "b"], default_string = "c">(a) }',
        "ids",
    ),
}


def content_model(text: str) -> onnx.ModelProto:
    """A network with decided outputs, of half of whose channels nothing much depends."""
    model, rng = parser.parse_model(f"{HEAD} {text}"), np.random.default_rng(0)
    v = rng.normal(size=(32, 20)) * np.where(np.arange(32) < 16, 1.0, 0.01)[:, np.newaxis]
    stored = {"w": rng.normal(size=(64, 32)) / 8, "v": v, "ten": np.array(10.0)}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items())
    model.graph.initializer.extend(numpy_helper.from_array(np.array([value]), name) for value, name in ((0, "zero"), (1, "one")))
    return model


@pytest.mark.usefixtures("harmless_models")
@pytest.mark.parametrize(("text", "holds"), CONTENTS.values(), ids=CONTENTS.keys())
def test_what_outputs_hold(text: str, holds: str, tmp_path: Path) -> None:
    """Only what is certain is no decision; every vector without one has its neighbours told."""
    model = content_model(text)
    result = compress(model, tmp_path / "o.onnx", ratio=0.5, method="prune", criterion="l2-norm", bench=False, samples=64)
    output = result.fidelity.worst
    assert output.holds == holds
    assert output.has_decisions == (holds in ("probabilities", "scores", "ids", "sigmoid"))
    is_number = holds == "" and "float[N, 1]" in text
    assert (output.top1_agreement is None) == (holds == "features" or "Cast<to = 7>" in text or is_number)
    is_vector = holds in ("features", "") and "int64" not in text and not is_number
    assert (output.neighbours_kept is not None) == is_vector
    if holds == "ids":
        assert output.fidelity == output.top1_agreement == 1.0 - output.relative_l2_mean
        assert output.changed_decisions == pytest.approx(SYNTHETIC_SHARE * (1.0 - output.fidelity))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)], ids=str)
def test_a_sigmoid_for_each_input_is_decided_at_a_half(shape: tuple[int, ...]) -> None:
    def measured(p: np.ndarray, q: np.ndarray) -> OutputFidelity:
        batches = (
            (len(a), {"y": a.reshape(shape)}, {"y": b.reshape(shape)})
            for a, b in zip(np.split(p, 4), np.split(q, 4), strict=True)
        )
        (output,), _ = compare_outputs(batches, ["y"], kinds={"y": SIGMOID})
        return output

    scores = 6.0 * RNG.standard_normal(200)
    p, q = (1.0 / (1.0 + np.exp(-each)) for each in (scores, scores + 2.0 * RNG.standard_normal(200)))
    found = measured(p, q)
    assert found.changed_decisions == pytest.approx(np.mean(np.abs(2 * p - 1) * np.abs(p - q)))
    assert found.top1_agreement == np.mean((p > 0.5) == (q > 0.5)) < 1.0
    for numbers in (np.linspace(0.0, 1.0, 200), np.linspace(0.0, 1.2, 200), np.linspace(-5.0, 5.0, 200)):
        regression = measured(numbers, numbers)
        assert (regression.holds, regression.changed_decisions, regression.top1_agreement) == ("", None, None)
    same = measured(np.full(200, 0.99), q)
    assert (same.has_one_decision, same.changed_decisions) == (True, None)
    lost = measured(p, np.where(np.arange(200) == 0, np.nan, p))
    assert lost.changed_decisions == pytest.approx(abs(2 * p[0] - 1) / 200)
    assert lost.top1_agreement == 199 / 200


@pytest.mark.parametrize("name", ["a sigmoid", "a sigmoid (N)"])
def test_labels_of_a_sigmoid(name: str, tmp_path: Path) -> None:
    model, inputs = content_model(CONTENTS[name][0]), np.random.default_rng(1).normal(size=(80, 64)).astype(np.float32)
    onnx.save(model, tmp_path / "m.onnx")
    (p,) = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": inputs})
    np.save(tmp_path / "labels.npy", (p.ravel() > 0.5).astype(np.int64) ^ (np.arange(80) < 8))
    result = verify(tmp_path / "m.onnx", tmp_path / "m.onnx", calibration=inputs, labels=tmp_path / "labels.npy")
    assert result.fidelity.accuracy is not None
    assert result.fidelity.accuracy.candidate == 0.9
    assert any("decided at 0.5" in line for line in content_lines(result.fidelity))


@pytest.mark.usefixtures("harmless_models")
def test_a_model_that_gives_classes_shrinks_by_default_as_one_that_gives_scores(tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(400, 64)).astype(np.float32)
    for name in ("scores", "classes", "a sigmoid"):
        result = compress(content_model(CONTENTS[name][0]), tmp_path / "o.onnx", calibration=inputs, bench=False)
        assert result.after.macs < 0.7 * result.before.macs
        assert result.fidelity.worst.changed_decisions <= DEFAULT_CHANGED_DECISIONS


def test_neighbours_against_their_definition() -> None:
    before = RNG.standard_normal((40, 24)).astype(np.float32)
    after = before + RNG.standard_normal(before.shape).astype(np.float32)
    kept = []
    for number in range(40):
        cosines = [
            [v @ y / np.linalg.norm(v) / np.linalg.norm(y) for v in rows] for rows in (before, after) for y in [rows[number]]
        ]
        orders = [[each for each in np.argsort(row)[::-1] if each != number] for row in cosines]
        kept.append(orders[0][0] in orders[1][:5])
    found = Neighbours()
    for start in range(0, 40, 7):
        found.add(before[start : start + 7], after[start : start + 7])
    assert 0.2 < np.mean(kept) < 1.0
    assert found.kept() == pytest.approx(np.mean(kept))


def test_vectors_of_several_lengths_have_no_neighbours() -> None:
    """Such as sounds, one in a call."""
    parts = [RNG.standard_normal((1, 100 + number)) for number in range(20)]
    (found,), _ = compare_outputs([(1, {"y": part}, {"y": part}) for part in parts], ["y"])
    assert found.neighbours_kept is None
    assert found.fidelity == 1.0


@pytest.mark.usefixtures("harmless_models")
def test_what_was_asked_for_is_told_where_no_candidate_was_worth_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity_search, "_worth_building", lambda *_, **__: None)
    result = compress(content_model(CONTENTS["a name"][0]), tmp_path / "o.onnx", bench=False, samples=32)
    assert "no smaller model was found that keeps a fidelity of 0.97" in result.warnings
