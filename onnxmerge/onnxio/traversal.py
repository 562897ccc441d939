"""Walking a graph: bodies, tensor names, constants, and an order that runs."""

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxmerge.onnxio import surgeon as gs


def bodies_of(attribute: AttributeProto) -> list[GraphProto]:
    """The graphs that an attribute holds: bodies of If, Loop and Scan."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def graph_and_bodies(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and every body inside its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                yield from graph_and_bodies(body)


def tensors_read(node: NodeProto) -> set[str]:
    """Every tensor that a node reads, in its bodies too."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in bodies_of(attribute):
            found |= {name for inner in body.node for name in tensors_read(inner)} | {output.name for output in body.output}
    return found


def stored_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model stores, once: initializers and tensors in attributes, those of bodies and functions too."""
    yield from proto.graph.initializer
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        yield from attribute_tensors(node.attribute)


def attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    """The tensors in attributes, and in the bodies that these hold."""
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for body in bodies_of(attribute):
            yield from body.initializer
            for node in body.node:
                yield from attribute_tensors(node.attribute)


def tensor_names(graph: gs.Graph) -> set[str]:
    """Every tensor name that occurs in the graph or in a body inside it."""
    names = {tensor.name for tensor in [*graph.inputs, *graph.outputs]}
    for node in graph.nodes:
        names.update(tensor.name for tensor in [*node.inputs, *node.outputs])
        for attribute in node.attrs.values():
            names |= tensor_names_in_attribute(attribute)
    names.discard("")
    return names


def tensor_names_in_attribute(attribute: Any) -> set[str]:
    """The tensor names in the bodies that an attribute holds, as onnx-graphsurgeon's object or as read from the file."""
    if isinstance(attribute, gs.Graph):
        return tensor_names(attribute)
    if not isinstance(attribute, AttributeProto):
        return set()
    found: set[str] = set()
    for body in [inner for outer in bodies_of(attribute) for inner in graph_and_bodies(outer)]:
        found.update(value.name for value in [*body.input, *body.output])
        found.update(tensor.name for tensor in body.initializer)
        found.update(name for node in body.node for name in [*node.input, *node.output])
    return found - {""}


def names_read(node: gs.Node) -> list[str]:
    """The names of the tensors that a node reads, those included that its bodies take from the graph around them."""
    captured = sorted(name for value in node.attrs.values() for name in tensor_names_in_attribute(value))
    return [*(tensor.name for tensor in node.inputs), *captured]


def constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants that nodes and outputs of the graph read, those of bodies included; one may come more than once."""
    for node in graph.nodes:
        yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
        for body in node.subgraphs():
            yield from constants(body)
    yield from (tensor for tensor in graph.outputs if isinstance(tensor, gs.Constant))


def topological_order(graph: gs.Graph) -> list[gs.Node]:
    """The nodes, each behind those that it reads from, otherwise in the order in which they are listed."""
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    ordered: list[gs.Node] = []
    started: set[int] = set()
    for first in graph.nodes:
        stack = [(first, False)]
        while stack:
            node, sources_are_ordered = stack.pop()
            if sources_are_ordered:
                ordered.append(node)
            elif id(node) not in started:
                started.add(id(node))
                sources = [producers[name] for name in names_read(node) if name in producers]
                stack.append((node, True))
                stack.extend((source, False) for source in reversed(sources) if id(source) not in started)
    return ordered
