"""What becomes of channel counts and positions that nodes hold, once channels are removed: what edit rules read and return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_ids import Ids, collapse, varying_axes
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
        """The axis of a tensor that loses positions, and (extent,) bool: which are kept; None where none are removed."""
        mask = collapse(self.mask(self.channels.ids(tensor)))
        axes = varying_axes(mask)
        if not axes:
            return None
        (axis,) = axes
        return axis, mask.reshape(-1)

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
    """New constants for inputs of a node, by index, and new values for attributes, by name; None removes an attribute."""

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
