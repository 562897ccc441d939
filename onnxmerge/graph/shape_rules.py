"""Rules for operators that move values: they do to the ids exactly what numpy does to data.

Where an operator holds channel counts or positions as literals, a second function beside the rule tells its new literals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.channel_rules import Outcome, none
from onnxmerge.graph.flow import Flow, Ids, collapse, padded, varying


@dataclass(frozen=True)
class Kept:
    """Which ids stay, by id; what that makes of shapes and positions."""

    flow: Flow
    stays: np.ndarray

    def mask(self, ids: Ids) -> np.ndarray:
        """True where the id at a position stays."""
        return self.stays[ids]

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


def parameter(flow: Flow, node: gs.Node, name: str, index: int | None) -> np.ndarray | None:
    """A parameter that older opsets keep in an attribute and newer ones in an input."""
    if name in node.attrs:
        return np.atleast_1d(np.asarray(node.attrs[name]))
    if index is not None and len(node.inputs) > index and node.inputs[index].name:
        value = flow.value(node.inputs[index])
        return None if value is None else np.atleast_1d(value)
    return None


def normalised(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return int(axis) + rank if axis < 0 else int(axis)


def expanded(flow: Flow, tensor: gs.Tensor) -> Ids | None:
    """The ids of every position."""
    shape = flow.shape(tensor)
    return None if shape is None else np.broadcast_to(flow.ids(tensor), shape)


def reshape(flow: Flow, node: gs.Node) -> Outcome:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same positions in another shape."""
    shape = flow.shape(node.outputs[0])
    if not varying(flow.ids(node.inputs[0])):
        return [none(flow, node.outputs[0])]
    ids = expanded(flow, node.inputs[0])
    if ids is None or shape is None:
        return f"{node.op} has a shape that could not be observed"
    if _literal(flow, node) is None:
        return f"{node.op} to a computed shape with several unknown dimensions"
    return [collapse(ids.reshape(shape))]


def _literal(flow: Flow, node: gs.Node) -> np.ndarray | None:
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
    literal = _literal(flow, node)
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


def transpose(flow: Flow, node: gs.Node) -> Outcome:
    """Transpose (default: all axes reversed)."""
    ids = flow.ids(node.inputs[0])
    return [ids.transpose(node.attrs.get("perm", list(range(ids.ndim))[::-1]))]


def concat(flow: Flow, node: gs.Node) -> Outcome:
    """Concat: the ids one after the other."""
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    if any(shape is None for shape in shapes):
        return "Concat has an input whose shape could not be observed"
    rank = len(shapes[0] or ())
    axis = normalised(node.attrs["axis"], rank)
    parts = []
    for tensor, shape in zip(node.inputs, shapes, strict=True):
        assert shape is not None
        ids = flow.ids(tensor)
        parts.append(np.broadcast_to(ids, [shape[a] if a == axis else ids.shape[a] for a in range(rank)]))
    widest = [max(part.shape[a] for part in parts) for a in range(rank)]
    parts = [np.broadcast_to(part, [part.shape[a] if a == axis else widest[a] for a in range(rank)]) for part in parts]
    return [collapse(np.concatenate(parts, axis))]


def split(flow: Flow, node: gs.Node) -> Outcome:
    """Split: consecutive pieces, as long as the outputs were in the run."""
    ids, shape = flow.ids(node.inputs[0]), flow.shape(node.inputs[0])
    pieces = [flow.shape(output) for output in node.outputs]
    if shape is None or any(piece is None for piece in pieces):
        return "Split has a shape that could not be observed"
    axis = normalised(node.attrs.get("axis", 0), len(shape))
    if ids.shape[axis] == 1:
        return [ids for _ in node.outputs]
    if len(node.inputs) > 1 and node.inputs[1].name and flow.constant(node.inputs[1]) is None:
        return "Split into computed sizes"
    ends = np.cumsum([piece[axis] for piece in pieces if piece is not None])
    return [collapse(part) for part in np.split(ids, ends[:-1], axis)]


