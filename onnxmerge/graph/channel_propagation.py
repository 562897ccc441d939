"""The state of one pass over the graph: which channel id stands at which position of which tensor, and what is noted on the way.

Ids that meet in a join are united; ids that meet something which cannot shrink are pinned, with a reason: they are never removed.
"""

from dataclasses import dataclass, field

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, UnionFind, along_axis, varying_axes
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


@dataclass(frozen=True, eq=False)
class ChannelParameter:
    """A per-channel constant (bias, scale, BatchNormalization, slope, depthwise weight), which loses entries with the channels.

    Attributes
    ----------
    node : Node
        The node that reads it.
    input_index : int
        Which of the node's inputs it is.
    ids : ndarray
        Id array that broadcasts to the constant's shape.
    """

    node: gs.Node
    input_index: int
    ids: Ids

    @property
    def is_depthwise(self) -> bool:
        """Whether it is the weight of a depthwise convolution."""
        return self.node.op in ("Conv", "ConvTranspose") and self.input_index == 1


@dataclass(frozen=True, eq=False)
class EqualGroups:
    """Channels of which every row must keep equally many: those of the groups of a convolution, or of heads of an attention.

    Attributes
    ----------
    node : Node
        The grouped convolution, or what writes the tensor of the heads.
    ids : ndarray of shape (groups, channels per group)
        Their ids.
    """

    node: gs.Node
    ids: Ids


def channel_axis_of(table: np.ndarray) -> int:
    """The axis of the channels that a constant holds: the last one of more than one position."""
    return max(axis for axis, extent in enumerate(table.shape) if extent > 1)


