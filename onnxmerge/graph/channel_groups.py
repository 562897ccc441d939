"""What a model is to the methods: channel groups, who writes them and who reads them, and reasons for the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_ids import Flow, Rider
from onnxmerge.graph.layers import Consumer, Ids, Producer, label


@dataclass(frozen=True)
class ChannelGroup:
    """n units that are decided together.

    units (n,) representative ids; removable (n,) bool; cells (n,) int: every cell must keep the same number of units
    (all zero without grouped convolutions); refusal: why channels are not removable, None if all are.
    """

    name: str
    channel_ids: Ids
    removable: np.ndarray
    conv_groups: np.ndarray
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    riders: tuple[Rider, ...]
    refusal: Refusal | None

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.channel_ids)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the nodes whose outputs are the group's channels: producers and depthwise convolutions."""
        depthwise = (label(rider.node) for rider in self.riders if rider.depthwise)
        return (*(link.name for link in self.producers), *depthwise)

    def refused_for(self, name: str) -> Refusal:
        """Why a layer of this group keeps channels; what stands in the way is the obstacle."""
        assert self.refusal is not None
        obstacle = self.refusal.obstacle or (self.refusal.where if self.refusal.where != name else "")
        return replace(self.refusal, where=name, obstacle=obstacle)

    @property
    def profiles(self) -> np.ndarray:
        """(n,) int: units with the same number are read by the same consumers in the same way, within the same cell."""
        counts = np.stack([self.conv_groups, *((link.positions >= 0).sum(1) for link in self.consumers)], axis=1)
        return np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Channels:
    """The model understood: groups that can shrink, in topological order, and reasons for all that cannot."""

    flow: Flow
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]


def channel_positions(flow: Flow, group: ChannelGroup, ids: Ids) -> np.ndarray:
    """(n, r) positions of each unit of a group in a flattened id array, padded with -1."""
    index = np.full(len(flow.parents), -1)
    index[group.channel_ids] = np.arange(group.size)
    return positions_of(index, ids)


def positions_of(index: np.ndarray, ids: Ids) -> np.ndarray:
    """(n, r) positions of each unit in a flattened id array."""
    flat = index[ids.reshape(-1)]
    flat[ids.reshape(-1) == 0] = -1
    count = int(index.max()) + 1
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    owner = flat[order]
    many = np.bincount(owner, minlength=count)
    places = np.full((count, max(1, many.max())), -1)
    places[owner, np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)] = order
    return places
