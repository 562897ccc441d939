"""What outputs are taken to hold, scores, ids, features, and how each is judged."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from test_decisions import SCORES, changed, softmax

from onnxmerge import compress
from onnxmerge.evaluation.decisions import SYNTHETIC_SHARE
from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.evaluation.neighbours import Neighbours
from onnxmerge.options import DEFAULT_CHANGED_DECISIONS
from onnxmerge.pipeline import fidelity_search

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
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return model


@pytest.mark.usefixtures("harmless_models")
@pytest.mark.parametrize(("text", "holds"), CONTENTS.values(), ids=CONTENTS.keys())
def test_what_outputs_hold(text: str, holds: str, tmp_path: Path) -> None:
    """Only what is certain is no decision; every vector without one has its neighbours told."""
    model = content_model(text)
    result = compress(model, tmp_path / "o.onnx", ratio=0.5, method="prune", criterion="l2-norm", bench=False, samples=64)
    output = result.fidelity.worst
    assert output.holds == holds
    assert output.has_decisions == (holds in ("probabilities", "scores", "ids"))
    assert (output.top1_agreement is None) == (holds == "features" or "rounded" in text or "Cast<to = 7>" in text)
    is_vector = holds in ("features", "") and "int64" not in text
    assert (output.neighbours_kept is not None) == is_vector
    if holds == "ids":
        assert output.fidelity == output.top1_agreement == 1.0 - output.relative_l2_mean
        assert output.changed_decisions == pytest.approx(SYNTHETIC_SHARE * (1.0 - output.fidelity))


@pytest.mark.usefixtures("harmless_models")
def test_a_model_that_gives_classes_shrinks_by_default_as_one_that_gives_scores(tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(400, 64)).astype(np.float32)
    for name in ("scores", "classes"):
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
