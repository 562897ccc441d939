"""Edits of graphs: what they leave behind is written as it should be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper, parser
from test_onnxio_export import BODIES, check_round_trip, run

from onnxmerge.onnxio.edits import new_constant, remove_unused_nodes
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model import from_proto

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
example (float[N, 4] x) => (float[N, 3] y)
<float[4, 5] w = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5},
 float[5, 3] v = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0}, float[N, 5] hidden>
{
  hidden = MatMul(x, w)
  active = Relu(hidden)
  y = MatMul(active, v)
}"""


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
