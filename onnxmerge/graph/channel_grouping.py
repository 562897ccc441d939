"""From channel ids to channel groups: what one layer writes, or one grouped convolution binds, is decided together."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, positions_of
from onnxmerge.graph.channel_ids import Ids, UnionFind, collapse
from onnxmerge.graph.channel_propagation import ChannelParameter, ChannelPropagation, EqualGroups, Product
from onnxmerge.graph.layers import Consumer, Layer, Producer
from onnxmerge.graph.nodes import node_name

T = TypeVar("T")


def form_groups(propagation: ChannelPropagation, shared_weight_keys: frozenset[str]) -> Channels:
    """The channel analysis from what was noted while the nodes were visited, every id replaced by its representative."""
    ids = propagation.united.representatives(np.arange(propagation.united.count))
    pins: dict[int, Refusal] = {}
    for channel, why in propagation.pins.items():
        pins.setdefault(int(ids[channel]), why)
    layers = [replace(each, in_ids=ids[each.in_ids], out_ids=ids[each.out_ids]) for each in propagation.layers]
    parameters = [replace(each, ids=ids[each.ids]) for each in propagation.parameters]
    equal_groups = [replace(each, ids=ids[each.ids]) for each in propagation.equal_groups]
    tensor_ids = {name: collapse(ids[of_tensor]) for name, of_tensor in propagation.tensor_ids.items()}
    products = [
        replace(each, factors=tuple(ids[factor] for factor in each.factors), sources=_sources(each, propagation.layers, layers))
        for each in propagation.products
    ]
    labels = propagation.row_labels()
    formation = _GroupFormation(ids, layers, parameters, equal_groups, products, tensor_ids.values())
    groups = [formation.group(number, pins) for number in formation.numbers()]
    refusals = [*propagation.refusals]
    refusals += [group.refusal_of(name) for group in groups if group.refusal is not None for name in group.layer_names]
    refusals += [Refusal(layer.name, Reason.SINGLE_CHANNEL) for layer in layers if not layer.out_ids.any()]
    order = {id(node): position for position, node in enumerate(propagation.facts.model.graph.nodes)}
    groups = _with_names_of_their_own([group for group in groups if group.producers and group.removable.any() and group.size > 1])
    return Channels(
        facts=propagation.facts,
        layers=tuple(layers),
        parameters=tuple(parameters),
        tensor_ids=tensor_ids,
        row_labels=labels,
        shared_weight_keys=shared_weight_keys,
        means=propagation.means,
        groups=tuple(sorted(groups, key=lambda group: order[id(group.producers[0].node)])),
        refusals=tuple(dict.fromkeys(refusals)),
    )


def _sources(
    product: Product, layers: list[Layer], with_representatives: list[Layer]
) -> tuple[tuple[Layer, np.ndarray] | None, ...]:
    """The layer that writes the channels of each factor, and where; layers: before ids were replaced by representatives."""
    found: list[tuple[Layer, np.ndarray] | None] = []
    for factor in product.factors:
        bounds = ((layer.out_ids.min(), layer.out_ids.max()) for layer in layers)  # ids of a layer follow one another
        at = next((at for at, (first, last) in enumerate(bounds) if 0 < first <= factor.min() and factor.max() <= last), None)
        found.append(None if at is None else (with_representatives[at], factor - layers[at].out_ids.min()))
    return tuple(found)


def _with_names_of_their_own(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Groups that begin in one layer (query and key, and value, of a fused projection) told apart by a number."""
    count = Counter[str]()
    named = []
    for group in groups:
        count[group.name] += 1
        named.append(replace(group, name=f"{group.name}#{count[group.name]}") if count[group.name] > 1 else group)
    return named


@dataclass(frozen=True, eq=False)
class _Holder:
    """What a tensor, a weight or a per-channel constant holds of one group: ids, how often each, and whether that must not be
    removed as a whole, since it holds no others, or more of another group."""

    ids: Ids
    counts: np.ndarray
    is_piece: bool


