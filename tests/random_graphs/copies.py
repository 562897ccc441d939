"""Models in which some channels are multiples of others, so that removing these loses nothing.

The channels of a group, and which constants go with them, are taken from the program's own analysis (that it is right is what the
masked oracle shows); whether the outputs stay is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxmerge.execution.input_sizes import GivenShapes
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_propagation import ChannelParameter
from onnxmerge.options import PlannedGroup

from .generate import Generated

OFFSETS = {("BatchNormalization", 2), ("BatchNormalization", 3), ("InstanceNormalization", 2), ("Conv", 2)}
OFFSETS |= {("ConvTranspose", 2), ("Gemm", 2), *((name, index) for name in ("Add", "Sub", "Sum") for index in (0, 1))}
"""(operator, input) that a multiple of a channel multiplies too; of all others both channels have the same."""


@dataclass(frozen=True)
class Copies:
    """A model with multiples of channels, and what is removed of it.

    Attributes
    ----------
    graph : Generated
        The model.
    plan : dict[str, PlannedGroup]
        By group, the channels that stay: all but the multiples.
    pairs : dict[str, tuple of ndarray]
        By group: the channels that stay, their multiples, and the factors.
    """

    graph: Generated
    plan: dict[str, PlannedGroup]
    pairs: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def analysed(graph: Generated, folder: Path) -> AnalysedModel:
    """The program's analysis."""
    path = folder / "analysed.onnx"
    path.write_bytes(graph.model.SerializeToString())
    return analyse_model(path, given=GivenShapes(graph.input_shape, dict.fromkeys(graph.inputs, "given")))


def with_copies(graph: Generated, folder: Path, *, equal: bool) -> Copies:
    """Every second channel of each group becomes a positive multiple of the one before; `equal`: the same as the one before."""
    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors |= {n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    rng, plan, pairs = np.random.default_rng(graph.seed), {}, {}
    channels = analysed(graph, folder).channels
    for group in channels.groups:
        bases, copies = paired(group)
        factors = np.ones(len(bases)) if equal else rng.uniform(0.3, 0.6, len(bases))
        edits = edits_of(channels, group, tensors)
        if edits is None or not len(bases):
            continue
        for name, ids, is_offset in edits:
            write(tensors[name], ids, group, bases, copies, factors if is_offset else np.ones(len(bases)))
        kept = np.setdiff1d(np.arange(group.size), copies)
        plan[group.name] = PlannedGroup(len(kept), tuple(kept.tolist()))
        pairs[group.name] = bases, copies, factors
    return Copies(replace(graph, model=model), plan, pairs)


def paired(group: ChannelGroup) -> tuple[np.ndarray, np.ndarray]:
    """(channels that stay, channels that become their multiples), equally many of every convolution group."""
    parts = []
    for label in np.unique(group.merge_classes):
        members = np.flatnonzero(group.merge_classes == label)
        half = len(members) // 2
        bases, copies = members[: 2 * half : 2], members[1 : 2 * half : 2]
        parts.append([(a, b) for a, b in zip(bases.tolist(), copies.tolist(), strict=True) if group.removable[b]])
    by_conv_group = [
        [pair for part in parts for pair in part if group.conv_groups[pair[1]] == g] for g in np.unique(group.conv_groups)
    ]
    count = min(len(each) for each in by_conv_group)
    chosen = sorted(pair for each in by_conv_group for pair in each[:count])
    return np.array([a for a, _ in chosen], int), np.array([b for _, b in chosen], int)


def edits_of(channels: Channels, group: ChannelGroup, tensors: dict[str, onnx.TensorProto]) -> list | None:
    """(tensor, channel id of every number in it, whether it is multiplied); None where one is no tensor of the file."""
    edits = []
    for producer in group.producers:
        layer = producer.layer
        groups, outputs = layer.out_ids.shape
        ids = np.broadcast_to(layer.out_ids[:, :, None, None], (groups, outputs, layer.inputs_per_group, layer.kernel_size))
        edits.append((layer.node.inputs[layer.weight_input].name, layer.stored(ids), True))
    for parameter in group.parameters:
        tensor = parameter.node.inputs[parameter.input_index].name
        if tensor not in tensors:
            return None
        ids = np.broadcast_to(parameter.ids, list(tensors[tensor].dims))
        edits.append((tensor, ids, is_offset(parameter)))
    return edits if all(name in tensors for name, _, _ in edits) else None


def is_offset(parameter: ChannelParameter) -> bool:
    """Whether a multiple of the channel has a multiple of this constant."""
    return (parameter.node.op, parameter.input_index) in OFFSETS


def write(
    tensor: onnx.TensorProto, ids: np.ndarray, group: ChannelGroup, bases: np.ndarray, copies: np.ndarray, factors: np.ndarray
) -> None:
    """The numbers of the copies become factors times those of their bases."""
    values = numpy_helper.to_array(tensor).copy()
    for base, copy, factor in zip(group.channel_ids[bases], group.channel_ids[copies], factors, strict=True):
        source = values[ids == base]
        if source.size == (ids == copy).sum():
            values[ids == copy] = (factor * source).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
