"""What is known of a model's tensors before channels are followed: shapes, constants, and shapes that the graph computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.nodes import has_input
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model

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
    other_shapes : Mapping[str, tuple of int] or None
        The same in a run with other sizes of the dynamic axes; None where nothing is dynamic.
    values : Mapping[str, ndarray]
        Small integer tensors of the first run by name: shapes and indices that the graph computes.
    """

    model: Model
    shapes: Shapes
    other_shapes: Shapes | None
    values: Mapping[str, np.ndarray]

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

    def parameter(self, node: gs.Node, name: str, index: int) -> np.ndarray | None:
        """What older opsets keep in the attribute `name` and newer ones in input `index`, as a one-dimensional array.

        None where it is neither given nor known.
        """
        if name in node.attrs:
            return np.atleast_1d(np.asarray(node.attrs[name]))
        value = self.value(node.inputs[index]) if has_input(node, index) else None
        return None if value is None else np.atleast_1d(value)