class _GroupFormation:
    """Which group each id belongs to, by number, and the layers, parameters and grouped convolutions of each group."""

    def __init__(
        self,
        ids: Ids,
        layers: list[Layer],
        parameters: list[ChannelParameter],
        equal_groups: list[EqualGroups],
        products: list[Product],
        tensor_ids: Iterable[Ids],
    ) -> None:
        connected = UnionFind()
        connected.new_ids(len(ids) - 1)
        of_heads = np.concatenate([np.zeros(1, np.int64), *(each.ids.reshape(-1) for each in products)])
        others = [layer.out_ids[~np.isin(layer.out_ids, of_heads)] for layer in layers]  # a fused one writes several kinds
        for together in [*others, *(each.ids for each in equal_groups), *(each.ids for each in products)]:
            present = np.unique(together[together > 0])
            if len(present):
                connected.unite(present[:1], present)
        self._channels = np.unique(ids[1:])
        self._number = connected.representatives(ids)
        self._producers = self._by_number(layers, lambda layer: layer.out_ids)
        self._consumers = self._by_number(layers, lambda layer: layer.in_ids)
        self._parameters = self._by_number(parameters, lambda parameter: parameter.ids)
        self._products = self._by_number([each for each in products if each.is_summed], lambda product: product.ids)
        self._equal_groups = self._by_number(equal_groups, lambda each: each.ids)
        of_layers = [ids for layer in layers for ids in (layer.in_ids, layer.out_ids)]
        self._holders = self._find_holders([*of_layers, *(each.ids for each in parameters), *tensor_ids])

    def _by_number(self, parts: list[T], ids_of: Callable[[T], Ids]) -> dict[int, list[T]]:
        by_number: dict[int, list[T]] = defaultdict(list)
        for part in parts:
            ids = ids_of(part)
            for number in np.unique(self._number[ids[ids > 0]]).tolist():
                by_number[number].append(part)
        return by_number

    def _find_holders(self, held_ids: list[Ids]) -> dict[int, list[_Holder]]:
        """By number of the group what holds channels of it, the same only once."""
        holders: dict[int, dict[bytes, _Holder]] = defaultdict(dict)
        for held in held_ids:
            present, counts = np.unique(held, return_counts=True)
            numbers, sizes = np.unique(self._number[present], return_counts=True)
            alone = numbers[np.argmin(sizes)] if len(present) and present[0] > 0 else 0
            for number in numbers[numbers > 0].tolist():
                own = self._number[present] == number
                holder = _Holder(present[own], counts[own], bool(number == alone))
                holders[number][holder.ids.tobytes() + holder.counts.tobytes() + bytes([holder.is_piece])] = holder
        return {number: sorted(found.values(), key=lambda each: len(each.ids)) for number, found in holders.items()}

    def numbers(self) -> list[int]:
        """The numbers of all groups, in the order of their first channels."""
        return list(dict.fromkeys(self._number[self._channels].tolist()))

    def group(self, number: int, pins: dict[int, Refusal]) -> ChannelGroup:
        """One group; pins: by representative id, why a channel must stay."""
        channel_ids = self._channels[self._number[self._channels] == number]
        count = len(channel_ids)
        index = np.full(len(self._number), -1)
        index[channel_ids] = np.arange(count)
        producers = tuple(Producer(layer, positions_of(index, layer.out_ids)) for layer in self._producers[number])
        consumers = tuple(Consumer(layer, positions_of(index, layer.in_ids)) for layer in self._consumers[number])
        removable = np.array([channel not in pins for channel in channel_ids.tolist()])
        why = next((pins[channel] for channel in channel_ids.tolist() if channel in pins), None)
        conv_groups = _conv_groups(index, count, self._equal_groups[number])
        if isinstance(conv_groups, Refusal):
            why, removable, conv_groups = conv_groups, np.zeros(count, bool), np.zeros(count, np.int64)
        if why is None and count == 1:
            why = Refusal("", Reason.ALL_AT_ONCE)
        name = producers[0].name if producers else ""
        holders = self._holders.get(number, [])
        occurrences = np.zeros((len(holders), count), np.int64)
        for holder, row in zip(holders, occurrences, strict=True):
            row[index[holder.ids]] = holder.counts
        pieces = occurrences[[holder.is_piece for holder in holders]] > 0
        classes = np.unique(np.vstack([conv_groups, occurrences]), axis=1, return_inverse=True)[1].reshape(-1)
        parameters, products = tuple(self._parameters[number]), tuple(self._products[number])
        return ChannelGroup(
            name, channel_ids, removable, conv_groups, producers, consumers, parameters, products, why, pieces, classes
        )


def _conv_groups(index: Ids, count: int, equal_groups: list[EqualGroups]) -> np.ndarray | Refusal:
    """Labels (count,) of a group's channels such that equal numbers kept of every label leave the rows of all of `equal_groups`
    equal; a refusal where there are none. index: id -> channel of the group, -1 for none."""
    labels = np.zeros(count, np.int64)
    for each in equal_groups:
        owner = np.unique(np.sort(np.where(each.ids > 0, index[each.ids], -1), axis=1), axis=0)  # equal rows stay equal
        if (owner < 0).all():
            continue
        groups = len(owner)
        occurrences = np.zeros((count, groups), np.int64)  # of each channel in each row
        number = np.broadcast_to(np.arange(groups)[:, None], owner.shape)
        np.add.at(occurrences, (owner[owner >= 0], number[owner >= 0]), 1)
        others, rows_of = (owner < 0).sum(1), (occurrences > 0).sum(1)
        in_all = (occurrences == occurrences[:, :1]).all(1) & (rows_of > 0)
        if (others != others[0]).any() or not ((rows_of < 2) | in_all).all() or (in_all.any() and not in_all.all()):
            return refusal("", Reason.UNEQUAL_GROUPS, node=node_name(each.node))
        if not in_all.all():
            labels = labels * (groups + 1) + np.where(rows_of > 0, occurrences.argmax(1) + 1, 0)
            labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    if len(set(np.bincount(labels).tolist())) > 1:
        names = ", ".join(dict.fromkeys(node_name(each.node) for each in equal_groups))
        return refusal("", Reason.BOUND_UNEQUALLY, node=names)
    return labels
