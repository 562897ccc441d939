"""Layers in the bodies of If and Loop: compressed like those outside, or left as they are for a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from random_graphs import generate
from random_graphs.bodies import INSIDE
from random_graphs.faults import Outcome, compressed, difference
from random_graphs.masked_oracle import masked
from running import analysed, run, written

import onnxmerge
from onnxmerge.errors import Reason
from onnxmerge.graph.cost import MACS
from onnxmerge.onnxio.bodies import bodies_to_take_out, put_back, taken_out, with_names_of_their_own

pytestmark = pytest.mark.usefixtures("harmless_models")

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
MLP = "{h}1 = MatMul({x}, {v}) {h}2 = Add({h}1, b) {h}3 = Relu({h}2) {y} = MatMul({h}3, {w})"


def mlp(x: str, y: str, h: str = "h", v: str = "v", w: str = "w") -> str:
    """Two layers as text."""
    return MLP.format(x=x, y=y, h=h, v=v, w=w)


def numbers(count: int) -> str:
    """So many numbers as text."""
    return ", ".join(str(np.sin(3 * i + 1).round(3)) for i in range(count))


TEXTS = {
    # Both bodies use the same names; one of the weights is theirs alone, the others are read by both and by the main graph.
    "if": "g (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] z) {"
    f" z0 = Tanh(x) {mlp('z0', 'z', 'o')} y = If(c)"
    f" <then_branch = t () => (float[N, 4] a) {{ {mlp('x', 'a')} }}, else_branch = e () => (float[N, 4] a)"
    f" <float[4, 6] u = {{{numbers(24)}}}> {{ {mlp('x', 'a', v='u')} }}> }}",
    "apart": "g (float[N, 4] x, bool c) => (float[N, 4] y) { y = If(c) <then_branch = t () => (float[N, 4] a)"
    f" {{ {mlp('x', 'a')} }}, else_branch = e () => (float[N, 4] a)"
    f" <float[4, 6] u = {{{numbers(24)}}}, float[6, 4] z = {{{numbers(24)}}}> {{ {mlp('x', 'a', v='u', w='z')} }}> }}",
    "loop": "g (float[N, 4] x, int64 n) => (float[N, 4] y, float[M, N, 4] all) { on = Constant<value = bool {1}>()"
    f" {mlp('x', 'k', 'o')} y, all = Loop(n, on, k) <body = l (int64 i, bool c, float[N, 4] s) => (bool d, float[N, 4] t,"
    f" float[N, 4] u) {{ d = Identity(c) {mlp('x', 'e', 'p')} {mlp('s', 'r')} t = Add(r, e) u = Identity(s) }}> }}",
    "until": "g (float[N, 4] x, bool go) => (float[N, 4] y) { y = Loop(, go, x) <body = l (int64 i, bool c, float[N, 4] s) =>"
    f" (bool d, float[N, 4] t) {{ {mlp('s', 't')} d = Less(i, two) }}> }}",
    "if in loop": "g (float[N, 4] x, int64 n) => (float[N, 4] y) { y = Loop(n, , x) <body = l (int64 i, bool c, float[N, 4] s) =>"
    " (bool c2, float[N, 4] t) { c2 = Identity(c) odd = Less(i, two) t = If(odd)"
    f" <then_branch = t () => (float[N, 4] a) {{ {mlp('s', 'a')} }}, else_branch = e () => (float[N, 4] a) {{ {mlp('x', 'a')} }}>"
    " }> }",
    "loop in if": "g (float[N, 4] x, bool c) => (float[N, 4] y) { y = If(c) <then_branch = t () => (float[N, 4] a)"
    " { a = Loop(two, , x) <body = l (int64 i, bool c2, float[N, 4] s) => (bool c3, float[N, 4] t)"
    f" {{ c3 = Identity(c2) {mlp('s', 't')} }}> }}, else_branch = e () => (float[N, 4] a) {{ {mlp('x', 'a')} }}> }}",
}
FED = {"c": (True, False), "go": (True, False), "n": (1, 3)}


def model_of(text: str) -> onnx.ModelProto:
    """The model, of whose six hidden channels two are ten times two others."""
    rng = np.random.default_rng(0)
    v, w, b = (rng.normal(size=shape).astype(np.float32) * 0.5 for shape in ((4, 6), (6, 4), (6,)))
    v[:, :2], b[:2] = 0.1 * v[:, :2], 0.1 * b[:2]  # weak, so that these leave
    v[:, 4:], b[4:] = 10 * v[:, :2], 10 * b[:2]
    model = parser.parse_model(f"{HEAD} {text}")
    stored = {"v": v, "w": w, "b": b, "two": np.array(2)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    for body in (attribute.g for node in model.graph.node for attribute in node.attribute):
        for tensor in body.initializer[:1]:
            u = numpy_helper.to_array(tensor).copy()
            u[:, :2] = 0.1 * u[:, :2]
            u[:, 4:] = 10 * u[:, :2]
            tensor.CopyFrom(numpy_helper.from_array(u, tensor.name))
    return model


def test_what_a_loop_without_rounds_does_not_run_stays_in_it() -> None:
    """An index that is out of range is no fault where nothing reads it."""
    model = model_of(
        "g (float[N, 4] x, int64 n) => (float[N, 4] y) { y = Loop(n, , x) <body = l (int64 i, bool c, float[N, 4] s) =>"
        f" (bool d, float[N, 4] t) {{ d = Identity(c) row = Gather<axis = 0>(x, two) {mlp('row', 'e', 'p')} {mlp('s', 'r')}"
        " t = Add(r, e) }> }"
    )
    again = put_back(flat(model))
    onnx.checker.check_model(again, full_check=True)
    assert [node.op_type for node in again.graph.node] == ["Loop"]
    for rounds, rows in ((0, 1), (2, 3)):
        feeds = {"x": np.ones((rows, 4), np.float32), "n": np.array(rounds)}
        np.testing.assert_array_equal(run(again, feeds)[0], run(model, feeds)[0])


def feeds_of(model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Inputs that lead into each body, and for several rounds."""
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    (name,) = [each.name for each in model.graph.input if each.name != "x"]
    return [{"x": x, name: np.array(value)} for value in FED[name]]


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its bodies taken out."""
    named = with_names_of_their_own(model)
    return taken_out(named, bodies_to_take_out(named, MACS))


@pytest.mark.parametrize("name", TEXTS)
def test_bodies_taken_out_and_put_back_give_the_same_bits(name: str) -> None:
    model = model_of(TEXTS[name])
    outside = flat(model)
    assert sum(node.op_type == "MatMul" for node in outside.graph.node) >= 2
    again = put_back(outside)
    onnx.checker.check_model(again, full_check=True)
    for feeds in feeds_of(model):
        for other in (outside, again):
            for expected, found in zip(run(model, feeds), run(other, feeds), strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", TEXTS)
def test_channels_in_bodies_that_are_multiples_of_others_merge_exactly(name: str, tmp_path: Path) -> None:
    model, target = model_of(TEXTS[name]), tmp_path / "small.onnx"
    result = onnxmerge.compress(
        model, target, method="merge", ratio=1 / 3, round_to=1, bench=False, threshold=0.9, include=("*",)
    )
    assert {group.kept for group in result.groups} == {4}
    assert result.after.macs < 0.7 * result.before.macs
    assert result.after.parameters < result.before.parameters
    for feeds in feeds_of(model):
        for expected, found in zip(run(model, feeds), run(target, feeds), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("operator", "seed"), [(operator, seed) for operator in INSIDE for seed in (4, 9, 14)])
def test_random_models_inside_bodies_equal_the_masked_reference(operator: str, seed: int, tmp_path: Path) -> None:
    graph = generate(seed)
    model, same = INSIDE[operator](graph)
    found = compressed(replace(graph, model=model), tmp_path, ratio=0.5, method="prune", include=("*",))
    assert not isinstance(found, Outcome), found
    onnx.checker.check_model(found[0], full_check=True)
    assert difference(masked(same, flat(found[0]), graph.feeds()), model, found[0], graph) == ""


def test_a_body_that_no_input_leads_into_shrinks_where_it_is_named(tmp_path: Path) -> None:
    """Both bodies are solved then, on what enters them, and a warning tells which was not compared."""
    model, target = model_of(TEXTS["apart"]), tmp_path / "small.onnx"
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    options = {"ratio": 1 / 3, "round_to": 1, "calibration": {"x": x, "c": np.array(True)}, "bench": False}
    result = onnxmerge.compress(model, target, method="reconstruct", **options)
    assert [group.name for group in result.groups] == ["h1"]
    assert [each.where for each in result.refusals if each.reason is Reason.NOT_ENTERED] == ["h1_1"]
    result = onnxmerge.compress(model, target, method="reconstruct", include=("*",), **options)
    assert [group.name for group in result.groups] == ["h1", "h1_1"]
    assert not onnxmerge.verify(written(model, tmp_path), target, calibration=options["calibration"]).fidelity.same_channel_counts
    (told,) = [text for text in result.warnings if "no input leads into" in text]
    assert "else_branch of y" in told
    for feeds in feeds_of(model):
        for expected, found in zip(run(model, feeds), run(target, feeds), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def random_loop(model: onnx.ModelProto) -> None:
    """A round draws numbers."""
    body = model.graph.node[-1].attribute[0].g
    body.node.insert(0, helper.make_node("RandomNormalLike", ["x"], ["noise"]))


def too_wide(model: onnx.ModelProto) -> None:
    """A body that never runs: it splits five channels of four."""
    body = model.graph.node[-1].attribute[1].g
    body.node.insert(0, helper.make_node("Reshape", ["x", "five"], ["split"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5]), "five"))


@pytest.mark.parametrize(
    ("name", "change", "reason", "left"),
    [
        ("loop", random_loop, "inside the body of Loop, which draws random numbers in each round", {"h1", "p1", "r", "e"}),
        ("loop in if", too_wide, "inside the body of If, which does not run on these inputs", {"h1_1", "a_1"}),
    ],
)
def test_bodies_that_cannot_be_taken_out_have_a_reason(
    name: str, change: Callable[[onnx.ModelProto], None], reason: str, left: set[str], tmp_path: Path
) -> None:
    model = model_of(TEXTS[name])
    change(model)
    found = {each.where for each in analysed(model, tmp_path).channels.refusals if each.text == reason}
    assert found == left


def test_an_integer_of_the_calibration_inputs_decides_which_body_runs_first(tmp_path: Path) -> None:
    text = "g (float[N, 4] x, int64 rate) => (float[N, 4] y) { four = Mul(two, two) t2 = Mul(rate, two) c = Equal(t2, four)"
    text += " y = If(c)"
    text += f" <then_branch = t () => (float[N, 4] a) {{ {mlp('x', 'a')} }},"
    text += " else_branch = e () => (float[N, 4] a) { bad = Reshape(x, two) a = Identity(bad) }> }"
    path = written(model_of(text), tmp_path)
    with pytest.raises(onnxmerge.ModelError, match="does not run"):
        onnxmerge.inspect(path)
    calibration = {"x": np.zeros((32, 4), np.float32), "rate": np.array(2)}
    assert [group.name for group in onnxmerge.inspect(path, calibration=calibration).groups] == ["h1"]


@pytest.mark.parametrize("inputs", ["float[N, 4] x, bool c", "bool c, float[N, 4] x"])
def test_without_data_the_body_that_is_solved_is_the_one_that_is_compared(inputs: str, tmp_path: Path) -> None:
    """Of a setting the first run and all synthetic inputs hold one value; a constant that moves into a body is no change."""
    model = model_of(TEXTS["apart"].replace("float[N, 4] x, bool c", inputs))
    result = onnxmerge.compress(model, tmp_path / "small.onnx", method="prune", ratio=1 / 3, round_to=1, bench=False)
    assert [group.name for group in result.groups] == ["h1"]
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity < 1
    assert not [text for text in result.warnings if "no input leads into" in text]
