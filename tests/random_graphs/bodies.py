"""Random models put as a whole into the body of an If or a Loop, and the same nodes in the main graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .generate import Generated

Pair = tuple[onnx.ModelProto, onnx.ModelProto]
"""A model with a body, and what it computes without one."""


def inside_if(graph: Generated) -> Pair:
    """Two bodies of an If: the one that runs, and the same nodes again; the weights are outside, or each has its own."""
    name = ("then_", "else_")[graph.seed % 2]
    condition = numpy_helper.from_array(np.array(name == "then_"), "condition")
    bodies = {each: _Part(graph, each, is_shared=graph.seed % 3 == 0) for each in ("then_", "else_")}
    outputs = [value.name for value in graph.model.graph.output]
    branches = {f"{each}branch": part.body([], [], part.outputs) for each, part in bodies.items()}
    node = helper.make_node("If", ["condition"], outputs, **branches)
    part = bodies[name]
    ends = [helper.make_node("Identity", [value.name], [output]) for value, output in zip(part.outputs, outputs, strict=True)]
    return _model(graph, [node], [condition, *part.outside]), _model(graph, [*part.nodes, *ends], [*part.outside, *part.inside])


def inside_loop(graph: Generated) -> Pair:
    """The body of a Loop of one round whose state is the model's input."""
    fed = {value.name for value in _inputs(graph)}
    part = _Part(graph, "in_", is_shared=graph.seed % 3 == 0, renamed=fed)
    entering = [_declared(value, f"in_{value.name}") for value in _inputs(graph)]
    leaving = [_declared(value, f"next_{value.name}") for value in _inputs(graph)]
    number, goes_on, still = (helper.make_tensor_value_info(*each, []) for each in (("i", 7), ("on", 9), ("still", 9)))
    pairs = [("on", "still"), *((one.name, other.name) for one, other in zip(entering, leaving, strict=True))]
    kept = [helper.make_node("Identity", [one], [other]) for one, other in pairs]
    body = part.body([number, goes_on, *entering], kept, [still, *leaving, *part.outputs])
    outputs = [value.name for value in graph.model.graph.output]
    loop = helper.make_node(
        "Loop",
        ["one", "", *fed_names(graph)],
        [*(f"last_{n}" for n in fed_names(graph)), *(f"all_{n}" for n in outputs)],
        body=body,
    )
    picked = [helper.make_node("Gather", [f"all_{name}", "zero"], [name], axis=0) for name in outputs]
    numbers = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("one", 1), ("zero", 0))]
    starts = [helper.make_node("Identity", [name], [f"in_{name}"]) for name in fed_names(graph)]
    ends = [helper.make_node("Identity", [value.name], [output]) for value, output in zip(part.outputs, outputs, strict=True)]
    flat = _model(graph, [*starts, *part.nodes, *ends], [*part.outside, *part.inside])
    return _model(graph, [loop, *picked], [*numbers, *part.outside]), flat


INSIDE: dict[str, Callable[[Generated], Pair]] = {"If": inside_if, "Loop": inside_loop}
"""By operator, how a model gets into its body."""


def fed_names(graph: Generated) -> list[str]:
    """Names of the inputs that are no initializers."""
    return [value.name for value in _inputs(graph)]


def _inputs(graph: Generated) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in graph.model.graph.initializer}
    return [value for value in graph.model.graph.input if value.name not in stored]


def _declared(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    new = onnx.ValueInfoProto()
    new.CopyFrom(value)
    new.name = name
    return new


def _model(graph: Generated, nodes: list[onnx.NodeProto], stored: list[TensorProto]) -> onnx.ModelProto:
    new = onnx.ModelProto()
    new.CopyFrom(graph.model)
    new.ir_version = max(4, new.ir_version)
    outputs = [value for value in graph.model.graph.output]
    new.graph.CopyFrom(helper.make_graph(nodes, "whole", _inputs(graph), outputs, stored))
    return new


class _Part:
    """The nodes of a model under other names; is_shared: its weights keep their names, to stand in the graph around."""

    def __init__(self, graph: Generated, prefix: str, is_shared: bool, renamed: set[str] | None = None) -> None:
        original = graph.model.graph
        names = {name for node in original.node for name in node.output if name} | (renamed or set())
        names |= set() if is_shared else {tensor.name for tensor in original.initializer}
        self.nodes = [self._renamed(node, prefix, names) for node in original.node]
        self.outputs = [_declared(value, prefix + value.name) for value in original.output]
        stored = [TensorProto.FromString(tensor.SerializeToString()) for tensor in original.initializer]
        for tensor in stored:
            tensor.name = prefix + tensor.name if tensor.name in names else tensor.name
        self.outside, self.inside = (stored, []) if is_shared else ([], stored)

    def _renamed(self, node: onnx.NodeProto, prefix: str, names: set[str]) -> onnx.NodeProto:
        new = onnx.NodeProto.FromString(node.SerializeToString())
        for tensors in (new.input, new.output):
            tensors[:] = [prefix + name if name in names else name for name in tensors]
        for attribute in new.attribute:
            if attribute.HasField("g"):
                inner = [self._renamed(each, prefix, names) for each in attribute.g.node]
                del attribute.g.node[:]
                attribute.g.node.extend(inner)
        return new

    def body(
        self, inputs: list[onnx.ValueInfoProto], more: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        return helper.make_graph([*self.nodes, *more], "body", inputs, outputs, self.inside)