def split_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Split: the sizes, written out."""
    found = kept.axis_mask(node.inputs[0])
    if found is None or found[0] != normalised(node.attrs.get("axis", 0), flow.ids(node.inputs[0]).ndim):
        return None
    sizes = np.array([kept.shape(output)[found[0]] for output in node.outputs], np.int64)
    if flow.model.graph.opset < 13:
        return Edit(attributes={"split": sizes.tolist()})
    return Edit({1: sizes}, {"num_outputs": None})


def _slices(flow: Flow, node: gs.Node) -> list[tuple[int, slice]] | str:
    """(axis, slice) for each sliced axis; a reason where a bound is computed by the graph on an axis that carries ids."""
    rank = len(flow.shape(node.inputs[0]) or ())
    starts, ends = parameter(flow, node, "starts", 1), parameter(flow, node, "ends", 2)
    if starts is None or ends is None:
        return "Slice with computed bounds"
    axes, steps = parameter(flow, node, "axes", 3), parameter(flow, node, "steps", 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    found = []
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        stop = None if step < 0 and end < -(2**31) + 2 else end
        found.append((normalised(axis, rank), slice(start, stop, step)))
    return found


def slice_(flow: Flow, node: gs.Node) -> Outcome:
    """Slice."""
    ids = flow.ids(node.inputs[0])
    if not varying(ids):
        return [ids]
    slices, shape = _slices(flow, node), flow.shape(node.inputs[0])
    if isinstance(slices, str) or shape is None:
        return slices if isinstance(slices, str) else "Slice has an input whose shape could not be observed"
    for axis, part in slices:
        if ids.shape[axis] > 1:
            computed = any(flow.constant(tensor) is None for tensor in node.inputs[1:] if tensor.name)
            if computed or part.step != 1:
                return "Slice of channels with computed bounds" if computed else "Slice of channels in steps"
            ids = ids[(slice(None),) * axis + (part,)]
    return [collapse(ids)]


def slice_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Slice: bounds count what is left before them."""
    found = kept.axis_mask(node.inputs[0])
    slices = _slices(flow, node)
    if found is None or isinstance(slices, str):
        return None
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


def gather(flow: Flow, node: gs.Node) -> Outcome:
    """Gather along an axis; of channels only with constant indices."""
    ids, shape = flow.ids(node.inputs[0]), flow.shape(node.inputs[0])
    out = flow.shape(node.outputs[0])
    if not varying(ids):
        return [none(flow, node.outputs[0])]
    indices = flow.constant(node.inputs[1])
    axis = normalised(node.attrs.get("axis", 0), ids.ndim)
    if shape is None or out is None:
        return "Gather has a shape that could not be observed"
    if ids.shape[axis] > 1:
        if indices is None:
            return "Gather picks channels by computed indices"
        return [collapse(ids.take(indices, axis))]
    extra = len(out) - ids.ndim + 1
    return [ids.reshape(ids.shape[:axis] + (1,) * extra + ids.shape[axis + 1 :])]


def gather_edit(flow: Flow, node: gs.Node, kept: Kept) -> Edit | None:
    """Gather: indices of kept channels, counted anew."""
    found = kept.axis_mask(node.inputs[0])
    if found is None or found[0] != normalised(node.attrs.get("axis", 0), flow.ids(node.inputs[0]).ndim):
        return None
    indices = flow.constant(node.inputs[1])
    assert indices is not None
    flat = np.where(indices < 0, indices + len(found[1]), indices)
    staying = found[1][flat]
    position = np.cumsum(found[1]) - 1
    return Edit({1: position[flat[staying]].astype(indices.dtype)})


def expand(flow: Flow, node: gs.Node) -> Outcome:
    """Expand: broadcasting."""
    shape = flow.shape(node.outputs[0])
    ids = flow.ids(node.inputs[0])
    if shape is None:
        return "Expand to a shape that could not be observed"
    if varying(ids) and flow.constant(node.inputs[1]) is None and not _counts_ones(flow, node):
        return "Expand to a computed shape"
    return [padded(ids, len(shape))]


def _counts_ones(flow: Flow, node: gs.Node) -> bool:
    """True when the target has 1 on every axis that carries ids, so that it need not change."""
    target = flow.value(node.inputs[1])
    ids = flow.ids(node.inputs[0])
    return target is not None and all(
        axis - ids.ndim + len(target) < 0 or target[axis - ids.ndim + len(target)] == 1 for axis in varying(ids)
    )


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


