"""Values of constants: every operator against ONNX Runtime, dtypes, limits, memory of computed values; and the writer."""

from __future__ import annotations

from contextlib import nullcontext

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxmerge.graph import constant_folding
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio.edits import new_constant
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model import from_proto

HEAD = '<ir_version: 8, opset_import: ["" : {opset}]> example ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}'
WEIGHTS = (
    "float[2, 3] w = {1, -2, 3, 4, -5, 6}, float[3] v = {1, 2, 4}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}"
)


def model_of(nodes: str, outputs: str = "y", weights: str = WEIGHTS, inputs: str = "", opset: int = 17) -> io.Model:
    declared = ", ".join(f"float[] {name}" for name in outputs.split())
    text = HEAD.format(nodes=nodes, outputs=declared, weights=weights, inputs=inputs, opset=opset)
    proto = parser.parse_model(text)
    for value in proto.graph.output:
        value.ClearField("type")
    return from_proto(proto)


FOLDED = {
    "Identity": "y = Identity(w)",
    "Transpose": "y = Transpose(w)",
    "Transpose with axes": "y = Transpose<perm = [0, 1]>(w)",
    "Reshape": "s = Constant<value_ints = [3, -1]>() y = Reshape(w, s)",
    "Flatten": "y = Flatten<axis = 0>(w)",
    "Unsqueeze and Squeeze": "a = Unsqueeze(w, zero) y = Squeeze(a, zero)",
    "Concat": "y = Concat<axis = 1>(w, w)",
    "Slice": "y = Slice(w, zero, two, one)",
    "Split": "n = Constant<value_ints = [1, 2]>() a, y = Split<axis = 1>(w, n)",
    "Gather": "y = Gather<axis = 1>(w, two)",
    "Expand": "s = Constant<value_ints = [4, 2, 3]>() y = Expand(w, s)",
    "Tile": "s = Constant<value_ints = [2, 1]>() y = Tile(w, s)",
    "Pad": "s = Constant<value_ints = [0, 1, 1, 0]>() y = Pad(w, s)",
    "Cast": "y = Cast<to = 10>(w)",
    "Shape and Size": "a = Shape(w) b = Size(w) y = Mul(a, b)",
    "ConstantOfShape": "y = ConstantOfShape<value = float[1] {3}>(two)",
    "Range": "a = Constant<value_int = 1>() b = Constant<value_int = 9>() c = Constant<value_int = 3>() y = Range(a, b, c)",
    "Where": "a = Greater(w, v) y = Where(a, w, v)",
    "arithmetic": "a = Add(w, v) b = Sub(a, w) c = Div(b, v) y = Mul(c, w)",
    "roots": "a = Abs(w) b = Sqrt(a) c = Reciprocal(b) d = Exp(c) e = Log(d) f = Neg(e) y = Pow(f, v)",
    "weight normalisation": "n = ReduceL2<axes = [1]>(w) a = Div(w, n) g = Constant<value_float = 2.0>() y = Mul(a, g)",
    "sums": "a = ReduceMean<axes = [1]>(w) b = ReduceSumSquare<axes = [1]>(w) c = ReduceSum(w, one) y = Sum(a, b, c)",
    "MatMul": "t = Transpose(w) y = MatMul(w, t)",
    "Gemm": "y = Gemm<transB = 1, alpha = 0.5>(w, w)",
    "text constant": "t = Constant<value_string = \"a\">() y = Identity(w)",
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_computed_like_onnxruntime(case: str) -> None:
    model = model_of(FOLDED[case])
    session = onnxruntime.InferenceSession(io.serialise(model), providers=["CPUExecutionProvider"])
    value = constant_value(model, model.graph.outputs[0])
    expected = session.run(None, {})[0]
    assert value is not None
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not value.flags.writeable


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_old_and_new_forms(opset: int) -> None:
    squeeze = "a = Unsqueeze<axes = [0]>(w) y = Squeeze<axes = [0]>(a)" if opset < 13 else FOLDED["Unsqueeze and Squeeze"]
    value = constant_value(model := model_of(squeeze, opset=opset), model.graph.outputs[0])
    assert value is not None
    assert value.tolist() == [[1, -2, 3], [4, -5, 6]]


NOT_CONSTANT = {
    "graph input": ("y = Identity(x)", "float[2, 3] x"),
    "depends on an input": ("y = Add(w, x)", "float[2, 3] x"),
    "shape of an input": ("y = Shape(x)", "float[2, 3] x"),
    "random": ("y = RandomNormal<shape = [2]>()", ""),
    "random like": ("y = RandomUniformLike(w)", ""),
    "unknown domain": ("y = com.example.Identity(w)", ""),
    "not foldable": ("y = Softmax(w)", ""),
    "a body": ("c = Constant<value = bool {1}>() y = If(c) <then_branch = g () => (a) { a = Identity(w) }, "
               "else_branch = h () => (b) { b = Identity(w) }>", ""),
    "quantised": ("s = Constant<value_float = 0.5>() q = QuantizeLinear(w, s) y = DequantizeLinear(q, s)", ""),
    "too large": ("s = Constant<value_ints = [100000, 100000]>() y = ConstantOfShape(s)", ""),
    "too large to expand": ("s = Constant<value_ints = [100000, 100000, 2, 3]>() y = Expand(w, s)", ""),
    "shapes that do not fit": ("y = Add(w, two_by_two)", ""),
    "negative root, later unknown": ("a = Sqrt(w) y = com.example.Foo(a)", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_CONSTANT)
def test_not_constant(case: str) -> None:
    nodes, inputs = NOT_CONSTANT[case]
    model = model_of(nodes, inputs=inputs, weights=WEIGHTS + ", float[2, 2] two_by_two = {1, 2, 3, 4}")
    assert constant_value(model, model.graph.outputs[0]) is None


def test_long_chains_are_no_recursion() -> None:
    nodes = " ".join(f"t{number + 1} = Neg(t{number})" for number in range(1500))
    model = model_of(f"t0 = Identity(v) {nodes} y = Identity(t1500)")
    value = constant_value(model, model.graph.outputs[0])
    assert value is not None
    assert value.tolist() == [1, 2, 4]


def test_computed_once_and_anew_after_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("a = Transpose(w) b = Transpose(w) y = Add(a, b)")
    calls = []
    evaluator = constant_folding.ReferenceEvaluator
    monkeypatch.setattr(constant_folding, "ReferenceEvaluator", lambda proto: (calls.append(proto), evaluator(proto))[1])
    first = constant_value(model, model.graph.outputs[0])
    assert constant_value(model, model.graph.outputs[0]) is first
    assert len(calls) == 2  # one for both Transposes
    for node in model.graph.nodes[:2]:
        node.inputs[0] = new_constant(model, "w", np.ones((2, 3), np.float32))
    value = constant_value(model, model.graph.outputs[0])
    assert value is not None
    assert value.tolist() == np.full((3, 2), 2).tolist()
    model.graph.nodes[0].attrs["perm"] = [0, 1]
    assert constant_value(model, model.graph.outputs[0]) is None  # (2, 3) + (3, 2)
    monkeypatch.setattr(constant_folding, "LIMIT_BYTES", 10)
    assert constant_value(model, model.graph.nodes[1].outputs[0]) is None


@pytest.mark.parametrize(
    ("error", "is_bug"),
    [(ValueError, False), (NotImplementedError, False), (IndexError, False), (AttributeError, True), (KeyError, True)],
)
def test_only_what_cannot_be_computed_is_not_constant(error: type, is_bug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(proto: onnx.ModelProto) -> None:
        raise error("on purpose")

    model = model_of("y = Transpose(w)")
    monkeypatch.setattr(constant_folding, "ReferenceEvaluator", fail)
    with pytest.raises(error) if is_bug else nullcontext():
        assert constant_value(model, model.graph.outputs[0]) is None


DTYPES = [np.float16, np.float64, np.int8, np.uint16, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4]
DTYPES += [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz]
DTYPES += [ml_dtypes.float4_e2m1fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes_survive_reading_and_writing(dtype: type) -> None:
    array = np.array([[0, 1, 2], [1, 0, 1]]).astype(dtype)
    tensor = numpy_helper.from_array(array, "w")
    value = helper.make_tensor_value_info("y", tensor.data_type, [2, 3])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [tensor])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    read = constant_value(model, model.graph.nodes[0].inputs[0])
    assert read is not None
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()
    model.graph.nodes[0].inputs[0] = new_constant(model, "w", array[:, ::-1])
    written = export(model).graph.initializer
    assert [(each.name, each.data_type) for each in written] == [("w_1", tensor.data_type)]
    assert numpy_helper.to_array(written[0]).tobytes() == array[:, ::-1].tobytes()


def test_typed_fields_sparse_and_scalar() -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [1, 5])
    sparse = helper.make_sparse_tensor(helper.make_tensor("s", TensorProto.FLOAT, [2], [7, 8]), indices, [2, 3])
    model = model_of("y = Add(w, s)")
    proto = model.proto
    proto.graph.sparse_initializer.append(sparse)
    model = from_proto(proto)
    value = constant_value(model, model.graph.nodes[0].inputs[1])
    assert value is not None
    assert value.tolist() == [[0, 7, 0], [0, 0, 8]]
    assert export(model).graph.sparse_initializer[0] == sparse
    scalar = new_constant(model, "scalar", np.float32(3) * np.ones(()))
    assert (scalar.values.shape, scalar.values.dtype) == ((), np.float64)


def test_writer_takes_fresh_names_and_a_copy() -> None:
    model = model_of("y = Add(w, v)", weights="float[3] w = {1, 2, 3}, float[3] v = {1, 2, 3}, float[1] w_1 = {0}")
    array = np.ones(3, np.float32)
    tensor = new_constant(model, "w", array)
    array[:] = 9
    assert tensor.name == "w_2"  # "w_1" is in the file, though nothing reads it
    assert tensor.values.tolist() == [1, 1, 1]
    model.graph.nodes[0].inputs[0] = tensor
    assert new_constant(model, "w", array).name == "w_3"
    assert new_constant(model, "new", array.astype(">f4")).values.dtype.isnative
    assert {each.name for each in export(model).graph.initializer} == {"w_2", "v"}
    with pytest.raises(ValueError, match="Unable to convert type"):
        new_constant(model, "w", np.ones(3, np.longdouble))


def test_initializer_behind_a_body_is_found() -> None:
    body = "then_branch = g () => (a) { t = Transpose(w) a = Add(t, x) }, else_branch = h () => (b) { b = Identity(x) }"
    model = model_of(f"c = Constant<value = bool {{1}}>() y = If(c) <{body}>", inputs="float[3, 2] x")
    inner = model.graph.nodes[1].attrs["then_branch"].nodes
    value = constant_value(model, inner[0].outputs[0])
    assert value is not None
    assert value.shape == (3, 2)
    assert constant_value(model, inner[1].outputs[0]) is None


def test_what_was_found_to_depend_on_an_input_is_not_followed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time for a deep network grows with the square of its depth."""
    layers = " ".join(f"y{number + 1} = Add(y{number}, w)" for number in range(100))
    model = model_of(f"y0 = Relu(x) {layers} k = Relu(w)", outputs="y100 k", inputs="float[2, 3] x")
    seen = []
    monkeypatch.setattr(constant_folding, "is_standard", lambda node: not seen.append(node))
    varying: constant_folding.Varying = {}
    values = [constant_value(model, node.outputs[0], varying) for node in model.graph.nodes]
    assert [value is None for value in values] == [True] * 101 + [False]
    assert len(seen) <= 2 * len(model.graph.nodes)
