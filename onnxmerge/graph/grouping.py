"""From ids to groups: what is united, written by one node or bound by a grouped convolution is decided together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, positions_of
from onnxmerge.graph.channel_ids import Flow, Partition, Rider, collapse
from onnxmerge.graph.layers import Consumer, Ids, Layer, Producer, label

T = TypeVar("T")


def grouped(flow: Flow) -> Channels:
    """Representatives, pins and links, gathered into groups."""
    roots = flow.roots(np.arange(len(flow.parents)))
    for name, ids in flow.tensors.items():
        flow.tensors[name] = collapse(roots[ids])
    pins: dict[int, Refusal] = {}
    for channel, why in flow.pins.items():
        pins.setdefault(int(roots[channel]), why)
    layers = [replace(layer, in_ids=roots[layer.in_ids], out_ids=roots[layer.out_ids]) for layer in flow.layers]
    riders = [Rider(rider.node, rider.input, roots[rider.ids]) for rider in flow.riders]
    partitions = [Partition(each.node, roots[each.ids]) for each in flow.partitions]
    components = _components(roots, [each.out_ids for each in layers] + [each.ids for each in partitions])
    members: dict[int, list[int]] = defaultdict(list)
    for channel in np.unique(roots[1:]).tolist():
        members[components[channel]].append(channel)
    parts = _Parts(np.array([components.get(int(root), -1) for root in roots]), layers, riders, partitions)
    groups, refusals = [], list(flow.refusals)
    for number, channel_ids in members.items():
        group = _group(np.array(channel_ids), len(roots), parts, number, pins)
        if group.producers and group.removable.any() and group.size > 1:
            groups.append(group)
        refusals += [group.refused_for(name) for name in group.layer_names if group.refusal]
    flow.riders = riders
    flow.layers = layers
    refusals += [Refusal(layer.name, Reason.SINGLE_CHANNEL) for layer in layers if not layer.out_ids.any()]
    order = {id(node): position for position, node in enumerate(flow.model.graph.nodes)}
    groups.sort(key=lambda group: order[id(group.producers[0].node)])
    return Channels(flow, tuple(groups), tuple(dict.fromkeys(refusals)))


class _Parts:
    """What touches each group, by the number of the group."""

    def __init__(self, number: np.ndarray, layers: list[Layer], riders: list[Rider], partitions: list[Partition]) -> None:
        self.number = number
        self.producing = self._sorted(layers, lambda each: each.out_ids)
        self.consuming = self._sorted(layers, lambda each: each.in_ids)
        self.riding = self._sorted(riders, lambda each: each.ids)
        self.binding = self._sorted(partitions, lambda each: each.ids)

    def _sorted(self, parts: list[T], ids_of: Callable[[T], Ids]) -> dict[int, list[T]]:
        found: dict[int, list[T]] = defaultdict(list)
        for part in parts:
            ids = ids_of(part)
            for number in np.unique(self.number[ids[ids > 0]]).tolist():
                found[number].append(part)
        return found


def _components(roots: Ids, together: list[Ids]) -> dict[int, int]:
    """Representative id -> number of its group: whatever one node writes or one partition binds is one group."""
    parents = {int(channel): int(channel) for channel in np.unique(roots)}

    def find(channel: int) -> int:
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    for ids in together:
        present = np.unique(ids[ids > 0]).tolist()
        for channel in present[1:]:
            parents[find(channel)] = find(present[0])
    return {channel: find(channel) for channel in parents}


def _group(channel_ids: Ids, count: int, parts: _Parts, number: int, pins: dict[int, Refusal]) -> ChannelGroup:
    """One group from its units."""
    index = np.full(count, -1)
    index[channel_ids] = np.arange(len(channel_ids))
    producers = tuple(Producer(w, positions_of(index, w.out_ids)) for w in parts.producing[number])
    consumers = tuple(Consumer(w, positions_of(index, w.in_ids)) for w in parts.consuming[number])
    own = tuple(parts.riding[number])
    pinned = [pins[channel] for channel in channel_ids.tolist() if channel in pins]
    removable = np.array([channel not in pins for channel in channel_ids.tolist()])
    conv_groups = _cells(index, len(channel_ids), parts.binding[number])
    if isinstance(conv_groups, Refusal):
        pinned, removable, conv_groups = (
            [conv_groups],
            np.zeros(len(channel_ids), bool),
            np.zeros(len(channel_ids), np.int64),
        )
    if not pinned and len(channel_ids) == 1:
        pinned = [Refusal("", Reason.ALL_AT_ONCE)]
    name = label(producers[0].node) if producers else ""
    return ChannelGroup(name, channel_ids, removable, conv_groups, producers, consumers, own, pinned[0] if pinned else None)


def _cells(index: np.ndarray, count: int, partitions: list[Partition]) -> np.ndarray | Refusal:
    """Labels such that equal numbers kept in every label keep every block of every partition equal; a reason if none do."""
    labels = np.zeros(count, np.int64)
    for partition in partitions:
        ids = partition.ids
        owner = np.where(ids > 0, index[ids], -1)
        if (owner < 0).all():
            continue
        table = np.zeros((count, len(ids)), np.int64)
        block = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
        np.add.at(table, (owner[owner >= 0], block[owner >= 0]), 1)
        fixed = (owner < 0).sum(1)
        single = (table > 0).sum(1) == 1
        even = (table == table[:, :1]).all(1)
        if (fixed != fixed[0]).any() or not (single | even).all() or (even.any() and not even.all()):
            return refusal("", Reason.UNEQUAL_GROUPS, node=label(partition.node))
        if not even.all():
            labels = labels * len(ids) + table.argmax(1)
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    if len(set(np.bincount(labels).tolist())) > 1:
        bound = ", ".join(dict.fromkeys(label(partition.node) for partition in partitions))
        return refusal("", Reason.BOUND_UNEQUALLY, node=bound)
    return labels
