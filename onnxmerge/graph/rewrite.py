"""Remove channels from a model: the only place where graphs are edited, and always a copy.

Everything is computed from the model as it was analysed; then a fresh copy of it is edited and returned.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.errors import ModelError
from onnxmerge.graph.channel_groups import Branch, ChannelGroup, Channels
from onnxmerge.graph.channel_propagation import ChannelParameter
from onnxmerge.graph.graph_editor import GraphEditor
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import node_key, node_name
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.graph.operators.table import operator_of
from onnxmerge.graph.packed_attention import pack_attentions
from onnxmerge.graph.stream_rotation import keep_mean
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import remove_unused_nodes
from onnxmerge.onnxio.model import Model, fresh_copy


@dataclass(frozen=True, eq=False)
class Removal:
    """What leaves one group.

    Attributes
    ----------
    group : ChannelGroup
        The channel group.
    kept : ndarray of shape (k,), int
        Indices of the channels that stay, ascending.
    method : str
        The method that chose them.
    expected_error : Mapping[str, float]
        By method, the share of the consumers' output variance that is expected to be lost; that of `method` is for `kept`.
    note : str
        What else the user should know of it.
    scaling : ndarray of shape (n, k) or None
        The matrix that consumers absorb, x ~ scaling x[kept]; None where they are not updated by one.
    """

    group: ChannelGroup
    kept: np.ndarray
    method: str
    expected_error: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scaling: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Replacement:
    """New numbers of one layer.

    Attributes
    ----------
    weight : ndarray
        Its weight in the layout of the file, all channels still in it.
    bias : ndarray of shape (out,) or None
        Added to its output; None where nothing is added.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None


def emptied_branches(removals: Sequence[Removal]) -> list[tuple[ChannelGroup, Branch]]:
    """The groups of which no channel stays, with their branches."""
    return [(each.group, each.group.branch) for each in removals if each.group.branch is not None and not len(each.kept)]


def gone_nodes(removals: Sequence[Removal]) -> frozenset[str]:
    """The nodes that go with these groups, as `Branch.nodes` names them."""
    return frozenset[str]().union(*(branch.nodes for _, branch in emptied_branches(removals)))


def rewrite(channels: Channels, removals: Sequence[Removal], replacements: Mapping[str, Replacement]) -> Model:
    """A new model without the removed channels; the one that `channels` describes stays as it is.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    removals : sequence of Removal
        Which channels stay of each group that shrinks.
    replacements : Mapping[str, Replacement]
        New weights and biases by key of the layer.

    Returns
    -------
    Model
        Nodes that nothing reads and unused initializers are gone too.

    Raises
    ------
    ModelError
        The groups of a convolution would keep different numbers of channels.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.graph.channel_analysis import analyse_channels
    >>> from onnxmerge.graph.tensor_facts import TensorFacts
    >>> from onnxmerge.onnxio.export import export
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     mlp (float[1, 2] x) => (float[1, 2] y) <float[2, 3] v = {1, 2, 3, 4, 5, 6}, float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    ...     { hidden = Gemm(x, v)  active = Relu(hidden)  y = Gemm(active, w) }'''))
    >>> channels = analyse_channels(TensorFacts(model, {"x": (1, 2), "hidden": (1, 3), "active": (1, 3), "y": (1, 2)}))
    >>> small = rewrite(channels, [Removal(channels.groups[0], np.array([0, 2]), "prune")], {})
    >>> [list(tensor.dims) for tensor in export(small).graph.initializer]
    [[2, 2], [2, 2]]
    """
    return _carried_out(channels, _decided(channels, removals, replacements))


@dataclass(frozen=True, eq=False)
class _Decided:
    """What becomes of a model, told by its own nodes.

    Attributes
    ----------
    kept : KeptChannels
        The channels that stay.
    layers, constant : list of Layer
        Those that stay, and those that read channels of which none stays.
    replacements : Mapping[str, Replacement]
        New numbers by key of the layer.
    parameters : list of (ChannelParameter, ndarray)
        New values of parameters that hold a number for each channel.
    edits : list of (Node, NodeEdit)
        Of nodes that hold channel counts or positions.
    folded : list of Node
        Joins with channels of which none stays.
    """

    kept: KeptChannels
    layers: list[Layer]
    constant: list[Layer]
    replacements: Mapping[str, Replacement]
    parameters: list[tuple[ChannelParameter, np.ndarray]]
    edits: list[tuple[gs.Node, NodeEdit]]
    folded: list[gs.Node]


def _decided(channels: Channels, removals: Sequence[Removal], replacements: Mapping[str, Replacement]) -> _Decided:
    """What `rewrite` does, but for the weights, which are made one at a time."""
    kept = KeptChannels(channels, channels.kept_mask((removal.group, removal.kept) for removal in removals))
    branches, gone = emptied_branches(removals), gone_nodes(removals)
    filled = {layer.key for layer in channels.layers if layer.is_filled}
    constant = {each.key: each.layer for group, _ in branches for each in group.consumers if each.key not in gone}
    staying = (each for each in channels.parameters_by_input() if node_key(each[0].node) not in gone)
    values = ((each[0], _new_parameter(each, kept)) for each in staying)
    joins = frozenset[str]().union(*(branch.joins for _, branch in branches)) - gone
    return _Decided(
        kept,
        layers=[layer for layer in channels.layers if layer.key not in gone and layer.key not in constant],
        constant=list(constant.values()),
        replacements={key: each for key, each in replacements.items() if key not in filled},
        parameters=[(parameter, value) for parameter, value in values if value is not None],
        edits=list(_node_edits(kept, gone)),
        folded=[node for node in channels.model.graph.nodes if node_key(node) in joins],
    )


