"""A failing model made smaller for as long as it still fails: outputs and nodes are taken out one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper
from running import run

from .generate import LARGE, REJECTED, Generated


def shrunk(graph: Generated, fails: Callable[[Generated], bool]) -> Generated:
    """The smallest failing model that taking out one output or bypassing one node at a time leads to."""
    changed = True
    while changed:
        changed = False
        for model in smaller(graph):
            candidate = replace(graph, model=model)
            if runs(candidate) and fails(candidate):
                graph, changed = candidate, True
                break
    return graph


def runs(graph: Generated) -> bool:
    """Whether the model is valid and ONNX Runtime runs it."""
    try:
        onnx.checker.check_model(graph.model, full_check=True)
        runs = [run(graph.model, graph.feeds(number)) for number in range(1 + graph.is_dynamic)]
        return all(np.isfinite(y).all() and np.abs(y).max() < LARGE for outputs in runs for y in outputs)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *REJECTED):
        return False


def smaller(graph: Generated) -> Iterator[onnx.ModelProto]:
    """The model without one output; without one node, whose readers read one of its inputs instead."""
    for output in graph.model.graph.output:
        if len(graph.model.graph.output) > 1:
            yield without(graph.model, output=output.name)
    names = [name for node in graph.model.graph.node for name in node.output if name]
    seen = dict(zip(names, run(graph.model, graph.feeds(), tuple(names))[len(graph.model.graph.output) :], strict=True))
    seen |= graph.feeds()
    for position in reversed(range(len(graph.model.graph.node))):
        node = graph.model.graph.node[position]
        if node.op_type == "Identity" and node.output[0] in {output.name for output in graph.model.graph.output}:
            continue
        for name in dict.fromkeys(node.input):
            old, new = (seen.get(each) for each in (name, node.output[0]))
            if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and (old.shape, old.dtype) == (new.shape, new.dtype):
                yield without(graph.model, node=position, instead=name)


def without(model: onnx.ModelProto, *, output: str = "", node: int = -1, instead: str = "") -> onnx.ModelProto:
    """A copy without an output, or without a node, and without what nothing reads any more."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    del graph.value_info[:]
    if output:
        kept = [each for each in graph.output if each.name != output]
        del graph.output[:]
        graph.output.extend(kept)
    else:
        gone = graph.node[node].output[0]
        if gone in {each.name for each in graph.output}:
            graph.node[node].CopyFrom(helper.make_node("Identity", [instead], [gone]))
        else:
            del graph.node[node]
            for other in graph.node:
                other.input[:] = [instead if name == gone else name for name in other.input]
    needed = {each.name for each in graph.output}
    for each in reversed(list(graph.node)):
        if needed & set(each.output):
            needed |= set(each.input) | {name for a in each.attribute if a.HasField("g") for n in a.g.node for name in n.input}
        else:
            graph.node.remove(each)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
        for value in [each for each in graph.input if each.name == tensor.name]:
            graph.input.remove(value)
    return model


def described(model: onnx.ModelProto) -> str:
    """The model on a few lines."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    lines = [f"opset {model.opset_import[0].version}"]
    for node in model.graph.node:
        inputs = ", ".join(f"{name}{shapes[name]}" if name in shapes else name or "_" for name in node.input)
        attributes = ", ".join(
            f"{each.name}={helper.get_attribute_value(each)}"
            for each in node.attribute
            if not each.HasField("g") and not each.HasField("t")
        )
        lines.append(f"  {', '.join(node.output)} = {node.op_type}({inputs}) {attributes}".rstrip())
    return "\n".join([*lines, f"  -> {', '.join(each.name for each in model.graph.output)}"])
