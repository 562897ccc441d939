"""The state of one walk over the graph: which channel id stands at which position of which tensor.

An *id array* has the rank of its tensor and broadcasts to the tensor's concrete shape; 0 means "no channel that could go".
Ids that meet in a join are united (union-find); ids that meet something which cannot shrink are pinned, with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.constants import constant
from onnxmerge.graph.layers import Ids, Layer
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model


def varying(ids: Ids) -> list[int]:
    """Axes along which the ids differ."""
    return [axis for axis, extent in enumerate(ids.shape) if extent > 1]


def collapse(ids: Ids) -> Ids:
    """The smallest array that still broadcasts to the same ids."""
    for axis, extent in enumerate(ids.shape):
        if extent > 1 and (ids == ids.take([0], axis)).all():
            ids = ids.take([0], axis)
    return ids


def padded(ids: Ids, rank: int) -> Ids:
    """Leading axes of extent 1, as numpy's broadcasting would add them."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def along(ids: Ids, axis: int, rank: int) -> Ids:
    """A one-dimensional id array laid along one axis of a tensor."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


@dataclass(frozen=True)
class Rider:
    """A per-channel constant (bias, scale, BatchNormalization, slope, depthwise weight) that is sliced along with the ids."""

    node: gs.Node
    input: int
    ids: Ids

    @property
    def depthwise(self) -> bool:
        """Whether it is the weight of a depthwise convolution."""
        return self.node.op in ("Conv", "ConvTranspose") and self.input == 1


@dataclass(frozen=True)
class Partition:
    """ids (g, n/g) of the channels that enter or leave a grouped convolution: every row keeps equally many."""

    node: gs.Node
    ids: Ids


@dataclass
class Flow:
    """Everything the rules of the operator table read and note while the graph is walked once."""

    model: Model
    shapes: dict[str, tuple[int, ...]]
    other_shapes: dict[str, tuple[int, ...]] | None
    values: dict[str, np.ndarray]
    tensors: dict[str, Ids] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    riders: list[Rider] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    pins: dict[int, Refusal] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    parents: list[int] = field(default_factory=lambda: [0])
    _table: np.ndarray | None = None

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Concrete shape in the run that was observed, None where it could not be."""
        if tensor.name in self.shapes:
            return self.shapes[tensor.name]
        value = self.constant(tensor)
        return None if value is None else value.shape

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file."""
        return constant(self.model, tensor) if tensor.name else None

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """A constant, or a small integer value seen in the run (a shape that the graph computes)."""
        found = self.constant(tensor)
        return self.values.get(tensor.name) if found is None else found

    def ids(self, tensor: gs.Tensor) -> Ids:
        """The tensor's id array; zeros where nothing is known to be removable."""
        if tensor.name in self.tensors:
            return self.tensors[tensor.name]
        return np.zeros((1,) * len(self.shape(tensor) or ()), np.int64)

    def fresh(self, count: int) -> Ids:
        """New ids, one dimension. A single channel gets none: it cannot go, and it may be broadcast over other channels."""
        if count < 2:
            return np.zeros(count, np.int64)
        start, self._table = len(self.parents), None
        self.parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, channel: int) -> int:
        """The representative of an id (path halving)."""
        parents = self.parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def roots(self, ids: Ids) -> Ids:
        """Every id replaced by its representative."""
        if self._table is None:
            table = np.array(self.parents)
            while (table != table[table]).any():
                table = table[table]
            self._table = table
        return np.asarray(self._table[ids])

    def unite(self, left: Ids, right: Ids) -> None:
        """Ids at the same position go or stay together; a pair with 0 is left alone."""
        left, right = np.broadcast_arrays(left, right)
        different = (left != right) & (left > 0) & (right > 0)
        if not different.any():
            return
        for one, other in np.unique(np.stack([left[different], right[different]]), axis=1).T.tolist():
            one, other = self.find(one), self.find(other)
            self.parents[max(one, other)] = min(one, other)
        self._table = None

    def pin(self, ids: Ids, refusal: Refusal) -> None:
        """These ids stay; the first reason is the one that is told."""
        for channel in np.unique(ids[ids > 0]).tolist():
            self.pins.setdefault(channel, refusal)

    def flatten_to(self, ids: Ids, axes: list[int]) -> Ids:
        """Unite the ids along every other axis, which then has extent 1. A 0 among them pins the rest."""
        for axis in varying(ids):
            if axis in axes:
                continue
            first = ids.max(axis=axis, keepdims=True)
            self.unite(np.broadcast_to(first, ids.shape), ids)
            if ((ids == 0) & (first > 0)).any():
                stuck = np.broadcast_to(first, ids.shape)[ids == 0]
                self.pin(stuck, Refusal("", Reason.SHARES_A_CHANNEL))
            ids = first
        return ids

    def per_channel(self, tensor: gs.Tensor, axis: int) -> Ids:
        """One id for each position of one axis, full length."""
        ids = self.flatten_to(self.ids(tensor), [axis])
        shape = self.shape(tensor)
        assert shape is not None
        return np.broadcast_to(ids, (1,) * axis + (shape[axis],) + (1,) * (len(shape) - axis - 1)).reshape(-1)

    def ride(self, node: gs.Node, index: int, ids: Ids) -> None:
        """Note a per-channel constant, if it has any id at all."""
        if (ids > 0).any():
            self.riders.append(Rider(node, index, ids))
