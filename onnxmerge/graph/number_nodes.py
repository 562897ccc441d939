"""Nodes that multiply a tensor by one number or add one number to it, and who reads the tensors around them."""

from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.constant_folding import Varying, constant_value
from onnxmerge.graph.nodes import is_standard
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import tensor_names_in_attribute

_FIRST_IR = 4
"""Version of the format from which on an initializer is constant unless it is a graph input too; before it must be one."""


@dataclass(frozen=True)
class Line:
    """factor * data + offset: what a node computes of its one input that is no constant."""

    factor: float
    offset: float
    data: gs.Tensor


class NumberNodes:
    """Recognises such nodes in the main graph of a model, while it is edited."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._varying: Varying = {}  # what is edited leaves what depends on the inputs as dependent as it was
        inputs = model.proto.graph.input if model.proto.ir_version >= _FIRST_IR else ()
        self._given = {tensor.name for tensor in inputs}  # initializers among them are defaults, callers may give other values
        self._kept = {tensor.name for tensor in model.graph.outputs}
        for node in model.graph.nodes:
            for attribute in node.attrs.values():
                self._kept |= tensor_names_in_attribute(attribute)

    def is_kept(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is a graph output, or a body reads it."""
        return tensor.name in self._kept

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that reads a tensor, where nothing else does."""
        return tensor.outputs[0] if len(tensor.outputs) == 1 and not self.is_kept(tensor) else None

    def only_producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that writes a tensor, where nothing but one input of one node reads it."""
        return tensor.inputs[0] if len(tensor.inputs) == 1 and self.only_reader(tensor) is not None else None

    def stored(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of an initializer or of a Constant; None for one that callers may replace."""
        if tensor.name in self._given:
            return None
        is_stored = isinstance(tensor, gs.Constant) or [node.op for node in tensor.inputs] == ["Constant"]
        return constant_value(self._model, tensor) if is_stored else None

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file."""
        return None if tensor.name in self._given else constant_value(self._model, tensor, self._varying)

    def number(self, tensor: gs.Tensor) -> float | None:
        """The value of a constant of one element that the file stores."""
        value = self.stored(tensor)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def line(self, node: gs.Node) -> Line | None:
        """What a node computes that multiplies a tensor by one number, or adds one to it; None for other nodes."""
        found = self.operands(node) if is_standard(node) and node.op in ("Add", "Sub", "Mul", "Div") else None
        if found is None:
            return None
        number, data = found
        is_first = node.inputs[0] is data
        if node.op == "Add":
            return Line(1.0, number, data)
        if node.op == "Sub":
            return Line(1.0, -number, data) if is_first else Line(-1.0, number, data)
        if number == 0.0 or (node.op == "Div" and not is_first):
            return None
        return Line(number if node.op == "Mul" else 1.0 / number, 0.0, data)

    def operands(self, node: gs.Node) -> tuple[float, gs.Tensor] | None:
        """The number that one input of a node of two holds, and its other input, which is no number."""
        numbers = [self.number(tensor) for tensor in node.inputs]
        match numbers:
            case [None, float(number)]:
                return number, node.inputs[0]
            case [float(number), None]:
                return number, node.inputs[1]
        return None
