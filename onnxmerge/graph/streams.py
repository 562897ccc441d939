"""Residual streams: channels that layers and tables add to, and that are read only through normalisations, by layers.

Such a stream may be written in any orthonormal basis: the layers that write it take the basis in, and those that read it its
transpose, since the sum of squares does not change (Ashkboos et al., "SliceGPT", ICLR 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_analysis import analyse_channels
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_ids import Ids, varying_axes
from onnxmerge.graph.channel_propagation import ChannelParameter
from onnxmerge.graph.layers import Consumer, Layer, Producer
from onnxmerge.graph.nodes import has_input, node_key, node_name, node_refusal
from onnxmerge.graph.normalisations import Normalisation, normalisations
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs

_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Identity", "Expand"})
"""Operators that move values of channels; biases pass them, and so they do a mean over positions."""
_WRITERS = frozenset({"Add", "Gather", "Conv", "Gemm"})
"""Operators whose per-channel constants are added to the stream: positions and biases, rows of a table."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A residual stream that may be written in another basis.

    Attributes
    ----------
    channels : Channels
        The analysis in which normalisations let channels pass.
    group : ChannelGroup
        Its channels.
    normalisations : tuple of Normalisation
        All that read it.
    readers : Mapping[str, Normalisation]
        By key of each layer that reads it, through which of them.
    """

    channels: Channels
    group: ChannelGroup
    normalisations: tuple[Normalisation, ...]
    readers: Mapping[str, Normalisation]

    @property
    def parameters(self) -> list[ChannelParameter]:
        """The constants that are added to it."""
        inner = _inner(self.normalisations)
        return [each for each in self.group.parameters if id(each.node) not in inner]


def find_streams(facts: TensorFacts, whole_heads: bool = False) -> tuple[list[Stream], list[Refusal]]:
    """The streams of a model, and for every other one that normalisations read, why it stays as it is."""
    found = normalisations(facts)
    channels = analyse_channels(facts, whole_heads, frozenset[str]().union(*(each.means for each in found)))
    groups = [(group, _readers_of(channels, group, found)) for group in channels.groups]
    streams, refusals = [], [_pinned(channels, each) for each in found if not any(each in own for _, own in groups)]
    for group, own in groups:
        readers = _readers(channels, group, own) if own else {}
        if isinstance(readers, Refusal):
            refusals.append(readers)
        elif readers:
            streams.append(Stream(channels, group, tuple(own), readers))
    return streams, sorted(refusals, key=lambda each: each.reason is Reason.NOT_A_STREAM)  # that says least


def _readers_of(channels: Channels, group: ChannelGroup, found: Sequence[Normalisation]) -> list[Normalisation]:
    """The normalisations that read exactly the channels of a group along their last axis."""

    def reads_all(ids: Ids) -> bool:
        return varying_axes(ids) == [ids.ndim - 1] and np.array_equal(np.sort(ids, axis=None), group.channel_ids)

    return [each for each in found if reads_all(channels.ids(each.source))]


def _pinned(channels: Channels, normalisation: Normalisation) -> Refusal:
    """Why the channels that a normalisation reads stay: as the layers that write them say."""
    ids = channels.ids(normalisation.source)
    names = {layer.name for layer in channels.layers if np.isin(layer.out_ids, ids[ids > 0]).any()}
    name = node_name(normalisation.nodes[0])
    known = next((each for each in channels.refusals if each.where in names), None)
    return known or refusal(name, Reason.NOT_A_STREAM, operator=normalisation.nodes[0].op)


def _inner(found: Sequence[Normalisation]) -> set[int]:
    return {id(node) for each in found for node in each.nodes}


def _readers(channels: Channels, group: ChannelGroup, found: Sequence[Normalisation]) -> dict[str, Normalisation] | Refusal:
    """By key of each layer that reads a group the normalisation before it; or what is not linear, or holds what it should not."""
    inner, layers = _inner(found), {layer.key: layer for layer in channels.layers}
    behind = {each.output.name: each for each in found}
    constants = {(id(each.node), each.input_index) for each in group.parameters}
    readers: dict[str, Normalisation] = {}
    why = _not_rotatable(channels, group, found)

    def carries(tensor: gs.Tensor) -> bool:
        return tensor.name in channels.tensor_ids and bool(np.isin(channels.tensor_ids[tensor.name], group.channel_ids).any())

    for node in channels.model.graph.nodes:
        carrying = [each for each in node.inputs if carries(each)]
        before = [behind[each.name] for each in carrying if each.name in behind]
        if why is not None or not (carrying or any(map(carries, node.outputs))) or (id(node) in inner and not before):
            continue
        layer = layers.get(node_key(node))
        if not carrying and (layer is not None or node.op == "Gather"):
            continue
        if before and layer is not None:
            readers[layer.key] = before[0]
        elif len(before) == len(carrying) == 1 and node.op in _MOVING | {"ReduceMean"}:
            behind |= {each.name: before[0] for each in node.outputs}
        elif before or not (
            node.op in _MOVING | {"Shape"}
            or (node.op == "Add" and all(carries(each) or (id(node), at) in constants for at, each in enumerate(node.inputs)))
        ):
            why = node_refusal(node, Reason.READS_STREAM)
    return why or readers


def _not_rotatable(channels: Channels, group: ChannelGroup, found: Sequence[Normalisation]) -> Refusal | None:
    """Why a group cannot take another basis in, whatever lies between its layers; None where it can."""
    both = {each.key for each in group.producers} & {each.key for each in group.consumers}
    if not group.removable.all():
        return group.refusal_of(group.name)
    if len({each.is_centred for each in found}) > 1 or both or group.products or group.conv_group_count > 1:
        return refusal(group.name, Reason.STREAM_OF_TWO_KINDS)
    parameters = [each for each in group.parameters if id(each.node) not in _inner(found)]
    links: list[Producer | Consumer] = [*group.producers, *group.consumers]
    of_layers = (_layer_not_rotatable(channels, group, link) for link in links)
    of_constants = (_constant_not_rotatable(group, each) for each in parameters)
    noted = {(id(each.node), each.input_index) for each in parameters}
    biases = [each.node for each in group.producers if each.layer.takes_bias and has_input(each.node, 2)]
    of_biases = (node_refusal(node, Reason.READS_STREAM) for node in biases if (id(node), 2) not in noted)  # one for all channels
    return next((why for why in (*of_layers, *of_constants, *of_biases) if why is not None), None)


def _layer_not_rotatable(channels: Channels, group: ChannelGroup, link: Producer | Consumer) -> Refusal | None:
    """Why a layer that writes or reads a stream cannot take a basis in, and as a reader the shift before it."""
    layer, positions = link.layer, link.positions
    is_consumer = any(link is each for each in group.consumers)
    whole = (layer.in_ids if is_consumer else layer.out_ids).size == group.size
    if not layer.is_linear or layer.groups > 1 or positions.shape[1] > 1 or (positions < 0).any() or not whole:
        return node_refusal(layer.node, Reason.READS_STREAM)
    if is_consumer and not _takes_shift(channels, layer):
        return node_refusal(layer.node, Reason.READS_STREAM)
    if layer.key in channels.shared_weight_keys or layer.is_filled:
        return refusal(layer.name, Reason.STREAM_SHARES_WEIGHT, operator=layer.node.op)
    if layer.stored_weight.dtype != np.float32:
        return refusal(layer.name, Reason.STREAM_TYPE, dtype=layer.stored_weight.dtype)
    return None


def _constant_not_rotatable(group: ChannelGroup, parameter: ChannelParameter) -> Refusal | None:
    """Why a constant of a group is none that is added to the stream, or is needed elsewhere as it is."""
    node, axes = parameter.node, varying_axes(parameter.ids)
    if node.op not in _WRITERS or parameter.is_depthwise or len(axes) != 1 or parameter.ids.shape[axes[0]] != group.size:
        return node_refusal(node, Reason.READS_STREAM)
    if node.op == "Gather" and len(node.inputs[parameter.input_index].outputs) > 1:
        return refusal(node_name(node), Reason.STREAM_SHARES_WEIGHT, operator="Gather")
    return None


def _takes_shift(channels: Channels, layer: Layer) -> bool:
    """Whether a constant added to every channel that a layer reads is a constant added to its outputs, and can be."""
    if layer.layout == "conv_transpose" or layer.kernel_size > 1 or any(layer.node.attrs.get("pads", ())):
        return False
    bias = layer.node.inputs[2] if layer.takes_bias and has_input(layer.node, 2) else None
    return layer.output_axis < layer.output_rank and (bias is None or channels.constant(bias) is not None)
