"""What is known of a model's tensors before channels are followed: shapes, constants, and shapes that the graph computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxmerge.graph.constant_folding import Varying, constant_value
from onnxmerge.graph.nodes import has_input
from onnxmerge.graph.symbolic_shapes import STATIC, SymbolicShapes
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
    other_shapes : Mapping or None
        Shapes in a run with other sizes of the dynamic axes; None where nothing is dynamic.
    """

    model: Model
    shapes: Shapes
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    other_shapes: Shapes | None = None
    _varying: Varying = field(default_factory=dict, init=False, repr=False)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Concrete shape in the first run, or of a constant; None where it is not known."""
        if tensor.name in self.shapes:
            return self.shapes[tensor.name]
        constant = self.constant(tensor)
        return None if constant is None else constant.shape

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file; None for every other."""
        return constant_value(self.model, tensor, self._varying) if tensor.name else None

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """A constant, or a small integer tensor as the first run computed it; None for every other."""
        constant = self.constant(tensor)
        return self.values.get(tensor.name) if constant is None else constant

    @cached_property
    def symbols(self) -> SymbolicShapes:
        """What is proved of extents and of computed shapes."""
        return SymbolicShapes(self)

    def is_static(self, tensor: gs.Tensor) -> np.ndarray:
        """Which entries of a tensor are the same whatever is fed. One False where nothing is known."""
        constant = self.constant(tensor)
        return np.asarray(self.symbols.entries(tensor) == STATIC) if constant is None else np.ones(constant.shape, bool)

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

    def parameter(self, node: gs.Node, name: str, index: int, may_vary: bool = False) -> np.ndarray | None:
        """What older opsets keep in the attribute `name` and newer ones in input `index`, as a one-dimensional array.

        None where it is neither given nor static; may_vary: as the first run computed it will do.
        """
        if name in node.attrs:
            return np.atleast_1d(np.asarray(node.attrs[name]))
        find = self.value if may_vary else self.static_value
        value = find(node.inputs[index]) if has_input(node, index) else None
        return None if value is None else np.atleast_1d(value)