def resize(flow: Flow, node: gs.Node) -> Outcome:
    """Resize, Upsample: channels pass where their axis keeps its extent."""
    ids = flow.ids(node.inputs[0])
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if before is None or after is None:
        return f"{node.op} has a shape that could not be observed"
    if any(before[axis] != after[axis] for axis in varying(ids)):
        return f"{node.op} resamples the channel axis"
    sizes = node.inputs[3] if len(node.inputs) > 3 and node.op == "Resize" else None
    if varying(ids) and sizes is not None and sizes.name and flow.constant(sizes) is None and _needs_channels(node, ids):
        return "Resize to a computed size"
    return [ids]


def _needs_channels(node: gs.Node, ids: Ids) -> bool:
    axes = node.attrs.get("axes")
    return axes is None or any(normalised(axis, ids.ndim) in varying(ids) for axis in axes)


def tile(flow: Flow, node: gs.Node) -> Outcome:
    """Tile: repeats of the ids."""
    ids, shape = flow.ids(node.inputs[0]), flow.shape(node.inputs[0])
    repeats = flow.value(node.inputs[1])
    if repeats is None or shape is None:
        return "Tile with computed repeats" if varying(ids) else [none(flow, node.outputs[0])]
    return [np.tile(ids, [int(n) if ids.shape[axis] > 1 else 1 for axis, n in enumerate(repeats)])]


def pad(flow: Flow, node: gs.Node) -> Outcome:
    """Pad: channels that it adds get ids of their own, so that they can go with those they are joined with."""
    ids = flow.ids(node.inputs[0])
    pads = parameter(flow, node, "pads", 1)
    if pads is None:
        return "Pad with computed widths" if varying(ids) else [ids]
    axes = parameter(flow, node, "axes", 3)
    places = range(ids.ndim) if axes is None else [normalised(a, ids.ndim) for a in axes]
    half = len(pads) // 2
    for place, axis in enumerate(places):
        front, back = int(pads[place]), int(pads[half + place])
        if ids.shape[axis] == 1 or (front, back) == (0, 0):
            continue
        mode = node.attrs.get("mode", "constant")
        if min(front, back) < 0 or mode not in ("constant", b"constant") or _computed(flow, node):
            return "Pad of the channel axis is not by a constant"
        side = [
            np.broadcast_to(
                _laid(flow.fresh(n) if n > 1 else np.zeros(n, np.int64), axis, ids.ndim),
                [n if a == axis else e for a, e in enumerate(ids.shape)],
            )
            for n in (front, back)
        ]
        ids = np.concatenate([side[0], ids, side[1]], axis)
    return [ids]


def _laid(ids: Ids, axis: int, rank: int) -> Ids:
    return ids.reshape([len(ids) if a == axis else 1 for a in range(rank)])


def _computed(flow: Flow, node: gs.Node) -> bool:
    return len(node.inputs) > 1 and bool(node.inputs[1].name) and flow.constant(node.inputs[1]) is None


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
    changed = pads.copy()
    changed[place], changed[half + place] = mask[:front].sum(), mask[len(mask) - back :].sum()
    return Edit(attributes={"pads": changed.tolist()}) if "pads" in node.attrs else Edit({1: changed})


def depth_to_space(flow: Flow, node: gs.Node) -> Outcome:
    """DepthToSpace and SpaceToDepth as the Reshape-Transpose-Reshape that defines them."""
    ids, shape = expanded(flow, node.inputs[0]), flow.shape(node.inputs[0])
    if ids is None or shape is None or len(shape) != 4:
        return f"{node.op} has a shape that could not be observed"
    n, c, h, w = shape
    b = int(node.attrs["blocksize"])
    if node.op == "SpaceToDepth":
        moved = ids.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
        return [collapse(moved.reshape(n, c * b * b, h // b, w // b))]
    if node.attrs.get("mode", "DCR") in ("CRD", b"CRD"):
        moved = ids.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = ids.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return [collapse(moved.reshape(n, c // (b * b), h * b, w * b))]


def over_axes(find: Any) -> Any:
    """The rule of an operator that mixes along some axes and leaves the others apart."""

    def rule(flow: Flow, node: gs.Node) -> Outcome:
        ids = flow.ids(node.inputs[0])
        axes = find(flow, node, ids.ndim)
        if axes is None:
            return f"{node.op} along computed axes" if varying(ids) else [none(flow, o) for o in node.outputs]
        if any(axis in axes for axis in varying(ids)):
            return f"{node.op} mixes channels"
        outcome = []
        for output in node.outputs:
            shape = flow.shape(output) if output.name else ()
            if shape is None:
                return f"{node.op} has a shape that could not be observed"
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
