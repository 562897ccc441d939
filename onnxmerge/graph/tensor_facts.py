"""What is known of a model's tensors before channels are followed: shapes, constants, and shapes that the graph computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.nodes import has_input
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import names_read

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class TensorFacts:
    """A model with what one or two runs of it on small inputs showed.

    Attributes
    ----------
    model : Model
        The model.
    shapes : Mapping[str, tuple of int]
        Concrete shape of each tensor of the main graph in the first run, by name.
    values : Mapping[str, ndarray]
        Small integer tensors of the first run by name: shapes and indices that the graph computes.
    other_shapes, other_values : Mapping or None
        The same in a run with other sizes of the dynamic axes; None where nothing is dynamic.
    """

    model: Model
    shapes: Shapes
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    other_shapes: Shapes | None = None
    other_values: Mapping[str, np.ndarray] | None = None

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Concrete shape in the first run, or of a constant; None where it is not known."""
        if tensor.name in self.shapes:
            return self.shapes[tensor.name]
        constant = self.constant(tensor)
        return None if constant is None else constant.shape

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file; None for every other."""
        return constant_value(self.model, tensor) if tensor.name else None

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """A constant, or a small integer tensor as the first run computed it; None for every other."""
        constant = self.constant(tensor)
        return self.values.get(tensor.name) if constant is None else constant

    def is_static(self, tensor: gs.Tensor) -> np.ndarray:
        """Which entries of a tensor are known and the same whatever is fed: constants, and what the graph computes from shapes
        alone and gave the same in both runs. One False where nothing is known."""
        value = self.value(tensor)
        if value is None or self.constant(tensor) is not None:
            return np.full(() if value is None else value.shape, value is not None)
        other = (self.values if self.other_values is None else self.other_values).get(tensor.name)
        if other is None or other.shape != value.shape or not self._is_computed_from_shapes(tensor):
            return np.zeros(value.shape, bool)
        return np.asarray(value == other)

    def static_value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """A tensor all of whose entries are static, None for any other."""
        return self.value(tensor) if self.is_static(tensor).all() else None

    def is_read(self, tensor: gs.Tensor) -> bool:
        """Whether a node, a body or the graph's outputs read a tensor."""
        return tensor.name in self._names_read

    @cached_property
    def _names_read(self) -> set[str]:
        read = {name for node in self.model.graph.nodes for name in names_read(node)}
        return (read | {tensor.name for tensor in self.model.graph.outputs}) - {""}

    def _is_computed_from_shapes(self, tensor: gs.Tensor) -> bool:
        pending, seen = [tensor], set[str]()
        while pending:
            current = pending.pop()
            if current.name in seen or not current.name or self.constant(current) is not None:
                continue
            seen.add(current.name)
            if not current.inputs or any(True for _ in current.inputs[0].subgraphs()):
                return False
            if current.inputs[0].op not in ("Shape", "Size"):
                pending.extend(current.inputs[0].inputs)
        return True

    def parameter(self, node: gs.Node, name: str, index: int) -> np.ndarray | None:
        """What older opsets keep in the attribute `name` and newer ones in input `index`, as a one-dimensional array.

        None where it is neither given nor known.
        """
        if name in node.attrs:
            return np.atleast_1d(np.asarray(node.attrs[name]))
        value = self.value(node.inputs[index]) if has_input(node, index) else None
        return None if value is None else np.atleast_1d(value)
