"""Channel counts and positions that nodes hold as literals, and what becomes of them when channels leave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxmerge.graph.channel_ids import Flow, collapse, varying
from onnxmerge.graph.layers import Ids
from onnxmerge.graph.parameters import normalised, parameter
from onnxmerge.onnxio import surgeon as gs


@dataclass(frozen=True)
class Kept:
    """Which ids stay, by id; what that makes of shapes and positions."""

    flow: Flow
    stays: np.ndarray

    def mask(self, ids: Ids) -> np.ndarray:
        """True where the id at a position stays."""
        return np.asarray(self.stays[ids])

    def axis_mask(self, tensor: gs.Tensor) -> tuple[int, np.ndarray] | None:
        """The axis that shrinks and which of its positions stay; None where nothing goes."""
        ids = self.flow.ids(tensor)
        mask = collapse(self.mask(ids))
        axes = varying(mask)
        if not axes:
            return None
        (axis,) = axes
        return axis, mask.reshape(-1)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """The tensor's concrete shape once the removed ids are gone."""
        shape = list(self.flow.shape(tensor) or ())
        found = self.axis_mask(tensor)
        if found is not None:
            shape[found[0]] = int(found[1].sum())
        return tuple(shape)


@dataclass(frozen=True)
class Edit:
    """New literals of a node: constants for its inputs, values for its attributes."""

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def reshape_literal(flow: Flow, node: gs.Node) -> np.ndarray | None:
    """The shape operand of Reshape with 0 (copied) and -1 (inferred) in place of dynamic dimensions; None if impossible."""
    if node.op != "Reshape":
        return np.zeros(0, np.int64)
    target = flow.constant(node.inputs[1])
    if target is not None:
        return target
    source, shape = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    other = flow.other_shapes or flow.shapes
    source2, shape2 = other.get(node.inputs[0].name), other.get(node.outputs[0].name)
    if source is None or shape is None or source2 is None or shape2 is None or len(shape) != len(shape2):
        return None
    literal = np.array(shape, np.int64)
    dynamic = [axis for axis in range(len(shape)) if shape[axis] != shape2[axis]]
    for axis in list(dynamic):
        if axis < min(len(source), len(source2)) and (source[axis], source2[axis]) == (shape[axis], shape2[axis]):
            literal[axis] = 0
            dynamic.remove(axis)
    if len(dynamic) > 1 or node.attrs.get("allowzero", 0):
        return None
    literal[dynamic] = -1
    return literal


def reshape_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Reshape: the channel count in the target shape."""
    if node.op != "Reshape":
        return None
    literal = reshape_literal(flow, node)
    found = kept.axis_mask(node.outputs[0])
    if (found is None and kept.axis_mask(node.inputs[0]) is None) or literal is None:
        return None
    old, new = flow.shape(node.outputs[0]) or (), kept.shape(node.outputs[0])
    source = kept.shape(node.inputs[0])
    literal = literal.copy()
    for axis, entry in enumerate(literal):
        copied = entry == 0 and not node.attrs.get("allowzero", 0)
        if (entry > 0 and old[axis] != new[axis]) or (copied and source[axis] != new[axis]):
            literal[axis] = new[axis]
    return Edit({1: literal})


def split_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Split: the sizes, written out."""
    found = kept.axis_mask(node.inputs[0])
    if found is None or found[0] != normalised(node.attrs.get("axis", 0), flow.ids(node.inputs[0]).ndim):
        return None
    sizes = np.array([kept.shape(output)[found[0]] for output in node.outputs], np.int64)
    if flow.model.graph.opset < 13:
        return Edit(attributes={"split": sizes.tolist()})
    return Edit({1: sizes}, {"num_outputs": None})


def slices_of(flow: Flow, node: gs.Node) -> list[tuple[int, slice]] | None:
    """(axis, slice) for each sliced axis; None where a bound is computed by the graph and was not seen."""
    rank = len(flow.shape(node.inputs[0]) or ())
    starts, ends = parameter(flow, node, "starts", 1), parameter(flow, node, "ends", 2)
    if starts is None or ends is None:
        return None
    axes, steps = parameter(flow, node, "axes", 3), parameter(flow, node, "steps", 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    found = []
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        stop = None if step < 0 and end < -(2**31) + 2 else end
        found.append((normalised(axis, rank), slice(start, stop, step)))
    return found


def slice_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Slice: bounds count what is left before them."""
    found = kept.axis_mask(node.inputs[0])
    slices = slices_of(flow, node)
    if found is None or slices is None or found[0] not in [axis for axis, _ in slices]:
        return None  # bounds along other axes may be computed, and stay as they are
    starts, ends = [], []
    for axis, part in slices:
        start, end = part.start, part.stop
        if axis == found[0]:
            before = np.concatenate([[0], np.cumsum(found[1])])
            first, last, _ = part.indices(len(found[1]))
            start, end = int(before[first]), int(before[max(first, last)])
        starts.append(start)
        ends.append(-(2**31) if end is None else end)
    if "starts" in node.attrs:
        return Edit(attributes={"starts": starts, "ends": ends})
    kind = flow.value(node.inputs[1]) if len(node.inputs) > 1 else np.zeros(0, np.int64)
    dtype = np.int64 if kind is None else kind.dtype
    return Edit({1: np.array(starts, dtype), 2: np.array(ends, dtype)})


def gather_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Gather: indices of kept channels, counted anew."""
    found = kept.axis_mask(node.inputs[0])
    if found is None or found[0] != normalised(node.attrs.get("axis", 0), flow.ids(node.inputs[0]).ndim):
        return None
    indices = flow.constant(node.inputs[1])
    assert indices is not None
    flat = np.where(indices < 0, indices + len(found[1]), indices)
    staying = found[1][flat]
    position = (np.cumsum(found[1]) - 1).astype(indices.dtype)
    return Edit({1: position[flat] if staying.all() else position[flat[staying]]})


def literal_extents(index: int, name: str) -> Any:
    """The edit of an operator whose operand lists the extents of its output (Expand, Resize)."""

    def edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
        found = kept.axis_mask(node.outputs[0])
        if found is None or len(node.inputs) <= index or not node.inputs[index].name:
            return None
        target = flow.constant(node.inputs[index])
        if target is None or target.size == 0:
            return None
        old, new = flow.shape(node.outputs[0]) or (), kept.shape(node.outputs[0])
        axes = node.attrs.get("axes") if name == "Resize" else None
        positions = [normalised(a, len(old)) for a in axes] if axes is not None else range(len(old) - len(target), len(old))
        changed = target.copy()
        for place, axis in enumerate(positions):
            if old[axis] != new[axis] and target[place] == old[axis]:
                changed[place] = new[axis]
        return Edit({index: changed})

    return edit


def pad_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Pad: how many of the added channels are left on either side."""
    found = kept.axis_mask(node.outputs[0])
    pads = parameter(flow, node, "pads", 1)
    if found is None or pads is None:
        return None
    axis, mask = found
    axes = parameter(flow, node, "axes", 3)
    rank = flow.ids(node.inputs[0]).ndim
    places = list(range(rank)) if axes is None else [normalised(a, rank) for a in axes]
    if axis not in places:
        return None
    place, half = places.index(axis), len(pads) // 2
    front, back = int(pads[place]), int(pads[half + place])
    if (front, back) == (0, 0):
        return None  # widths along other axes may be computed, and stay as they are
    changed = pads.copy()
    changed[place], changed[half + place] = mask[:front].sum(), mask[len(mask) - back :].sum()
    return Edit(attributes={"pads": changed.tolist()}) if "pads" in node.attrs else Edit({1: changed})
