"""What the channel analysis of a model finds: channel groups, the layers that write and read them, and reasons for the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_ids import Ids
from onnxmerge.graph.channel_propagation import ChannelParameter, Product
from onnxmerge.graph.layers import Consumer, Layer, Producer
from onnxmerge.graph.nodes import node_name
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model


@dataclass(frozen=True)
class Branch:
    """What goes with a channel group of which no channel stays: its consumers write constants then; see `branches`.

    Attributes
    ----------
    nodes : frozenset of str
        The nodes that nothing else needs, by the name of their first output; without the consumers.
    joins : frozenset of str
        The nodes that join the constants with computed values, by the name of their output.
    inner_groups : frozenset of str
        Names of the groups that only these nodes write and read, such as the first of the two in a bottleneck.
    """

    nodes: frozenset[str]
    joins: frozenset[str]
    inner_groups: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """n channels that are decided together. A channel of a group is one set of united ids: it is kept or removed as a whole.

    Attributes
    ----------
    name : str
        Name of the first producer.
    channel_ids : ndarray of shape (n,)
        Representative id of each channel, ascending.
    removable : ndarray of shape (n,), bool
        False where a channel must stay.
    conv_groups : ndarray of shape (n,), int
        Labels: of every label equally many channels must be kept. All zero without grouped convolutions and heads.
    producers : tuple of Producer
        The layers that write the channels.
    consumers : tuple of Consumer
        The layers that read them.
    parameters : tuple of ChannelParameter
        Per-channel constants between producers and consumers.
    products : tuple of Product
        Products of two computed tensors that sum over the channels: a channel of one goes with one of the other.
    refusal : Refusal or None
        Why channels are not removable, None where all are.
    pieces : ndarray of shape (p, n), bool
        Channels of which at least one must stay, since a tensor, a weight or a per-channel constant holds no others: what one
        producer writes, one consumer reads, or one output of a Split is. The smallest first.
    merge_classes : ndarray of shape (n,), int
        Labels: a channel can take the place of another of the same label. They stand equally often in every tensor, so that the
        same operators treat them, and are of the same group of a grouped convolution.
    branch : Branch or None
        What goes where no channel stays; None where at least one must.
    is_entered : bool
        False where it lies in bodies of If that no input at hand leads into.
    """

    name: str
    channel_ids: Ids
    removable: np.ndarray
    conv_groups: np.ndarray
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    parameters: tuple[ChannelParameter, ...]
    products: tuple[Product, ...]
    refusal: Refusal | None
    pieces: np.ndarray
    merge_classes: np.ndarray
    branch: Branch | None = None
    is_entered: bool = True

    @property
    def conv_group_count(self) -> int:
        """How many groups of convolutions must keep equally many channels; 1 without grouped convolutions."""
        return int(self.conv_groups.max()) + 1

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.channel_ids)

    @property
    def positions(self) -> int:
        """Positions that each channel has at least in the layers that write and read it: of a whole head its width."""
        counts = [(link.positions >= 0).sum(1) for link in (*self.producers, *self.consumers) if link.layer.is_linear]
        return min((int(count[count > 0].min()) for count in counts), default=1)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the nodes whose outputs are the group's channels: producers and depthwise convolutions."""
        depthwise = (node_name(parameter.node) for parameter in self.parameters if parameter.is_depthwise)
        return (*(producer.name for producer in self.producers), *depthwise)

    def refusal_of(self, layer_name: str) -> Refusal:
        """Why a layer of this group keeps channels; what stands in the way is the obstacle."""
        if self.refusal is None:
            raise ValueError(f"nothing keeps the channels of {self.name}")
        obstacle = self.refusal.obstacle or (self.refusal.where if self.refusal.where != layer_name else "")
        return replace(self.refusal, where=layer_name, obstacle=obstacle)


