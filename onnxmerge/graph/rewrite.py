"""Remove channels from a model: the only place where graphs are edited, and always a copy.

A `Removal` says which channels of a group stay, a `Replacement` what a consumer computes from then on. Everything is computed
from the model as it was read; then a fresh copy of it is edited and returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.errors import ModelError
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_ids import Flow, Rider, collapse, varying
from onnxmerge.graph.constants import constant
from onnxmerge.graph.layers import Layer, label
from onnxmerge.graph.literals import Edit, Kept
from onnxmerge.graph.operators import operator_of
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model, fresh_copy, names_taken, prune_dead, set_constant


@dataclass(frozen=True)
class Removal:
    """What leaves one group: kept are the indices of the units that stay, method says who chose them.

    expected_error: by method, the share of the consumers' output variance that is lost.
    """

    group: ChannelGroup
    kept: np.ndarray
    method: str
    expected_error: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Replacement:
    """New numbers of one weighted node: its weight as stored, all channels still in it, and (out,) to add to its output."""

    weight: np.ndarray
    bias: np.ndarray | None = None


def rewrite(channels: Channels, removals: Sequence[Removal], replacements: Mapping[str, Replacement]) -> Model:
    """A new model without the removed channels; the one that `channels` describes stays as it is.

    Parameters
    ----------
    channels : the channel analysis of the model
    removals : which channels stay of each group that shrinks
    replacements : new weights by key of the layer

    Returns
    -------
    Model
        Dead nodes and unused initializers are gone too.

    Raises
    ------
    ModelError
        The groups of a convolution would keep different numbers of channels.
    """
    flow = channels.flow
    stays = np.ones(len(flow.parents), bool)
    for removal in removals:
        going = np.ones(removal.group.size, bool)
        going[removal.kept] = False
        stays[removal.group.channel_ids[going]] = False
    kept = Kept(flow, stays)
    weights = {id(w.node): _weight(flow, w, kept, replacements) for w in flow.layers}
    edits = [(node, edit) for node in flow.model.graph.nodes if (edit := _edit(flow, node, kept)) is not None]
    riders = [(rider, _shrink(flow, rider, kept)) for rider in flow.riders if not kept.mask(rider.ids).all()]
    biases = _biases(flow, replacements, kept)
    model = fresh_copy(flow.model)
    copies = {id(old): new for old, new in zip(flow.model.graph.nodes, model.graph.nodes, strict=True)}
    writer = _Writer(model)
    for layer in flow.layers:
        weight = weights[id(layer.node)]
        if weight is not None:
            writer.put(copies[id(layer.node)], layer.weight_input, weight)
    for rider, value in riders:
        node = copies[id(rider.node)]
        writer.put(node, rider.input, value)
        if rider.depthwise:
            node.attrs["group"] = value.shape[0] // _multiplier(rider)
    for node, edit in edits:
        writer.edit(copies[id(node)], edit)
    for node, bias in biases:
        writer.add_bias(copies[id(node)], bias)
    prune_dead(model)
    return model


def _multiplier(rider: Rider) -> int:
    """Output channels for each input channel of a depthwise convolution."""
    return rider.ids.size // int(rider.node.attrs["group"]) if rider.node.op == "Conv" else 1


def _edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    rule = operator_of(node).edit
    touched = any(output.name in flow.tensors for output in node.outputs) or any(t.name in flow.tensors for t in node.inputs)
    return rule(flow, node, kept) if rule is not None and touched else None


def _weight(flow: Flow, layer: Layer, kept: Kept, replacements: Mapping[str, Replacement]) -> np.ndarray | None:
    """The stored weight, replaced, without removed rows and columns; None where nothing changes."""
    weight = original = layer.stored_weight
    if layer.key in replacements:
        weight = replacements[layer.key].weight
    rows, columns = kept.mask(layer.out_ids), kept.mask(layer.in_ids)
    if rows.all() and columns.all():
        return None if weight is original else weight
    _check_balance(layer, rows, columns)
    array = layer.canonical(weight)
    groups = [array[g][rows[g]][:, columns[g]] for g in range(len(array))]
    return layer.stored(np.stack(groups))


def _check_balance(layer: Layer, rows: np.ndarray, columns: np.ndarray) -> None:
    for mask in (rows, columns):
        counts = mask.sum(1)
        if (counts != counts[0]).any() or counts[0] == 0:
            raise ModelError(f"{label(layer.node)}: groups of a convolution would keep {counts.tolist()} channels")


def _shrink(flow: Flow, rider: Rider, kept: Kept) -> np.ndarray:
    """A per-channel constant without the entries of removed channels."""
    value = flow.constant(rider.node.inputs[rider.input])
    assert value is not None
    mask = collapse(kept.mask(rider.ids))
    (axis,) = varying(mask)
    return np.ascontiguousarray(np.compress(mask.reshape(-1), value, axis))


def _biases(flow: Flow, replacements: Mapping[str, Replacement], kept: Kept) -> list[tuple[gs.Node, np.ndarray]]:
    """Additions to outputs, for the output channels that stay."""
    found = []
    for layer in flow.layers:
        bias = replacements[layer.key].bias if layer.key in replacements else None
        if bias is not None:
            found.append((layer.node, bias[kept.mask(layer.out_ids.reshape(-1))]))
    return found


@dataclass
class _Writer:
    """Puts new constants behind inputs; equal values for one old tensor stay one tensor."""

    model: Model
    written: dict[tuple[str, bytes], gs.Constant] = field(default_factory=dict)
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = names_taken(self.model)

    def _value(self, tensor: gs.Tensor) -> np.ndarray | None:
        return constant(self.model, tensor)

    def put(self, node: gs.Node, index: int, value: np.ndarray) -> None:
        """Replace one input of one node, leaving other readers of the old tensor alone."""
        old = node.inputs[index] if index < len(node.inputs) else None
        name = old.name if old is not None and old.name else f"{label(node)}.{index}"
        key = (name, str(value.dtype).encode() + str(value.shape).encode() + value.tobytes())
        if key not in self.written:
            self.written[key] = set_constant(self.model, name, value, self.taken)
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        node.inputs[index] = self.written[key]

    def edit(self, node: gs.Node, edit: Edit) -> None:
        """New literals; an attribute set to None is removed."""
        for index, value in edit.inputs.items():
            self.put(node, index, value)
        for name, value in edit.attributes.items():
            if value is None:
                node.attrs.pop(name, None)
            else:
                node.attrs[name] = value

    def add_bias(self, node: gs.Node, bias: np.ndarray) -> None:
        """Add to the output of a weighted node, in its own bias where it has one."""
        if node.op == "MatMul":
            self._add_after(node, bias)
            return
        old = self._value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
        scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        total = bias if old is None else scale * old.astype(np.float64) + bias
        if node.op == "Gemm":
            node.attrs["beta"] = 1.0
        self.put(node, 2, total.astype(self._dtype(node)))

    def _dtype(self, node: gs.Node) -> np.dtype:
        """The type that a weighted node computes in."""
        values = [self._value(tensor) for tensor in node.inputs[:2]]
        return next(value.dtype for value in values if value is not None)

    def _add_after(self, node: gs.Node, bias: np.ndarray) -> None:
        """MatMul has no bias: use the constant of the Add behind it, or put an Add there."""
        graph, output = self.model.graph, node.outputs[0]
        on_left = self._value(node.inputs[0]) is not None
        bias = bias[:, None] if on_left else bias
        following = output.outputs
        if len(following) == 1 and following[0].op == "Add" and output not in graph.outputs:
            index = next((i for i, tensor in enumerate(following[0].inputs) if tensor is not output), 0)
            old = self._value(following[0].inputs[index])
            if old is not None:
                self.put(following[0], index, (old.astype(np.float64) + bias).astype(old.dtype))
                return
        raw = gs.Variable(self._fresh(f"{output.name}_before_bias"), output.dtype)
        node.outputs[0] = raw
        added = set_constant(self.model, f"{output.name}_bias", bias.astype(self._dtype(node)), self.taken)
        place = next(i for i, other in enumerate(graph.nodes) if other is node)
        name = f"{node.name}_bias" if node.name else ""
        graph.nodes.insert(place + 1, gs.Node("Add", name, inputs=[raw, added], outputs=[output]))

    def _fresh(self, hint: str) -> str:
        names = (hint, *(f"{hint}_{number}" for number in range(len(self.taken) + 1)))
        name = next(name for name in names if name not in self.taken)
        self.taken.add(name)
        return name
