"""Rules of operators that change the extents of axes: Resize, Upsample, Expand, Tile and Pad."""

from collections.abc import Callable

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, varying_axes, with_rank
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import has_input, node_refusal, non_negative_axis
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit, operand_edit
from onnxmerge.graph.symbolic_shapes import STATIC
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


def resize(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Resize, Upsample: channels pass where their axis keeps its extent."""
    ids = propagation.ids(node.inputs[0])
    before, after = (propagation.known_shape(tensor) for tensor in (node.inputs[0], node.outputs[0]))
    if any(before[axis] != after[axis] for axis in varying_axes(ids)):
        return node_refusal(node, Reason.RESAMPLES_CHANNELS)
    if node.op == "Resize" and varying_axes(ids) and not _keeps_axes(propagation, node, varying_axes(ids), ids.ndim):
        return node_refusal(node, Reason.COMPUTED_SHAPE)
    return [ids]


def _keeps_axes(propagation: ChannelPropagation, node: gs.Node, channel_axes: list[int], rank: int) -> bool:
    """Whether the sizes or scales of these axes are static, and the region that a Resize crops to is the whole of them."""
    index = 3 if has_input(node, 3) else 2
    if has_input(node, index) and not _are_static(propagation.facts, node, index, channel_axes, rank):
        return False
    if not crops(node):
        return True
    axes = [non_negative_axis(axis, rank) for axis in node.attrs.get("axes", range(rank))]
    region = propagation.constant(node.inputs[1]) if has_input(node, 1) else None
    if region is None or region.size != 2 * len(axes):
        return False
    bounds = region.reshape(2, -1)
    return all(bounds[:, axes.index(axis)].tolist() == [0, 1] for axis in channel_axes if axis in axes)


def _are_static(facts: TensorFacts, node: gs.Node, index: int, channel_axes: list[int], rank: int) -> bool:
    """Whether the entries of an input that are about channel axes are the same whatever is fed."""
    is_static = facts.is_static(node.inputs[index])
    return all(is_static[at] for at, axis in enumerate(_axes_of_extents(node, is_static.size, rank)) if axis in channel_axes)


def _axes_of_extents(node: gs.Node, count: int, rank: int) -> list[int]:
    """The axis that each of `count` extents, scales or repeats is about: the last ones, or those of the attribute `axes`."""
    return [non_negative_axis(axis, rank) for axis in node.attrs.get("axes", range(rank - count, rank))]


def crops(node: gs.Node) -> bool:
    """Whether a Resize reads a region of its input, and fills in `extrapolation_value` outside of that."""
    return node.attrs.get("coordinate_transformation_mode") in ("tf_crop_and_resize", b"tf_crop_and_resize")


def expand(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Expand: broadcasting."""
    rank = len(propagation.known_shape(node.outputs[0]))
    ids = with_rank(propagation.ids(node.inputs[0]), rank)
    if not varying_axes(ids):
        return constant_of_shape(propagation, node)
    if not _are_static(propagation.facts, node, 1, varying_axes(ids), rank):
        return node_refusal(node, Reason.COMPUTED_SHAPE)
    return [ids]


def constant_of_shape(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """ConstantOfShape, Expand of no channels: one value that is repeated for channels of others is channels of its own."""
    output, shape = node.outputs[0], propagation.known_shape(node.outputs[0])
    axis = propagation.expanded.get(output.name, 0) + len(shape)
    if axis == len(shape) or propagation.facts.symbols.extents(output)[axis] != STATIC:
        return [propagation.no_ids(output)]
    return [along_axis(propagation.new_channels(output.name, shape[axis]), axis, len(shape))]


def edit_extents(index: int) -> Callable[[KeptChannels, gs.Node], NodeEdit | None]:
    """The edit rule of an operator whose input `index` lists extents of its output."""

    def edit(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
        if not has_input(node, index) or kept.axis_mask(node.outputs[0]) is None:
            return None
        extents = kept.facts.value(node.inputs[index])
        if extents is None or extents.size == 0:
            return None
        old_shape, new_shape = kept.facts.shape(node.outputs[0]) or (), kept.shape(node.outputs[0])
        new_extents = extents.copy()
        for position, axis in enumerate(_axes_of_extents(node, len(extents), len(old_shape))):
            if old_shape[axis] != new_shape[axis] and extents[position] == old_shape[axis]:
                new_extents[position] = new_shape[axis]
        return operand_edit(kept.facts, node, {index: new_extents})

    return edit


def tile(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Tile: repeats of the ids."""
    ids, repeats = propagation.ids(node.inputs[0]), propagation.facts.value(node.inputs[1])
    if not varying_axes(ids):
        return [propagation.no_ids(node.outputs[0])]
    if repeats is None or not _are_static(propagation.facts, node, 1, varying_axes(ids), ids.ndim):
        return node_refusal(node, Reason.COMPUTED_REPEATS)
    return [np.tile(ids, [int(count) if ids.shape[axis] > 1 else 1 for axis, count in enumerate(repeats)])]


def pad(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """Pad: channels that it adds get ids of their own, so that they can go with those that they are joined with."""
    ids = propagation.ids(node.inputs[0])
    widths = _pad_widths(propagation.facts, node, ids.ndim)
    if widths is None:
        return node_refusal(node, Reason.COMPUTED_PADS) if varying_axes(ids) else [ids]
    for position, (axis, (front, back)) in enumerate(widths.items()):
        if ids.shape[axis] == 1:
            continue
        if has_input(node, 1) and not propagation.facts.is_static(node.inputs[1])[position :: len(widths)].all():
            return node_refusal(node, Reason.COMPUTED_PADS)
        if (front, back) == (0, 0):
            continue
        is_constant = node.attrs.get("mode", "constant") in ("constant", b"constant")
        if min(front, back) < 0 or not is_constant:
            return node_refusal(node, Reason.PADS_CHANNELS)
        added = [along_axis(propagation.united.new_ids(count), axis, ids.ndim) for count in (front, back)]
        shapes = [(*ids.shape[:axis], count, *ids.shape[axis + 1 :]) for count in (front, back)]
        front_ids, back_ids = (np.broadcast_to(part, shape) for part, shape in zip(added, shapes, strict=True))
        ids = np.concatenate([front_ids, ids, back_ids], axis)
    return [ids]


def _pad_widths(facts: TensorFacts, node: gs.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """Axis -> how many positions are added before and behind; None where the graph computes it."""
    pads, axes = facts.parameter(node, "pads", 1, may_vary=True), facts.parameter(node, "axes", 3)
    if pads is None or (axes is None and has_input(node, 3)):
        return None
    axes = np.arange(rank) if axes is None else axes
    half = len(pads) // 2
    pairs = zip(pads[:half].tolist(), pads[half:].tolist(), strict=True)
    return {non_negative_axis(axis, rank): pair for axis, pair in zip(axes.tolist(), pairs, strict=True)}


def edit_pad(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """Pad: how many of the added channels are kept on either side. Widths along other axes stay, and may be computed."""
    removed = kept.axis_mask(node.outputs[0])
    widths = _pad_widths(kept.facts, node, len(kept.facts.shape(node.inputs[0]) or ()))
    if removed is None or widths is None or widths.get(removed[0], (0, 0)) == (0, 0):
        return None
    axis, mask = removed
    front, back = widths[axis]
    widths[axis] = int(mask[:front].sum()), int(mask[len(mask) - back :].sum())
    pads = [pair[0] for pair in widths.values()] + [pair[1] for pair in widths.values()]
    return NodeEdit(attributes={"pads": pads}) if "pads" in node.attrs else operand_edit(kept.facts, node, {1: pads})
