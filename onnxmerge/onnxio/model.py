"""A model being edited: what was read, which stays as it is, and the onnx-graphsurgeon graph, which is the only thing edited."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto

from onnxmerge.errors import ModelError
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.tensors import one_line


@dataclass
class Model:
    """`proto` as read (external weights stay outside), never changed; `graph` is edited; external data lies beside `path`."""

    proto: ModelProto
    graph: gs.Graph
    path: Path
    names_as_read: frozenset[str] = frozenset()
    folded: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    folded_bytes: int = field(default=0, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where the external data is."""
        return self.path.parent

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        versions = [entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")]
        return versions[0] if versions else 1


def fresh_copy(model: Model) -> Model:
    """The model as it was read, with a graph of its own that may be edited; nothing is read or checked again."""
    return from_proto(model.proto, model.path)


def from_proto(proto: ModelProto, path: str | Path = "model.onnx") -> Model:
    """A model from memory. Nothing is checked beyond what onnx-graphsurgeon needs; `load` checks files."""
    source = proto.graph if _all_text(proto.graph) else _without_binary_strings(proto.graph)
    try:
        graph = gs.import_graph(source, proto)
    except (gs.OnnxGraphSurgeonException, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the graph cannot be understood: {one_line(error)}") from error
    _keep_opaque_attributes(graph, proto.graph)
    names = names_used(graph).union(tensor.name for tensor in proto.graph.initializer)
    return Model(proto, graph, Path(path).absolute(), frozenset(names))


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from graphs(body)


def names_used(graph: gs.Graph) -> set[str]:
    """Every tensor name that occurs in the graph or in a body inside it."""
    names = {tensor.name for tensor in [*graph.inputs, *graph.outputs]}
    for node in graph.nodes:
        names.update([tensor.name for tensor in node.inputs])
        names.update([tensor.name for tensor in node.outputs])
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph | AttributeProto):
                names |= names_in(attribute)
    names.discard("")
    return names


def names_in(attribute: Any) -> set[str]:
    """The tensor names inside an attribute that holds bodies, as onnx-graphsurgeon's object or as read."""
    if isinstance(attribute, gs.Graph):
        return names_used(attribute)
    if not isinstance(attribute, AttributeProto):
        return set()
    found: set[str] = set()
    for body in [scope for top in [*attribute.graphs, attribute.g] for scope in graphs(top)]:
        found.update(value.name for value in [*body.input, *body.output])
        found.update(tensor.name for tensor in body.initializer)
        found.update(name for node in body.node for name in [*node.input, *node.output])
    return found - {""}


def constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants that nodes and outputs of the graph read, those of bodies included; one may come more than once."""
    for node in graph.nodes:
        yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
        for body in node.subgraphs():
            yield from constants(body)
    yield from (tensor for tensor in graph.outputs if isinstance(tensor, gs.Constant))


def in_order(graph: gs.Graph) -> list[gs.Node]:
    """The nodes, each behind those it reads from, otherwise in the order they are in."""
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    ordered: list[gs.Node] = []
    started: set[int] = set()
    for first in graph.nodes:
        stack = [(first, False)]
        while stack:
            node, done = stack.pop()
            if done:
                ordered.append(node)
            elif id(node) not in started:
                started.add(id(node))
                sources = [producers[name] for name in _names_read(node) if name in producers]
                stack.append((node, True))
                stack.extend((source, False) for source in reversed(sources) if id(source) not in started)
    return ordered


def _names_read(node: gs.Node) -> list[str]:
    """The names a node reads, those that its bodies take from around them included."""
    captured = sorted(name for value in node.attrs.values() for name in names_in(value))
    return [*(tensor.name for tensor in node.inputs), *captured]


def names_taken(model: Model) -> set[str]:
    """The names that a new tensor cannot have.

    Names as read stay taken: what was said about the tensor of that name (annotations, metadata) is not true of a new one.
    """
    return names_used(model.graph) | model.names_as_read


def set_constant(model: Model, name_hint: str, array: np.ndarray, taken: set[str] | None = None) -> gs.Constant:
    """A new constant with a name that nothing in the model has, holding a copy of the array (any dtype that ONNX has).

    taken: `names_taken(model)`, kept by callers that make many; the new name is added to it.
    """
    taken = names_taken(model) if taken is None else taken
    name, number = name_hint, 0
    while not name or name in taken:
        number += 1
        name = f"{name_hint}_{number}"
    taken.add(name)
    native = array.dtype.newbyteorder("=")
    onnx.helper.np_dtype_to_tensor_dtype(native)  # raises here, not at export, for a dtype that ONNX lacks
    return gs.Constant(name, np.array(array, native, order="C"))


def prune_dead(model: Model) -> None:
    """Take out the nodes whose outputs nobody reads; graph inputs and outputs stay. Unused initializers go at export."""
    _prune(model.graph)


def _prune(graph: gs.Graph) -> None:
    for body in graph.subgraphs():
        _prune(body)
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    pending, live = [tensor.name for tensor in graph.outputs], set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or id(node) in live:
            continue
        live.add(id(node))
        pending.extend(_names_read(node))
    for node in graph.nodes:
        if id(node) not in live:
            _detach(node)
    graph.nodes[:] = [node for node in graph.nodes if id(node) in live]


def _detach(node: gs.Node) -> None:
    """Tensors forget the node, and the nodes in its bodies, as their consumers."""
    for body in node.subgraphs():
        for inner in body.nodes:
            _detach(inner)
    node.inputs.clear()
    node.outputs.clear()


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _attribute_is_text(attribute: AttributeProto) -> bool:
    return all(map(_is_text, [attribute.s, *attribute.strings]))


def _all_text(graph: GraphProto) -> bool:
    return all(_attribute_is_text(attribute) for scope in graphs(graph) for node in scope.node for attribute in node.attribute)


def _without_binary_strings(graph: GraphProto) -> GraphProto:
    """onnx-graphsurgeon decodes every string; those that are no text are kept aside, as read."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    for scope in graphs(copy):
        for node in scope.node:
            kept = [attribute for attribute in node.attribute if _attribute_is_text(attribute)]
            if len(kept) < len(node.attribute):
                kept = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
                del node.attribute[:]
                node.attribute.extend(kept)
    return copy


def _keep_opaque_attributes(graph: gs.Graph, source: GraphProto) -> None:
    """Put attributes that onnx-graphsurgeon skipped (types, sparse tensors, lists of bodies) on its nodes, as read."""
    for node, original in zip(graph.nodes, source.node, strict=True):
        missing = any(attribute.name not in node.attrs for attribute in original.attribute)
        for attribute in original.attribute:
            if isinstance(node.attrs.get(attribute.name), gs.Graph):
                _keep_opaque_attributes(node.attrs[attribute.name], attribute.g)
        if missing:
            node.attrs = OrderedDict((each.name, node.attrs.get(each.name, each)) for each in original.attribute)
