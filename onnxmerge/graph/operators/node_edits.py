"""What becomes of channel counts and positions that nodes hold, once channels are removed: what edit rules read and return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxmerge.errors import ModelError
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_ids import Ids, channel_axis_and_rows, collapse, varying_axes
from onnxmerge.graph.nodes import node_name
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


@dataclass(frozen=True, eq=False)
class KeptChannels:
    """Which channels of a model are kept, and what that makes of its tensors.

    Attributes
    ----------
    channels : Channels
        The channel analysis of the model.
    is_kept : ndarray of shape (number of ids,), bool
        Whether the channel of each id is kept.
    """

    channels: Channels
    is_kept: np.ndarray

    @property
    def facts(self) -> TensorFacts:
        """Shapes and constants of the model before anything is removed."""
        return self.channels.facts

    def mask(self, ids: Ids) -> np.ndarray:
        """Whether the channel at each position of an id array is kept."""
        return np.asarray(self.is_kept[ids])

    def axis_mask(self, tensor: gs.Tensor) -> tuple[int, np.ndarray] | None:
        """The axis of a tensor that loses positions, and (extent,) bool: which are kept; None where none are removed.

        Where every row (head) keeps other positions, equally many, those of the first.
        """
        found = self._kept_along_an_axis(self.channels.ids(tensor), tensor.name)
        return None if found is None else (found[0], np.moveaxis(found[1], found[0], -1).reshape(-1, found[1].shape[found[0]])[0])

    def of_kept(self, value: np.ndarray, ids: Ids, name: str) -> np.ndarray | None:
        """An array without the entries of removed channels; None where none are removed.

        Parameters
        ----------
        value : ndarray
            A constant.
        ids : ndarray
            Id array that broadcasts to it.
        name : str
            What it is called.
        """
        found = self._kept_along_an_axis(ids, name)
        if found is None:
            return None
        rows, mask = (np.moveaxis(each, found[0], -1) for each in (value, np.broadcast_to(found[1], value.shape)))
        return np.ascontiguousarray(np.moveaxis(rows[mask].reshape(*rows.shape[:-1], -1), -1, found[0]))

    def _kept_along_an_axis(self, ids: Ids, name: str) -> tuple[int, np.ndarray] | None:
        """The axis of an id array that loses positions, and a mask that broadcasts to it; name: what it is of.

        Raises
        ------
        ModelError
            Where none would be kept.
        """
        mask = collapse(self.mask(ids))
        if mask.size and not mask.any():
            raise ModelError(f"no channel of {name} would be left")
        axes = varying_axes(mask)
        if not axes:
            return None
        return axes[0] if len(axes) == 1 else channel_axis_and_rows(ids, self.channels.row_labels)[0], mask

    def axis_mask_along(self, tensor: gs.Tensor, axis: int) -> np.ndarray | None:
        """(extent,) bool: which positions of one axis are kept; None where none of them are removed."""
        removed = self.axis_mask(tensor)
        return removed[1] if removed is not None and removed[0] == axis else None

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """Concrete shape of a tensor once the channels are removed."""
        shape = list(self.facts.shape(tensor) or ())
        removed = self.axis_mask(tensor)
        if removed is not None:
            shape[removed[0]] = int(removed[1].sum())
        return tuple(shape)


@dataclass(frozen=True)
class NodeEdit:
    """What becomes of one node.

    Attributes
    ----------
    inputs : dict[int, ndarray]
        New constants by index of the input.
    attributes : dict[str, Any]
        New values by name; None removes an attribute.
    added : dict[int, ndarray]
        By index of an input that the graph computes, what is added to it.
    added_to_output : ndarray or None
        What is added to the node's output.
    operator : str
        The operator that takes the place of the node's own, with the first input, `inputs` and `attributes` alone; "" for none.
    """

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    added: dict[int, np.ndarray] = field(default_factory=dict)
    added_to_output: np.ndarray | None = None
    operator: str = ""


def operand_edit(facts: TensorFacts, node: gs.Node, operands: Mapping[int, ArrayLike]) -> NodeEdit:
    """Shapes, sizes or bounds that a node reads, by index of the input, changed to others of the same length.

    They become constants where every entry is static. To others that the graph computes the difference is added: they have in
    the smaller model the values that they had before, since `Shape` is edited so.
    """
    inputs, added = {}, {}
    for index, wanted in operands.items():
        old = facts.value(node.inputs[index])
        if old is None:
            raise ValueError(f"input {index} of {node_name(node)} is not known")
        new = np.asarray(wanted, old.dtype)
        if (new != old).any():
            if facts.is_static(node.inputs[index]).all():
                inputs[index] = new
            else:
                added[index] = new - old
    return NodeEdit(inputs, added=added)
