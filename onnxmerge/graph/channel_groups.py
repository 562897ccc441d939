"""What a model is to the methods: channel groups, who writes them and who reads them, and reasons for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.channel_ids import Flow, Ids, Rider, Weighted, label
from onnxmerge.results import Refusal


@dataclass(frozen=True)
class Link:
    """A weighted node seen from a group.

    places (n, r): for each unit its positions on the node's flattened output (producer) or input (consumer) channel axis,
    in ascending order, padded with -1 where it has fewer than r (none at all for a unit that the node does not touch).
    """

    weighted: Weighted
    places: np.ndarray

    @property
    def node(self) -> gs.Node:
        """The node itself."""
        return self.weighted.node

    @property
    def name(self) -> str:
        """The node's name, or what stands for it."""
        return label(self.node)

    @property
    def key(self) -> str:
        """The key of the weighted node."""
        return self.weighted.key


@dataclass(frozen=True)
class ChannelGroup:
    """n units that are decided together.

    units (n,) representative ids; removable (n,) bool; cells (n,) int: every cell must keep the same number of units
    (all zero without grouped convolutions); reason: why units are not removable, "" if all are.
    """

    name: str
    units: Ids
    removable: np.ndarray
    cells: np.ndarray
    producers: tuple[Link, ...]
    consumers: tuple[Link, ...]
    riders: tuple[Rider, ...]
    reason: str

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes whose outputs are the group's channels: producers and depthwise convolutions."""
        depthwise = (label(rider.node) for rider in self.riders if rider.depthwise)
        return (*(link.name for link in self.producers), *depthwise)

    @property
    def profiles(self) -> np.ndarray:
        """(n,) int: units with the same number are read by the same consumers in the same way, within the same cell."""
        counts = np.stack([self.cells, *((link.places >= 0).sum(1) for link in self.consumers)], axis=1)
        return np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Channels:
    """The model understood: groups that can shrink, in topological order, and reasons for all that cannot."""

    flow: Flow
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]


def unit_places(flow: Flow, group: ChannelGroup, ids: Ids) -> np.ndarray:
    """(n, r) positions of each unit of a group in a flattened id array, padded with -1."""
    index = np.full(len(flow.parents), -1)
    index[group.units] = np.arange(group.size)
    return places_of(index, ids)


def places_of(index: np.ndarray, ids: Ids) -> np.ndarray:
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
