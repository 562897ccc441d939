"""Outputs of language models at some positions: the same numbers as of all of them, whatever the last nodes are."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from onnxmerge.execution.few_positions import at_few_positions, opened_at_few_positions, position_steps
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.sessions import open_session

LENGTH, WIDTH, IDS = 12, 4, 5
ENDS = {
    "MatMul": "y = MatMul(h, W)",
    "bias first": "a = MatMul(h, W)  y = Add(b, a)",
    "tied": "V = Transpose(T)  y = MatMul(h, V)",
    "capped": "a = MatMul(h, W)  c = Tanh(a)  y = Mul(c, two)",
    "log of probabilities": "a = MatMul(h, W)  y = LogSoftmax<axis = -1>(a)",
    "over positions": "a = MatMul(h, W)  y = Softmax<axis = 1>(a)",
    "one number a position": "a = MatMul(h, W)  y = Add(a, p)",
    "two computed": "a = MatMul(h, W)  c = Tanh(a)  y = Mul(a, c)",
    "read elsewhere": "y = MatMul(h, W)  z = ReduceMean<keepdims = 0>(y)",
    "another output": "z = MatMul(h, W)  y = Add(z, b)",
    "of a running sum": "a = MatMul(h, W)  y = CumSum(a, one)",
}
BY_THEMSELVES = {"MatMul": 1, "bias first": 2, "tied": 1, "capped": 3, "log of probabilities": 2, "another output": 1}
"""How many nodes are run at few positions."""


def model_with(end: str) -> onnx.ModelProto:
    outputs = f"float[N, {LENGTH}, {IDS}] y" + (", float z" if "z =" in end else "")
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, {LENGTH}, {WIDTH}] x) => ({outputs}) {{ h = Sin(x)  {end} }}""")
    draw = np.random.default_rng(0).normal
    shapes = {"W": (WIDTH, IDS), "T": (IDS, WIDTH), "b": (IDS,), "two": (), "p": (LENGTH, 1)}
    constants = {name: np.float32(draw(size=shape)) for name, shape in shapes.items()} | {"one": np.int64(1)}
    for name, value in constants.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


@pytest.mark.parametrize("end", ENDS)
@settings(max_examples=5, deadline=None)
@given(step=st.integers(1, 6).map(lambda half: 2 * half + 1), as_file=st.booleans())
def test_the_numbers_are_those_of_all_positions(
    end: str, step: int, as_file: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = model_with(ENDS[end])
    x = np.random.default_rng(1).normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
    source: bytes | Path = model.SerializeToString()
    if as_file:
        source = tmp_path_factory.mktemp("file") / "m.onnx"
        onnx.save(model, source)
    whole = open_session(source, optimise=False, threads=1).run({"x": x})
    few = opened_at_few_positions(source, "the model", {"y": step}, 1).run({"x": x})
    run = LayerwiseRun(model, [{"x": x}], threads=1)
    run.run_until(1)
    layerwise = run.run_session(run.session_to_outputs({}, {"y": step}), 0)
    for found in (few, layerwise):
        first, *others = found.values()
        np.testing.assert_allclose(first, whole["y"][:, step // 2 :: step], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(others, list(whole.values())[1:], rtol=1e-5)


@pytest.mark.parametrize("end", ENDS)
def test_what_computes_position_by_position_computes_no_others(end: str) -> None:
    model = model_with(ENDS[end])
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    nodes, outputs = at_few_positions(model.graph.node, [output.name for output in model.graph.output], ranks, {"y": 3})
    few = {"h//few/y", "z//few/y", outputs[0]}
    while found := {name for node in nodes if node.op_type != "Slice" and few & set(node.input) for name in node.output} - few:
        few |= found
    assert sum(node.op_type not in ("Slice", "Constant") and node.output[0] in few for node in nodes) == BY_THEMSELVES.get(end, 0)
    assert len(nodes) == len(model.graph.node) + 5


def test_few_ids_and_long_sequences_of_classes_are_compared_whole() -> None:
    whole = {"bytes": (1, 128, 256), "anchors": (1, 25200, 85), "features": (4, 1 << 21), "short": (2, 8, 1 << 20)}
    shapes = {"ids": (1, 128), "text": (1, 128, 50257), "heat maps": (1, 84, 33600), **whole}
    assert position_steps(shapes, ["ids"], shapes, 17) == {"text": 5}
    assert position_steps(shapes, ["ids"], shapes, 9) == {}
    assert position_steps(shapes, ["text"], shapes, 17) == {}


def test_two_outputs_of_one_tensor_are_both_compared_at_few_positions() -> None:
    model = model_with("y = MatMul(h, W)  z = Softmax<axis = -1>(y)")
    x = np.random.default_rng(1).normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
    source = model.SerializeToString()
    whole = open_session(source, optimise=False, threads=1).run({"x": x})
    few = opened_at_few_positions(source, "the model", {"y": 3, "z": 5}, 1).run({"x": x})
    for found, expected, step in zip(few.values(), whole.values(), (3, 5), strict=True):
        np.testing.assert_allclose(found, expected[:, step // 2 :: step], rtol=1e-5, atol=1e-6)
