"""Rules for operators that mix along some axes (reductions, softmax, normalisation) and leave the others apart."""

from __future__ import annotations

from typing import Any

from onnxmerge.errors import Reason
from onnxmerge.graph.channel_ids import Flow, varying
from onnxmerge.graph.parameters import normalised, parameter
from onnxmerge.graph.rules_channels import Outcome, none, refused
from onnxmerge.onnxio import surgeon as gs


def over_axes(find: Any) -> Any:
    """The rule of an operator that mixes along some axes and leaves the others apart."""

    def rule(flow: Flow, node: gs.Node) -> Outcome:
        ids = flow.ids(node.inputs[0])
        axes = find(flow, node, ids.ndim)
        if axes is None:
            return refused(node, Reason.COMPUTED_AXES) if varying(ids) else [none(flow, o) for o in node.outputs]
        if any(axis in axes for axis in varying(ids)):
            return refused(node, Reason.MIXES_CHANNELS)
        outcome = []
        for output in node.outputs:
            shape = (flow.shape(output) if output.name else None) or ()
            dropped = len(shape) == ids.ndim - len(axes)
            outcome.append(ids.squeeze(tuple(axes)) if dropped else ids if len(shape) == ids.ndim else none(flow, output))
        return outcome

    return rule


def axis_of(default: int) -> Any:
    """The attribute `axis`."""
    return lambda flow, node, rank: [normalised(node.attrs.get("axis", default), rank)]


def last_axes(flow: Flow, node: gs.Node, rank: int) -> list[int]:
    """From `axis` (default the last) to the end: LayerNormalization."""
    return list(range(normalised(node.attrs.get("axis", -1), rank), rank))


def from_axis(flow: Flow, node: gs.Node, rank: int) -> list[int]:
    """Softmax: one axis from opset 13 on, before that every axis from `axis` on."""
    if flow.model.graph.opset >= 13:
        return [normalised(node.attrs.get("axis", -1), rank)]
    return list(range(normalised(node.attrs.get("axis", 1), rank), rank))


def axes_of(flow: Flow, node: gs.Node, rank: int) -> list[int] | None:
    """The axes of a reduction, an attribute or an input; all of them by default."""
    given = len(node.inputs) > 1 and bool(node.inputs[1].name)
    axes = parameter(flow, node, "axes", 1)
    if axes is None or axes.size == 0:
        if given and axes is None:
            return None
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [normalised(axis, rank) for axis in axes.tolist()]


def channel_axis(flow: Flow, node: gs.Node, rank: int) -> list[int]:
    """Every axis but the batch: LRN, GroupNormalization and the like mix channels and positions."""
    return list(range(1, rank))


def axis_input(flow: Flow, node: gs.Node, rank: int) -> list[int] | None:
    """CumSum: the axis is an input."""
    value = flow.value(node.inputs[1])
    return None if value is None else [normalised(int(value.reshape(-1)[0]), rank)]