@dataclass(frozen=True)
class HeadsOf:
    """How an attention that is one operator reads the heads of one of its inputs.

    Attributes
    ----------
    index : int
        Which of the node's inputs it is: (batch, positions, heads width), or (batch, heads, positions, width).
    count : int
        Heads in it.
    repeats : int
        How many heads of the query read each of them.
    """

    index: int
    count: int
    repeats: int

    def laid_out(self, values: np.ndarray, apart: bool = False) -> np.ndarray:
        """(batch, heads, positions, width) of the input's values or ids, each head as often as it is read; apart: once."""
        if values.ndim == 3:
            values = values.reshape(*values.shape[:2], self.count, -1).swapaxes(1, 2)
        return values if apart or self.repeats == 1 else values.repeat(self.repeats, 1)


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two computed tensors (MatMul, Einsum, in an Attention), and the channels that it sums over or lets pass.

    Attributes
    ----------
    node : Node
        The product.
    factors : tuple of ndarray of shape (*rows, k)
        Ids along the axis of the channels, for each position of the axes that both tensors share: the heads of an attention. Of
        both tensors where the product sums over the channels, so that a channel of one goes with one of the other; else of the
        one that they pass from.
    terms : tuple of str
        A letter for each axis of the left tensor, the right one and the result, as in Einsum.
    letter : str
        That of the channels.
    sources : tuple of (Layer, ndarray of shape (*rows, k)) or None
        For each factor the layer that writes its channels, and where on the layer's flattened outputs; None where it is not one.
    heads : tuple of HeadsOf
        Of query and key where the node is a whole attention; () where it is the product itself.
    """

    node: gs.Node
    factors: tuple[Ids, ...]
    terms: tuple[str, str, str]
    letter: str
    sources: tuple[tuple[Layer, np.ndarray] | None, ...] = ()
    heads: tuple[HeadsOf, ...] = ()

    @property
    def key(self) -> str:
        """The tensor that the node writes: unique in a model."""
        return str(self.node.outputs[0].name)

    @property
    def is_summed(self) -> bool:
        """Whether the channels end here."""
        return len(self.factors) > 1

    @property
    def ids(self) -> Ids:
        """(rows, k) ids; once they are united, those of both factors."""
        return np.asarray(np.maximum(self.factors[0], self.factors[-1]).reshape(-1, self.factors[0].shape[-1]))


@dataclass(eq=False)
class ChannelPropagation:
    """What the rules of the operator table read and note while the nodes are visited once, in order.

    Attributes
    ----------
    facts : TensorFacts
        Shapes and constants of the model's tensors.
    tensor_ids : dict[str, ndarray]
        Id array of each tensor with channels that could go, by name.
    layers : list of Layer
        Nodes with a constant weight that were met.
    parameters : list of ChannelParameter
        Per-channel constants that were met.
    equal_groups : list of EqualGroups
        Grouped convolutions that were met, and tensors whose rows keep different channels, equally many.
    products : list of Product
        Products of two computed tensors that were met.
    pins : dict[int, Refusal]
        By id, why it must stay: the first reason that was found.
    refusals : list of Refusal
        Why layers stay as they are.
    united : UnionFind
        Which ids are removed together.
    named : dict[str, ndarray]
        The channels that a constant holds, by its name, for constants that write channels.
    expanded : dict[str, int]
        Outputs of an Expand or ConstantOfShape that repeat one position for every channel of what they are joined with, and that
        axis, counted from the end: it has channels of its own.
    tables : set[str]
        Constants that hold channels of their own: what is computed from them is joined with channels of layers.
    whole_heads : bool
        Whether what goes of an attention is heads, each with all of its channels, and not channels of every head.
    head_ids : list of ndarray of shape (heads, channels)
        The ids of heads in products that were met.
    heads_of_layers : dict[str, ndarray]
        By key of a layer, for each output the number of the channel that it belongs to: those of a head are one.
    means : frozenset of str
        Keys of nodes that sum over channels for a normalisation which lets these pass: LayerNormalization, or a mean of squares.
    """

    facts: TensorFacts
    expanded: dict[str, int] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    tensor_ids: dict[str, Ids] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    parameters: list[ChannelParameter] = field(default_factory=list)
    equal_groups: list[EqualGroups] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    pins: dict[int, Refusal] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    united: UnionFind = field(default_factory=UnionFind)
    named: dict[str, Ids] = field(default_factory=dict)
    whole_heads: bool = False
    head_ids: list[Ids] = field(default_factory=list)
    heads_of_layers: dict[str, np.ndarray] = field(default_factory=dict)
    means: frozenset[str] = frozenset()

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Concrete shape, None where it is not known."""
        return self.facts.shape(tensor)

    def known_shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """Concrete shape of a tensor of a node whose shapes are all known, which is so in every rule."""
        shape = self.facts.shape(tensor)
        if shape is None:
            raise ValueError(f"the shape of {tensor.name} is not known")
        return shape

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that depends on nothing but the file; None for every other."""
        return self.facts.constant(tensor)

    def ids(self, tensor: gs.Tensor) -> Ids:
        """The tensor's id array; zeros where nothing could go."""
        known = self.tensor_ids.get(tensor.name)
        table = self.constant(tensor) if known is None and tensor.name in self.tables else None
        if table is not None:
            axis = channel_axis_of(table)
            return along_axis(self.new_channels(tensor.name, table.shape[axis]), axis, table.ndim)
        return self.no_ids(tensor) if known is None else known

    def no_ids(self, tensor: gs.Tensor) -> Ids:
        """Zeros, in the rank of the tensor."""
        return np.zeros((1,) * len(self.shape(tensor) or ()), np.int64)

    def full_ids(self, tensor: gs.Tensor) -> Ids:
        """The id at every position of the tensor, in its concrete shape."""
        return np.broadcast_to(self.ids(tensor), self.known_shape(tensor))

    def pin(self, ids: Ids, refusal: Refusal) -> None:
        """These ids must stay."""
        for channel in np.unique(ids[ids > 0]).tolist():
            self.pins.setdefault(channel, refusal)

    def unite_except(self, ids: Ids, axes: list[int]) -> Ids:
        """Unite the ids along every axis but `axes`, so that these are the only ones along which ids vary.

        A 0 among ids that are united pins them.
        """
        for axis in varying_axes(ids):
            if axis in axes:
                continue
            first = ids.max(axis=axis, keepdims=True)
            self.united.unite(np.broadcast_to(first, ids.shape), ids)
            if ((ids == 0) & (first > 0)).any():
                self.pin(np.broadcast_to(first, ids.shape)[ids == 0], Refusal("", Reason.SHARES_A_CHANNEL))
            ids = first
        return ids

    def ids_along(self, tensor: gs.Tensor, axis: int) -> Ids:
        """(extent of the axis,) one id for each position of one axis; ids along the other axes are united."""
        ids = self.unite_except(self.ids(tensor), [axis])
        extent = self.known_shape(tensor)[axis]
        return np.broadcast_to(ids.reshape(-1), extent)

    def row_labels(self) -> np.ndarray:
        """(number of ids,) by representative: the row of products that a channel stands in (a head), 0 for none.

        Rows that share a channel, as heads share one of key and value, have one label.
        """
        labels, rows = np.zeros(self.united.count, np.int64), UnionFind()
        rows.new_ids(1 + sum(len(product.ids) for product in self.products))
        first = 1
        for product in self.products:
            ids, numbers = self.united.representatives(product.ids), first + np.arange(len(product.ids))[:, None]
            labels[ids] = np.where(labels[ids] > 0, labels[ids], numbers)
            labels[0] = 0
            rows.unite(labels[ids], np.where(ids > 0, numbers, 0))
            first += len(ids)
        return np.asarray(rows.representatives(labels))

    def layers_of_heads(self) -> dict[str, np.ndarray]:
        """`heads_of_layers`, from the heads that were met."""
        owner = np.arange(self.united.count)
        for heads in self.head_ids:
            present = np.where(heads > 0, owner[heads], len(owner))
            owner[heads] = np.broadcast_to(present.min(1, keepdims=True), heads.shape)
            owner[0] = 0
        numbers = {layer.key: np.unique(owner[layer.out_ids], return_inverse=True)[1].reshape(-1) for layer in self.layers}
        return {key: each for key, each in numbers.items() if each.max() + 1 < len(each)}

    def new_channels(self, constant: str, count: int) -> Ids:
        """(count,) ids of the channels that a constant holds, the same at every call."""
        if constant not in self.named:
            self.named[constant] = self.united.new_ids(count)
        return self.named[constant]

    def note_parameter(self, node: gs.Node, input_index: int, ids: Ids) -> None:
        """Note a per-channel constant, where any of its channels has an id."""
        if (ids > 0).any():
            self.parameters.append(ChannelParameter(node, input_index, ids))
