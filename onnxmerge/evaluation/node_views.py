"""The nodes of a main graph as a comparison sees them: what each reads, and the constants that are its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxmerge.execution.sessions import ModelSource
from onnxmerge.execution.shapes import read_graph

LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INPUT_NAMES = {
    **dict.fromkeys(("Conv", "ConvTranspose"), ("input", "weight", "bias")),
    "Gemm": ("input", "weight", "bias"),
    "MatMul": ("left matrix", "weight"),
    "BatchNormalization": ("input", "scale", "bias", "mean", "variance"),
}
_FLOATING = frozenset(number for name, number in onnx.TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE")


@dataclass(frozen=True)
class NodeView:
    """A node. reads: what depends on the graph inputs, captured by bodies too; constants: the other inputs by position."""

    name: str
    op_type: str
    outputs: tuple[str, ...]
    dynamic_inputs: tuple[str, ...]
    constants: dict[int, str]
    attributes: bytes = field(repr=False)

    def input_name(self, position: int) -> str:
        """What an input is called in a sentence."""
        names = _INPUT_NAMES.get(self.op_type, ())
        return names[position] if position < len(names) else f"input {position}"


@dataclass(frozen=True)
class GraphView:
    """A main graph; `folder` is where its external data lies."""

    nodes: tuple[NodeView, ...]
    proto: onnx.ModelProto = field(repr=False)
    folder: Path | None

    @property
    def producers(self) -> dict[str, NodeView]:
        """Tensor -> the node that writes it, for every tensor that depends on the graph inputs."""
        return {name: node for node in self.nodes for name in node.outputs}

    @property
    def layers(self) -> tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]:
        """Operator and shapes of the stored weights of every layer: equal for two models where no channel was removed."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in self.proto.graph.initializer}
        found = [(node.op_type, node.constants.values()) for node in self.nodes if node.op_type in LAYER_OPERATORS]
        return tuple((op_type, tuple(shapes.get(name, ()) for name in names)) for op_type, names in found)

    @property
    def float_types(self) -> frozenset[str]:
        """ONNX's names of the floating-point types that weights are stored in."""
        kinds = {tensor.data_type for tensor in self.proto.graph.initializer} & _FLOATING
        return frozenset(onnx.TensorProto.DataType.Name(kind) for kind in kinds)

    def weight(self, name: str) -> np.ndarray | None:
        """A stored tensor by name, read from the external file where it is there; None for what is no initializer."""
        for tensor in self.proto.graph.initializer:
            if tensor.name == name:
                return _array(tensor, self.folder)
        return None

    def not_finite(self) -> list[str]:
        """Layers whose own stored numbers hold NaN or infinity, and what holds them: 'Conv_3: its weight holds NaN'."""
        layers = {name: (node, position) for node in reversed(self.nodes) for position, name in node.constants.items()}
        found = []
        for tensor in self.proto.graph.initializer:
            if tensor.data_type in _FLOATING and not np.isfinite(_array(tensor, self.folder)).all():
                node, position = layers.get(tensor.name, (None, 0))
                place = f"the tensor {tensor.name}" if node is None else f"the {node.input_name(position)} of {node.name}"
                found.append(f"{place} holds NaN or infinity")
        return found


def read_graph_view(model: ModelSource, label: str) -> GraphView:
    """Read a graph without its external weights. Raises ModelError."""
    proto = read_graph(model, label)
    stored = {tensor.name for tensor in (*proto.graph.initializer, *(each.values for each in proto.graph.sparse_initializer))}
    varying = {value.name for value in proto.graph.input} - stored
    nodes = []
    for node in proto.graph.node:
        read = list(dict.fromkeys((*node.input, *_captured(node))))
        dynamic_inputs = tuple(name for name in read if name in varying)
        if not dynamic_inputs:
            continue
        constants = {position: name for position, name in enumerate(node.input) if name and name not in varying}
        outputs = tuple(name for name in node.output if name)
        varying.update(outputs)
        nodes.append(NodeView(_named(node), node.op_type, outputs, dynamic_inputs, constants, _settings(node)))
    return GraphView(tuple(nodes), proto, model.parent if isinstance(model, Path) else None)


def _named(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}({next(iter(node.output), '')})"


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names read inside the node's bodies; those that the bodies write themselves are harmless."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from inner.input
                yield from _captured(inner)


def _settings(node: onnx.NodeProto) -> bytes:
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    return node.domain.encode() + b"".join(attribute.SerializeToString(deterministic=True) for attribute in attributes)


def _array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    array = numpy_helper.to_array(tensor, str(folder or ""))
    return array if array.dtype.kind in "biufcOSU" else array.astype(np.float32)  # bfloat16, float8