def _carried_out(channels: Channels, decided: _Decided) -> Model:
    """The rewritten copy of the model."""
    model, kept = fresh_copy(channels.model), decided.kept
    copies = {id(old): new for old, new in zip(channels.model.graph.nodes, model.graph.nodes, strict=True)}
    editor = GraphEditor(model)
    for layer in decided.layers:
        weight = _new_weight(layer, kept, decided.replacements)
        if weight is not None:
            is_shared = layer.key in channels.shared_weight_keys
            editor.set_input(copies[id(layer.node)], layer.weight_input, weight, is_shared)
    for parameter, value in decided.parameters:
        node = copies[id(parameter.node)]
        editor.set_input(node, parameter.input_index, value)
        if parameter.is_depthwise:
            node.attrs["group"] = len(value) // _depth_multiplier(parameter)
    _keep_means(editor, copies, kept)
    for node, edit in decided.edits:
        editor.apply(copies[id(node)], edit)
    for layer in decided.layers:
        replacement = decided.replacements.get(layer.key)
        if replacement is not None and replacement.bias is not None:
            editor.add_bias(copies[id(layer.node)], layer, replacement.bias[kept.mask(layer.out_ids.reshape(-1))])
    for layer in decided.constant:
        _write_constant(editor, copies[id(layer.node)], layer, kept, decided.replacements.get(layer.key))
    for node in decided.folded:
        editor.fold_join(copies[id(node)])
    pack_attentions(model)
    remove_unused_nodes(model)
    return model


def _write_constant(
    editor: GraphEditor, node: gs.Node, layer: Layer, kept: KeptChannels, replacement: Replacement | None
) -> None:
    """Put a constant in the place of a layer that no channel is left for."""
    stays = kept.mask(layer.out_ids.reshape(-1))
    added = np.zeros(1) if replacement is None or replacement.bias is None else replacement.bias
    editor.write_constant(node, layer, np.broadcast_to(added, len(stays))[stays])


def _keep_means(editor: GraphEditor, copies: Mapping[int, gs.Node], kept: KeptChannels) -> None:
    """Let normalisations of residual streams divide by the number of channels that there were."""
    for node in [node for node in kept.channels.model.graph.nodes if node_key(node) in kept.channels.means]:
        stays = kept.mask(kept.channels.ids(node.inputs[0]).reshape(-1))
        if not stays.all():
            keep_mean(editor, copies[id(node)], len(stays), int(stays.sum()))


def _node_edits(kept: KeptChannels, gone: frozenset[str]) -> Iterator[tuple[gs.Node, NodeEdit]]:
    """New channel counts and positions of nodes that channels pass, but for those that go."""
    for node in kept.channels.model.graph.nodes:
        rule = operator_of(node).edit
        if rule is None or not any(tensor.name in kept.channels.tensor_ids for tensor in (*node.inputs, *node.outputs)):
            continue
        edit = None if node_key(node) in gone else rule(kept, node)
        if edit is not None:
            yield node, edit


def _new_weight(layer: Layer, kept: KeptChannels, replacements: Mapping[str, Replacement]) -> np.ndarray | None:
    """The weight in the layout of the file, replaced, without removed channels; None where nothing changes."""
    replacement = replacements.get(layer.key)
    out_mask, in_mask = kept.mask(layer.out_ids), kept.mask(layer.in_ids)
    if out_mask.all() and in_mask.all():
        return None if replacement is None else replacement.weight
    for mask in (out_mask, in_mask):
        counts = mask.sum(1)
        if (counts != counts[0]).any() or counts[0] == 0:
            raise ModelError(f"{layer.name}: groups of a convolution would keep {counts.tolist()} channels")
    weight = layer.canonical(layer.stored_weight if replacement is None else replacement.weight)
    outs, ins = (np.argsort(~mask, axis=1, kind="stable")[:, : mask[0].sum()] for mask in (out_mask, in_mask))
    return layer.stored(weight[np.arange(len(weight))[:, None, None], outs[:, :, None], ins[:, None, :]])


def _new_parameter(axes: Sequence[ChannelParameter], kept: KeptChannels) -> np.ndarray | None:
    """A per-channel constant without the entries of removed channels; None where none are removed. axes: it, for each axis."""
    tensor = axes[0].node.inputs[axes[0].input_index]
    value = whole = kept.facts.constant(tensor)
    for each in axes:
        if value is None:
            raise ValueError(f"input {each.input_index} of {node_name(each.node)} is no constant")
        smaller = kept.of_kept(value, each.ids, tensor.name)
        value = value if smaller is None else smaller
    return None if value is whole else value


def _depth_multiplier(parameter: ChannelParameter) -> int:
    """Output channels for each input channel of a depthwise convolution."""
    return parameter.ids.size // int(parameter.node.attrs["group"]) if parameter.node.op == "Conv" else 1
