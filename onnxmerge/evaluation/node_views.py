"""The nodes of a main graph for a comparison: which inputs of each depend on the graph inputs, and which are constant."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from onnxmerge.execution.sessions import ModelSource
from onnxmerge.execution.shapes import read_graph
from onnxmerge.onnxio.tensors import array_of
from onnxmerge.onnxio.traversal import bodies_of, tensor_names_in_attribute

# Operators whose constant inputs are weights
LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Shape = tuple[int, ...]
_FLOATING = frozenset(number for name, number in onnx.TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE")


@dataclass(frozen=True)
class NodeView:
    """A node that depends on the graph inputs.

    Attributes
    ----------
    name : its own, or for an unnamed node its operator and first output
    op_type : its operator
    outputs : names of its outputs
    dynamic_inputs : names of the tensors it reads that depend on the graph inputs, by its bodies too
    constants : names of its other inputs by position
    attributes : domain and attributes, equal for equal nodes
    """

    name: str
    op_type: str
    outputs: tuple[str, ...]
    dynamic_inputs: tuple[str, ...]
    constants: dict[int, str]
    attributes: bytes = field(repr=False)


@dataclass(frozen=True)
class GraphView:
    """A main graph.

    Attributes
    ----------
    nodes : those that depend on the graph inputs, in the order they run
    proto : the model, with its external data left outside
    folder : where external data is; None for a model in memory
    """

    nodes: tuple[NodeView, ...]
    proto: onnx.ModelProto = field(repr=False)
    folder: Path | None

    @cached_property
    def producers(self) -> dict[str, NodeView]:
        """The node that writes each tensor, by the tensor's name."""
        return {name: node for node in self.nodes for name in node.outputs}

    @property
    def layers(self) -> tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]:
        """Operator and shapes of the weights of every layer, those in bodies behind: equal where no channel was removed."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in self.proto.graph.initializer}
        found = [(node.op_type, node.constants.values()) for node in self.nodes if node.op_type in LAYER_OPERATORS]
        own = ((op_type, tuple(shapes.get(name, ()) for name in names)) for op_type, names in found)
        return (*own, *_layers_in_bodies(self.proto.graph, {}))

    @property
    def float_types(self) -> frozenset[str]:
        """ONNX's names of the floating-point types that weights are stored in."""
        kinds = {tensor.data_type for tensor in self.proto.graph.initializer} & _FLOATING
        return frozenset(onnx.TensorProto.DataType.Name(kind) for kind in kinds)

    def weight(self, name: str) -> np.ndarray | None:
        """An initializer by name, external ones included; None for other tensors."""
        return next((_array(each, self.folder) for each in self.proto.graph.initializer if each.name == name), None)


def read_graph_view(model: ModelSource, label: str) -> GraphView:
    """Read a model without its external data; `label` is what errors call it. Raises ModelError."""
    return graph_view(read_graph(model, label), model.parent if isinstance(model, Path) else None)


def graph_view(proto: onnx.ModelProto, folder: Path | None) -> GraphView:
    """The main graph of a model; folder: where its external data is."""
    stored = {tensor.name for tensor in (*proto.graph.initializer, *(each.values for each in proto.graph.sparse_initializer))}
    varying = {value.name for value in proto.graph.input} - stored
    nodes = []
    for node in proto.graph.node:
        captured = sorted(name for attribute in node.attribute for name in tensor_names_in_attribute(attribute))
        read = list(dict.fromkeys((*node.input, *captured)))
        dynamic_inputs = tuple(name for name in read if name in varying)
        if not dynamic_inputs:
            continue
        constants = {position: name for position, name in enumerate(node.input) if name and name not in varying}
        outputs = tuple(name for name in node.output if name)
        varying.update(outputs)
        name = node.name or f"{node.op_type}({next(iter(node.output), '')})"
        nodes.append(NodeView(name, node.op_type, outputs, dynamic_inputs, constants, _attributes(node)))
    return GraphView(tuple(nodes), proto, folder)


def _layers_in_bodies(graph: onnx.GraphProto, around: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[Shape, ...]]]:
    """Operator and shapes of the weights of the layers in the bodies of a graph; around: shapes of what stands outside of it."""
    shapes = {**around, **_stored_shapes(graph)}
    for body in [body for node in graph.node for attribute in node.attribute for body in bodies_of(attribute)]:
        known = {**shapes, **_stored_shapes(body)}
        for node in body.node:
            if node.op_type in LAYER_OPERATORS:
                yield node.op_type, tuple(known[name] for name in node.input if name in known)
        yield from _layers_in_bodies(body, shapes)


def _stored_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes of the initializers and Constant nodes of a graph by name."""
    made = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    return {name: tuple(tensor.dims) for name, tensor in (made | {each.name: each for each in graph.initializer}).items()}


def _attributes(node: onnx.NodeProto) -> bytes:
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    return node.domain.encode() + b"".join(attribute.SerializeToString(deterministic=True) for attribute in attributes)


def _array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    array = array_of(tensor, folder or Path())
    return array if array.dtype.kind in "biufcOSU" else array.astype(np.float32)  # bfloat16, float8
