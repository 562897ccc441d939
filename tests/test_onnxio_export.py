"""Export: unedited models come back the same, nothing that onnx-graphsurgeon drops is lost, edits leave no stale entry."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases

from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio.edits import new_constant, remove_unused_nodes
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model import from_proto

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = {f"{path.parent.name}/{path.name}": path for path in sorted(DATA.rglob("*.onnx"))}
POOLS = ("averagepool", "lppool", "maxpool")
"""Modules of tests that are not loaded: their results are computed in Python for seconds, and `FILES` has such nodes."""
SHARED = {path.name: path for path in sorted((Path(__file__).parents[2] / "shared" / "models").glob("*.onnx"))}

BODIES = """<ir_version: 8, opset_import: ["" : 17]>
example (float[N, 3] x, bool flag) => (float[N, 3] y)
<float[3] outer = {1, 2, 3}, float[3] both = {1, 1, 1}, float[3] unused = {0, 0, 0}>
{
  early = Mul(x, both)
  chosen = If(flag) <
    then_branch = yes () => (float[N, 3] a) <float[3] inner = {5, 5, 5}> {
      s = Add(early, inner)
      dead = Neg(s)
      a = Add(s, outer)
    },
    else_branch = no () => (float[N, 3] b) <float[3] inner_too = {6, 6, 6}> { b = Add(x, inner_too) }
  >
  y = Add(chosen, both)
}"""

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
example (float[N, 4] x) => (float[N, 3] y)
<float[4, 5] w = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5},
 float[5, 3] v = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0}, float[N, 5] hidden>
{
  hidden = MatMul(x, w)
  active = Relu(hidden)
  y = MatMul(active, v)
}"""


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from graphs(body)


def essence(proto: ModelProto) -> ModelProto:
    """A copy without what an export may change: inferred entries, attribute order, fields set to their default."""
    copy = ModelProto.FromString(proto.SerializeToString())
    for graph in graphs(copy.graph):
        del graph.value_info[:]
        for node in graph.node:
            for field in ("name", "domain"):
                if not getattr(node, field):
                    node.ClearField(field)
            attributes = sorted(
                (AttributeProto.FromString(each.SerializeToString()) for each in node.attribute), key=lambda each: each.name
            )
            del node.attribute[:]
            node.attribute.extend(attributes)
    return copy


