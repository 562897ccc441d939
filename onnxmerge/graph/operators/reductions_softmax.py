"""Propagation rules of operators that mix along some axes and leave the others apart: reductions, Softmax, LayerNormalization."""

from collections.abc import Callable

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import has_input, node_refusal, non_negative_axis
from onnxmerge.graph.operators.elementwise import note_operand
from onnxmerge.onnxio import surgeon as gs

# The axes that a node mixes along, given the rank of its first input; None where the graph computes them.
FindAxes = Callable[[ChannelPropagation, gs.Node, int], list[int] | None]


def mixes_along(find_axes: FindAxes) -> Callable[[ChannelPropagation, gs.Node], list[Ids] | Refusal]:
    """The propagation rule of an operator that mixes along the axes that `find_axes` gives, and along no other."""

    def rule(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
        """Mixes along some axes, and keeps channels that are there; channels on other axes pass."""
        ids = propagation.ids(node.inputs[0])
        axes = find_axes(propagation, node, ids.ndim)
        if axes is None:
            if varying_axes(ids):
                return node_refusal(node, Reason.COMPUTED_AXES)
            return [propagation.no_ids(output) for output in node.outputs]
        if any(axis in axes for axis in varying_axes(ids)):
            return node_refusal(node, Reason.MIXES_CHANNELS)
        return [_ids_out(propagation, output, ids, axes) for output in node.outputs]

    return rule


def _ids_out(propagation: ChannelPropagation, output: gs.Tensor, ids: Ids, axes: list[int]) -> Ids:
    """The ids of one output: of the input's rank, or without the axes that were mixed."""
    rank = len((propagation.shape(output) if output.name else None) or ())
    if rank == ids.ndim - len(axes):
        return ids.squeeze(tuple(axes))
    return ids if rank == ids.ndim else propagation.no_ids(output)


def axis_attribute(default: int) -> FindAxes:
    """The attribute `axis`."""
    return lambda propagation, node, rank: [non_negative_axis(node.attrs.get("axis", default), rank)]


def trailing_axes(propagation: ChannelPropagation, node: gs.Node, rank: int) -> list[int]:
    """From the attribute `axis` (by default the last axis) to the end: LayerNormalization."""
    return list(range(non_negative_axis(node.attrs.get("axis", -1), rank), rank))


def layer_normalization(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """LayerNormalization, RMSNormalization: along the trailing axes; scale and bias may have entries for channels on others."""
    result = mixes_along(trailing_axes)(propagation, node)
    if not isinstance(result, Refusal):
        for index in range(1, len(node.inputs)):
            note_operand(propagation, node, index, result[0])
    return result


def normalised(propagation: ChannelPropagation, node: gs.Node) -> list[Ids]:
    """A node of `ChannelPropagation.means`: a normalisation lets channels pass, and a sum over them has none."""
    ids, output = propagation.ids(node.inputs[0]), node.outputs[0]
    if propagation.shape(node.inputs[0]) != propagation.shape(output):
        return [propagation.no_ids(output)]
    for index in range(1, len(node.inputs)):
        note_operand(propagation, node, index, ids)
    return [ids]


def softmax_axes(propagation: ChannelPropagation, node: gs.Node, rank: int) -> list[int]:
    """Softmax: one axis from opset 13 on, before that every axis from `axis` on."""
    if propagation.facts.model.opset >= 13:
        return [non_negative_axis(node.attrs.get("axis", -1), rank)]
    return list(range(non_negative_axis(node.attrs.get("axis", 1), rank), rank))


def reduction_axes(propagation: ChannelPropagation, node: gs.Node, rank: int) -> list[int] | None:
    """The axes of a reduction, an attribute or an input; all of them by default."""
    axes = propagation.facts.parameter(node, "axes", 1)
    if axes is None and has_input(node, 1):
        return None
    if axes is None or axes.size == 0:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [non_negative_axis(axis, rank) for axis in axes.tolist()]


def all_but_batch(propagation: ChannelPropagation, node: gs.Node, rank: int) -> list[int]:
    """Every axis but the first: LRN and the like mix channels and positions."""
    return list(range(1, rank))


def axis_input(propagation: ChannelPropagation, node: gs.Node, rank: int) -> list[int] | None:
    """CumSum: the axis is its second input."""
    value = propagation.facts.static_value(node.inputs[1])
    return None if value is None else [non_negative_axis(int(value.reshape(-1)[0]), rank)]
