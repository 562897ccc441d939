"""Shapes of the tensors in the bodies of If and Loop, so that the layers inside are counted: each body is run as a model.

Of an If it is the body that ran when the model did, of a Loop one round. Others are left out: what did not run costs nothing.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from onnxmerge.errors import ModelError
from onnxmerge.execution.example_feeds import random_values
from onnxmerge.execution.shapes import Observation, Observations, observe
from onnxmerge.execution.submodel import submodel, tensors_read
from onnxmerge.graph.cost import MACS
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import graph_and_bodies


def body_observations(model: Model, observed: Observations) -> Observations:
    """Every tensor in bodies that hold layers, at any depth, by name; those whose name occurs in several bodies are left out.

    Parameters
    ----------
    model : Model
        The model.
    observed : Observations
        Every tensor of its main graph in a run.
    """
    found = list(_inside(model, model.proto.graph, observed))
    times = Counter(name for each in found for name in each)
    return {name: value for each in found for name, value in each.items() if times[name] == 1 and name not in observed}


def _inside(model: Model, graph: GraphProto, observed: Observations) -> Iterator[Observations]:
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = observed[node.input[0]].value if node.input and node.input[0] in observed else None
        if value is None and node.input and node.input[0] in known:
            value = numpy_helper.to_array(known[node.input[0]], str(model.folder))
        body = _body(node, value)
        if body is None or not any(inner.op_type in MACS for each in graph_and_bodies(body) for inner in each.node):
            continue
        try:
            inside = _run(model, graph, node, body, observed)
        except ModelError:  # it depends on values that were not kept
            continue
        yield inside
        yield from _inside(model, body, {**observed, **inside})


def _body(node: NodeProto, first_input: np.ndarray | None) -> GraphProto | None:
    """The body of an If that a condition chose, or of a Loop; None for others, and where the condition is not known."""
    bodies = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
    if node.op_type == "If":
        return None if first_input is None else bodies["then_branch" if first_input.all() else "else_branch"]
    return bodies.get("body") if node.op_type == "Loop" else None


def _run(model: Model, graph: GraphProto, node: NodeProto, body: GraphProto, observed: Observations) -> Observations:
    """Every tensor of a body, which reads what was observed around it."""
    generator = np.random.default_rng(0)

    def feed(seen: Observation) -> np.ndarray:
        return random_values(generator, seen.shape, seen.dtype) if seen.value is None else seen.value

    entering = {
        value.name: observed[name] for value, name in zip(body.input[2:], node.input[2:], strict=False) if name in observed
    }
    entering |= {name: observed[name] for inner in body.node for name in tensors_read(inner) if name in observed}
    feeds = {name: feed(seen) for name, seen in entering.items()}
    if len(body.input) > 1:
        feeds |= {body.input[0].name: np.zeros((), np.int64), body.input[1].name: np.ones((), bool)}
    outputs = [output.name for output in body.output if output.name not in feeds]
    initializers = {tensor.name: tensor for each in (model.proto.graph, graph, body) for tensor in each.initializer}
    outer = helper.make_graph([], "around", [], [], [*initializers.values()])
    around = ModelProto(ir_version=model.proto.ir_version, graph=outer, opset_import=model.proto.opset_import)
    return observe(submodel(around, list(body.node), feeds, outputs), feeds, label="a body", folder=model.folder)