def run(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def runs(proto: ModelProto) -> bool:
    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime has no kernel, or does not know the opset: nothing to compare
        return False
    return True


def check_round_trip(proto: ModelProto, path: Path | str = "model.onnx") -> io.Model:
    before = proto.SerializeToString()
    model = from_proto(proto, path)
    exported = export(model)
    assert essence(exported) == essence(proto)
    assert proto.SerializeToString() == before
    return model


@pytest.mark.parametrize("name", FILES)
def test_files_come_back(name: str) -> None:
    check_round_trip(onnx.load(FILES[name]), FILES[name])


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_real_models_come_back(name: str) -> None:
    check_round_trip(onnx.load(SHARED[name]), SHARED[name])


def test_operators_come_back_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every operator one of the tests that onnx brings along; their own inputs where ONNX Runtime has the operator."""
    for name in POOLS:
        monkeypatch.setitem(sys.modules, f"{collect_testcases.__module__}.{name}", ModuleType(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None]
    random.Random(0).shuffle(cases)
    compared = 0
    for case in {case.model.graph.node[0].op_type: case for case in cases}.values():
        model = check_round_trip(case.model)
        if case.model.ir_version > 13 or case.model.opset_import[0].version > 26 or not runs(case.model):
            continue
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, case.data_sets[0][0], strict=True))
        if (
            not all(isinstance(array, np.ndarray) for array in feeds.values())
            or "random" in case.name
            or "bernoulli" in case.name
        ):
            continue
        remove_unused_nodes(model)
        for ours, theirs in zip(run(export(model), feeds), run(case.model, feeds), strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs), equal_nan=np.asarray(ours).dtype.kind == "f"), case.name
        compared += 1
    assert compared > 100


def note(entries: object, value: str) -> None:
    entries.add(key="note", value=value)  # type: ignore[attr-defined]


def decorated() -> ModelProto:
    """Something in every place that onnx-graphsurgeon forgets."""
    proto = parser.parse_model(BODIES)
    proto.ir_version = 10
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version, proto.doc_string = "p", "1", "d", 7, "model"
    note(proto.metadata_props, "model")
    graph = proto.graph
    graph.doc_string = "graph"
    note(graph.metadata_props, "graph")
    body = graph.node[1].attribute[0].g
    note(body.metadata_props, "body")
    for number, node in enumerate([*graph.node, *body.node]):
        node.doc_string, node.name = f"node {number}", f"n{number}"
        note(node.metadata_props, f"node {number}")
    graph.node[1].attribute[0].doc_string = "attribute"
    for value in [*graph.input, *graph.output]:
        value.doc_string = "value"
        note(value.metadata_props, value.name)
        value.type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    note(graph.initializer[0].metadata_props, "initializer")
    graph.initializer[0].doc_string = "initializer"
    value = graph.value_info.add()
    value.CopyFrom(helper.make_tensor_value_info("early", TensorProto.FLOAT, ["N", 3]))
    note(value.metadata_props, "early")
    value.doc_string = "early"
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], proto.opset_import
    )
    function.overload = "first"
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    call = helper.make_node("Twice", ["x"], ["twice"], domain="local", overload="first")
    graph.node.append(call)
    graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["N", 3]))
    annotation = graph.quantization_annotation.add(tensor_name="early")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    info = proto.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Identity", ["outer"], ["outer_new"]))
    info.update_binding.add(key="outer", value="outer_new")
    return proto


def test_nothing_is_lost() -> None:
    proto = decorated()
    onnx.checker.check_model(proto, full_check=True)
    model = check_round_trip(proto)
    value = {each.name: each for each in export(model).graph.value_info}["early"]
    assert (value.doc_string, list(value.metadata_props)) == ("early", list(proto.graph.value_info[0].metadata_props))


def test_attributes_that_graphsurgeon_cannot_hold() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("", TensorProto.FLOAT, [1], [7]), helper.make_tensor("", TensorProto.INT64, [1], [1]), [3]
    )
    body = parser.parse_graph("b () => (float[3] o) { o = Identity(w) }")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [3])
    node = helper.make_node("Foo", ["x"], ["y"], domain="custom", kinds=[kind], kind=kind, sparse=sparse, bodies=[body], last=1)
    node.attribute.append(AttributeProto(name="empty", type=AttributeProto.INTS))
    node.attribute.append(AttributeProto(name="binary", type=AttributeProto.STRING, s=b"\xff\xfe"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", 1, [3])], [value("y", 1, [3])], [numpy_helper.from_array(np.ones(3, np.float32), "w")]
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)])
    model = check_round_trip(proto)  # "w" is read only by a body that is not understood
    assert [each.name for each in export(model).graph.node[0].attribute] == [each.name for each in node.attribute]


def test_an_edit_leaves_nothing_stale() -> None:
    proto = parser.parse_model(CHAIN)
    proto.graph.quantization_annotation.add(tensor_name="w")
    model = from_proto(proto)
    first, _, last = model.graph.nodes
    first.inputs[1] = new_constant(model, "w", np.ones((4, 2), np.float32))
    last.inputs[1] = new_constant(model, "v", np.ones((2, 3), np.float32))
    exported = export(model)
    onnx.checker.check_model(exported, full_check=True)
    shapes = {
        each.name: [dim.dim_value or dim.dim_param for dim in each.type.tensor_type.shape.dim]
        for each in exported.graph.value_info
    }
    assert shapes == {"hidden": ["N", 2]}  # none for "active", which had none
    assert [each.name for each in exported.graph.initializer] == ["w_1", "v_1"]
    assert list(exported.graph.output) == list(proto.graph.output)
    assert not exported.graph.quantization_annotation
    assert run(exported, {"x": np.ones((2, 4), np.float32)})[0].tolist() == [[8, 8, 8]] * 2


def test_shared_initializer_stays_for_the_other_consumer() -> None:
    proto = parser.parse_model(
        CHAIN.replace("y = MatMul(active, v)", "other = MatMul(x, w) both = Add(active, other) y = MatMul(both, v)")
    )
    model = from_proto(proto)
    model.graph.nodes[0].inputs[1] = new_constant(model, "w", np.zeros((4, 5), np.float32))
    exported = export(model)
    assert [each.name for each in exported.graph.initializer] == ["w", "v", "w_1"]
    assert exported.graph.initializer[0] == proto.graph.initializer[0]


@pytest.mark.parametrize(("ir_version", "inputs"), [(3, ["x", "v", "spare", "w_1"]), (8, ["x", "v", "spare"])])
def test_initializers_that_are_graph_inputs(ir_version: int, inputs: list[str]) -> None:
    """IR 3 wants each initializer among the inputs; later only those stay that were there and are still used, or never were."""
    proto = parser.parse_model(CHAIN)
    proto.ir_version = ir_version
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "spare"))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    proto.opset_import[0].version = 8
    model = check_round_trip(proto)
    model.graph.nodes[0].inputs[1] = new_constant(model, "w", np.ones((4, 2), np.float32))
    shorter = model.graph.nodes[2].inputs[1]
    shorter.values = np.ones((2, 3), np.float32)
    exported = export(model)
    onnx.checker.check_model(exported, full_check=True)
    assert [each.name for each in exported.graph.input] == inputs
    assert [dim.dim_value for dim in exported.graph.input[1].type.tensor_type.shape.dim] == [2, 3]
    assert run(exported, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[8, 8, 8]]


def test_bodies_keep_their_own_initializers() -> None:
    proto = parser.parse_model(BODIES)
    model = from_proto(proto)
    inner = model.graph.nodes[1].attrs["then_branch"]
    inner.nodes[0].inputs[1] = new_constant(model, "inner", np.full(3, 4, np.float32))
    remove_unused_nodes(model)
    exported = export(model)
    onnx.checker.check_model(exported, full_check=True)
    assert [each.name for each in exported.graph.initializer] == ["outer", "both", "inner_1"]
    then, otherwise = (attribute.g for attribute in exported.graph.node[1].attribute)
    assert [node.op_type for node in then.node] == ["Add", "Add"]
    assert [list(body.initializer) for body in (then, otherwise)] == [[], [proto.graph.node[1].attribute[1].g.initializer[0]]]
    feeds = {"x": np.zeros((1, 3), np.float32), "flag": np.array(True)}
    assert run(exported, feeds)[0].tolist() == [[6, 7, 8]]


def test_prune_dead_keeps_what_is_read() -> None:
    model = from_proto(parser.parse_model(BODIES))
    spare = gs.Variable("spare", np.float32, None)
    model.graph.nodes.append(gs.Node("Neg", inputs=[model.graph.inputs[0]], outputs=[spare]))
    model.graph.nodes.append(gs.Node("Neg", inputs=[spare], outputs=[gs.Variable("spare_too")]))
    model.graph.nodes[2].inputs[0] = model.graph.nodes[0].outputs[0]  # the If is no longer read, "early" still is
    remove_unused_nodes(model)
    assert [node.op for node in model.graph.nodes] == ["Mul", "Add"]
    assert [len(tensor.outputs) for tensor in model.graph.inputs] == [1, 0]
    exported = export(model)
    assert [value.name for value in exported.graph.input] == ["x", "flag"]
    assert [each.name for each in exported.graph.initializer] == ["both"]


def test_captured_values_are_read() -> None:
    model = from_proto(parser.parse_model(BODIES))
    remove_unused_nodes(model)
    assert [node.op for node in model.graph.nodes] == ["Mul", "If", "Add"]


def test_nodes_are_put_in_order() -> None:
    model = from_proto(parser.parse_model(BODIES))
    order = [node.op for node in model.graph.nodes]
    model.graph.nodes.reverse()
    exported = export(model)
    assert [node.op_type for node in exported.graph.node] == order
    onnx.checker.check_model(exported)


ATTRIBUTES = {
    "integer for a float": ("LeakyRelu", "alpha", 1, AttributeProto.FLOAT),
    "numpy float": ("LeakyRelu", "alpha", np.float64(0.5), AttributeProto.FLOAT),
    "numpy type": ("Cast", "to", np.float16, AttributeProto.INT),
    "numpy integers": ("Transpose", "perm", np.array([1, 0]), AttributeProto.INTS),
    "empty list": ("ReduceMean", "axes", [], AttributeProto.INTS),
    "text": ("AutoPad", "auto_pad", "SAME_UPPER", AttributeProto.STRING),
    "integers for floats": ("Upsample", "scales", [1, 2], AttributeProto.FLOATS),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_attributes_of_new_nodes(case: str) -> None:
    operator, name, value, kind = ATTRIBUTES[case]
    model = from_proto(parser.parse_model(CHAIN.replace(": 17", ": 8")))
    node = gs.Node(operator, attrs={name: value}, inputs=[model.graph.inputs[0]], outputs=[gs.Variable("new")])
    model.graph.nodes.append(node)
    attribute = next(iter(export(model).graph.node[-1].attribute))
    assert (attribute.name, attribute.type) == (name, kind)


def test_changed_attribute_and_operator_keep_what_was_said_of_the_node() -> None:
    proto = parser.parse_model(CHAIN)
    proto.graph.node[1].doc_string = "about Relu"
    proto.graph.node[2].doc_string = "about y"
    model = from_proto(proto)
    model.graph.nodes[1].op = "LeakyRelu"
    model.graph.nodes[2].name = "named"
    nodes: list[NodeProto] = list(export(model).graph.node)
    assert [node.doc_string for node in nodes] == ["", "", "about y"]
    assert nodes[2].name == "named"


def test_value_info_that_inference_cannot_find_keeps_its_dtype_only() -> None:
    proto = parser.parse_model(CHAIN.replace("active = Relu", "active = custom.Relu"))
    proto.graph.value_info.append(helper.make_tensor_value_info("active", TensorProto.FLOAT, ["N", 5]))
    value = {each.name: each for each in export(from_proto(proto)).graph.value_info}["active"]
    assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert not value.type.tensor_type.HasField("shape")


def test_names_that_inference_makes_up_are_left_out() -> None:
    proto = parser.parse_model(CHAIN.replace("active = Relu(hidden)", "active = Relu(hidden) places = NonZero(active)"))
    for name, kind in (("places", TensorProto.INT64), ("active", TensorProto.FLOAT)):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, None))
    values = {each.name: each for each in export(from_proto(proto)).graph.value_info}
    sizes = [dim.WhichOneof("value") for dim in values["places"].type.tensor_type.shape.dim]
    assert sizes == ["dim_value", None]
    assert values["active"].type.tensor_type.shape.dim[0].dim_param == "N"


def test_renamed_initializer() -> None:
    proto = parser.parse_model(CHAIN)
    model = from_proto(proto)
    model.graph.nodes[0].inputs[1].name = "renamed"
    exported = export(model)
    assert {each.name for each in exported.graph.initializer} == {"renamed", "v"}
    assert proto.graph.initializer[0].name == "w"


def test_two_constants_of_one_name_are_a_bug() -> None:
    model = from_proto(parser.parse_model(CHAIN))
    model.graph.nodes[0].inputs[1] = gs.Constant("v", np.ones((4, 5), np.float32))
    with pytest.raises(ValueError, match="two constants named 'v'"):
        export(model)
