"""Which values a setting of a model, such as a sampling rate, may have: those that the graph compares it with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxmerge.execution.tensor_specs import TensorSpec
from onnxmerge.onnxio.external_data import is_external
from onnxmerge.onnxio.traversal import attribute_tensors, bodies_of, graph_and_bodies, stored_tensors

COMPARING = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
KEEPING = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"})
"""Operators whose output holds the value of their first input, and no other."""
LARGEST_CONSTANT, MOST_TRIED = 4, 8
"""Numbers in a constant that a setting is compared with, and sets of settings that are tried."""


def settings_to_try(proto: ModelProto, specs: Sequence[TensorSpec], known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By setting the value of each try, in the order of preference: what the graph compares it with, then 1; true, then false.

    Settings of which the graph tells nothing are left out.

    Parameters
    ----------
    proto : ModelProto
        The model.
    specs : Sequence of TensorSpec
        Its inputs.
    known : Mapping of str to (int or bool)
        Settings that the user gave: they are not tried.
    """
    nodes = [node for graph in graph_and_bodies(proto.graph) for node in graph.node]
    constants = _constants(proto, nodes)
    choices = {}
    for spec in specs:
        if spec.is_setting and spec.name not in known:
            holding = _holding(spec.name, nodes)
            found = [True, False] if spec.dtype.kind == "b" else list(_compared(holding, nodes, constants))
            if found:
                choices[spec.name] = [value for value in dict.fromkeys([*found, 1]) if _fits(value, spec.dtype)]
    tries = product(*choices.values())
    return [dict(zip(choices, values, strict=True)) for values, _ in zip(tries, range(MOST_TRIED), strict=False)]


def _fits(value: Any, dtype: np.dtype) -> bool:
    return dtype.kind == "b" or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _constants(proto: ModelProto, nodes: Sequence[NodeProto]) -> dict[str, TensorProto]:
    """By name the stored tensors, those of bodies and of Constant nodes included."""
    found = {tensor.name: tensor for tensor in stored_tensors(proto) if tensor.name}
    made = {
        node.output[0]: each.t for node in nodes if node.op_type == "Constant" for each in node.attribute if each.HasField("t")
    }
    return found | made


def _holding(name: str, nodes: Sequence[NodeProto]) -> set[str]:
    """The tensors that hold the value of a setting, nodes in an order that runs."""
    held = {name}
    for node in nodes:
        is_picked = node.op_type == "Gather"  # the only number of a vector
        if node.input and node.input[0] in held and (node.op_type in KEEPING or is_picked):
            held.update(node.output)
    return held


def _compared(held: set[str], nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> Iterator[int]:
    """The integers that a setting is compared with, and the first rows of a table that it looks up."""
    for node in nodes:
        others = [name for name in node.input if name not in held]
        if node.op_type in COMPARING and len(others) == 1 and others[0] in constants:
            tensor = constants[others[0]]
            if math.prod(tensor.dims) <= LARGEST_CONSTANT and not is_external(tensor):
                values = np.ravel(numpy_helper.to_array(tensor))
                numbers = values[np.isfinite(values)] if values.dtype.kind in "iuf" else values[:0]
                yield from (int(value) for value in numbers if value == np.floor(value))
        elif node.op_type == "Gather" and node.input[0] in constants and node.input[1] in held:
            yield from range(min(2, *constants[node.input[0]].dims[:1]))[::-1]


def numbers_used(graph: GraphProto, conditions: Mapping[str, bool]) -> int:
    """How many stored numbers the bodies that are run read, as a measure of their work.

    Parameters
    ----------
    graph : GraphProto
        The main graph.
    conditions : Mapping of str to bool
        What the If nodes of the graph read in a run; of others the lesser body counts.
    """
    stored = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    stored |= {node.output[0]: _made(node) for node in graph.node if node.op_type == "Constant"}
    return sum(_used_by(node, stored, conditions) for node in graph.node)


def _made(node: NodeProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in attribute_tensors(node.attribute))


def _used_by(node: NodeProto, stored: Mapping[str, int], conditions: Mapping[str, bool]) -> int:
    bodies = {each.name: sum(_used_in(body, stored) for body in bodies_of(each)) for each in node.attribute}
    if node.op_type != "If":
        return sum(bodies.values())
    if node.input[0] in conditions:
        return bodies["then_branch" if conditions[node.input[0]] else "else_branch"]
    return min(bodies.values())


def _used_in(body: GraphProto, stored: Mapping[str, int]) -> int:
    own = sum(math.prod(tensor.dims) for tensor in body.initializer)
    own += sum(_made(node) for node in body.node if node.op_type == "Constant")
    outer = sum(stored.get(name, 0) for node in body.node for name in node.input)
    return own + outer + sum(_used_by(node, stored, {}) for node in body.node)