def inner_groups(groups: Sequence[ChannelGroup]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """By position of each group with a branch the positions of the `Branch.inner_groups`, where it has any."""
    position = {group.name: at for at, group in enumerate(groups)}
    found = (
        (at, tuple(position[name] for name in sorted(group.branch.inner_groups) if name in position))
        for at, group in enumerate(groups)
        if group.branch is not None
    )
    return tuple((at, inner) for at, inner in found if inner)


@dataclass(frozen=True, eq=False)
class Channels:
    """The channel analysis of a model.

    Attributes
    ----------
    facts : TensorFacts
        The model, with shapes and constants of its tensors.
    layers : tuple of Layer
        Nodes with a constant weight, in topological order.
    parameters : tuple of ChannelParameter
        Per-channel constants.
    tensor_ids : Mapping[str, ndarray]
        Id array of each tensor with channels that could go, by name.
    row_labels : ndarray of shape (number of ids,), int
        The head of an attention that the channel of each id stands in, 0 for none; see `channel_axis_and_rows`.
    shared_weight_keys : frozenset[str]
        Keys of the layers whose weight is made from an initializer that the weight of another layer is made from.
    groups : tuple of ChannelGroup
        Groups of channels that can shrink, in topological order.
    refusals : tuple of Refusal
        Why the other layers stay as they are.
    means : frozenset of str
        Keys of the nodes that sum over channels for normalisations which let these pass.
    """

    facts: TensorFacts
    layers: tuple[Layer, ...]
    parameters: tuple[ChannelParameter, ...]
    tensor_ids: Mapping[str, Ids]
    row_labels: np.ndarray
    shared_weight_keys: frozenset[str]
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]
    means: frozenset[str] = frozenset()

    @property
    def id_count(self) -> int:
        """Number of ids, 0 included."""
        return len(self.row_labels)

    @property
    def model(self) -> Model:
        """The model that was analysed."""
        return self.facts.model

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Concrete shape of a tensor, None where it is not known."""
        return self.facts.shape(tensor)

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file; None for every other."""
        return self.facts.constant(tensor)

    def ids(self, tensor: gs.Tensor) -> Ids:
        """The tensor's id array; zeros where nothing could go."""
        known = self.tensor_ids.get(tensor.name)
        return np.zeros((1,) * len(self.shape(tensor) or ()), np.int64) if known is None else known

    def parameters_by_input(self) -> list[list[ChannelParameter]]:
        """The per-channel constants, those together that are one input of a node with channels on several axes."""
        found: dict[tuple[int, int], list[ChannelParameter]] = {}
        for each in self.parameters:
            found.setdefault((id(each.node), each.input_index), []).append(each)
        return list(found.values())

    def kept_mask(self, kept: Iterable[tuple[ChannelGroup, np.ndarray]]) -> np.ndarray:
        """(id_count,) bool: which ids stay when each of these groups keeps the channels with the given indices."""
        mask = np.ones(self.id_count, bool)
        for group, indices in kept:
            mask[group.channel_ids] = False
            mask[group.channel_ids[indices]] = True
        return mask


def channel_positions(channels: Channels, group: ChannelGroup, ids: Ids) -> np.ndarray:
    """(n, t) positions of each channel of a group in a flattened id array, padded with -1."""
    index = np.full(channels.id_count, -1)
    index[group.channel_ids] = np.arange(group.size)
    return positions_of(index, ids)


def positions_of(index: np.ndarray, ids: Ids) -> np.ndarray:
    """Where channels stand in an id array.

    Parameters
    ----------
    index : ndarray of shape (number of ids,)
        Index of the channel that each id stands for, -1 for none.
    ids : ndarray
        Id array of any shape.

    Returns
    -------
    ndarray of shape (n, t), int
        The positions of each channel in the flattened id array, ascending, padded with -1 where it has fewer than t.

    Examples
    --------
    >>> positions_of(np.array([-1, 0, 1, -1]), np.array([[1, 2, 3], [1, 0, 1]])).tolist()
    [[0, 3, 5], [1, -1, -1]]
    """
    flat = ids.reshape(-1)
    owner = np.where(flat > 0, index[flat], -1)
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    owner = owner[order]
    count = np.bincount(owner, minlength=int(index.max()) + 1)
    first = np.cumsum(count) - count
    positions = np.full((len(count), max(1, count.max())), -1)
    positions[owner, np.arange(len(owner)) - np.repeat(first, count)] = order
    return positions
