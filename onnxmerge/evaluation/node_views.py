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

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SLOTS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), ("input", "weight", "bias")),
    "Gemm": ("input", "weight", "bias"),
    "MatMul": ("left matrix", "weight"),
    "BatchNormalization": ("input", "scale", "bias", "mean", "variance"),
}
_FLOATING = frozenset(number for name, number in onnx.TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE")


@dataclass(frozen=True)
class Wire:
    """A node. reads: what depends on the graph inputs, captured by bodies too; constants: the other inputs by position."""

    name: str
    operator: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    constants: dict[int, str]
    attributes: bytes = field(repr=False)

    def slot(self, position: int) -> str:
        """What an input is called in a sentence."""
        names = _SLOTS.get(self.operator, ())
        return names[position] if position < len(names) else f"input {position}"


@dataclass(frozen=True)
class Wiring:
    """A main graph; `folder` is where its external data lies."""

    wires: tuple[Wire, ...]
    proto: onnx.ModelProto = field(repr=False)
    folder: Path | None

    @property
    def writers(self) -> dict[str, Wire]:
        """Tensor -> the node that writes it, for every tensor that depends on the graph inputs."""
        return {name: wire for wire in self.wires for name in wire.writes}

    @property
    def layers(self) -> tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]:
        """Operator and shapes of the stored weights of every layer: equal for two models where no channel was removed."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in self.proto.graph.initializer}
        found = [(wire.operator, wire.constants.values()) for wire in self.wires if wire.operator in WEIGHTED]
        return tuple((operator, tuple(shapes.get(name, ()) for name in names)) for operator, names in found)

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
        layers = {name: (wire, position) for wire in reversed(self.wires) for position, name in wire.constants.items()}
        found = []
        for tensor in self.proto.graph.initializer:
            if tensor.data_type in _FLOATING and not np.isfinite(_array(tensor, self.folder)).all():
                wire, position = layers.get(tensor.name, (None, 0))
                place = f"the tensor {tensor.name}" if wire is None else f"the {wire.slot(position)} of {wire.name}"
                found.append(f"{place} holds NaN or infinity")
        return found


def wiring_of(model: ModelSource, label: str) -> Wiring:
    """Read a graph without its external weights. Raises ModelError."""
    proto = read_graph(model, label)
    stored = {tensor.name for tensor in (*proto.graph.initializer, *(each.values for each in proto.graph.sparse_initializer))}
    varying = {value.name for value in proto.graph.input} - stored
    wires = []
    for node in proto.graph.node:
        read = list(dict.fromkeys((*node.input, *_captured(node))))
        reads = tuple(name for name in read if name in varying)
        if not reads:
            continue
        constants = {position: name for position, name in enumerate(node.input) if name and name not in varying}
        writes = tuple(name for name in node.output if name)
        varying.update(writes)
        wires.append(Wire(_named(node), node.op_type, writes, reads, constants, _settings(node)))
    return Wiring(tuple(wires), proto, model.parent if isinstance(model, Path) else None)


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
