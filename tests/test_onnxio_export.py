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
import onnxruntime
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases

from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio.edits import remove_unused_nodes
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
