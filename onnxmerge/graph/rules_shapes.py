"""Rules for operators that move values: they do to the ids exactly what numpy does to data."""

from __future__ import annotations

import numpy as np

from onnxmerge.errors import Reason
from onnxmerge.graph.channel_ids import Flow, collapse, padded, varying
from onnxmerge.graph.layers import Ids
from onnxmerge.graph.literals import reshape_literal, slices_of
from onnxmerge.graph.parameters import expanded, is_computed, normalised, parameter
from onnxmerge.graph.rules_channels import Outcome, none, refused
from onnxmerge.onnxio import surgeon as gs


def reshape(flow: Flow, node: gs.Node) -> Outcome:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same positions in another shape."""
    shape = flow.shape(node.outputs[0])
    if not varying(flow.ids(node.inputs[0])):
        return [none(flow, node.outputs[0])]
    ids = expanded(flow, node.inputs[0])
    if ids is None or shape is None:
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    if reshape_literal(flow, node) is None:
        return refused(node, Reason.SEVERAL_UNKNOWN_DIMENSIONS)
    return [collapse(ids.reshape(shape))]


def transpose(flow: Flow, node: gs.Node) -> Outcome:
    """Transpose (default: all axes reversed)."""
    ids = flow.ids(node.inputs[0])
    return [ids.transpose(node.attrs.get("perm", list(range(ids.ndim))[::-1]))]


def concat(flow: Flow, node: gs.Node) -> Outcome:
    """Concat: the ids one after the other."""
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    if any(shape is None for shape in shapes):
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
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
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    axis = normalised(node.attrs.get("axis", 0), len(shape))
    if ids.shape[axis] == 1:
        return [ids for _ in node.outputs]
    if len(node.inputs) > 1 and node.inputs[1].name and flow.constant(node.inputs[1]) is None:
        return refused(node, Reason.COMPUTED_SPLIT)
    ends = np.cumsum([piece[axis] for piece in pieces if piece is not None])
    return [collapse(part) for part in np.split(ids, ends[:-1], axis)]


def slice_(flow: Flow, node: gs.Node) -> Outcome:
    """Slice."""
    ids = flow.ids(node.inputs[0])
    if not varying(ids):
        return [ids]
    slices, shape = slices_of(flow, node), flow.shape(node.inputs[0])
    if slices is None or shape is None:
        return refused(node, Reason.COMPUTED_BOUNDS)
    for axis, part in slices:
        if ids.shape[axis] > 1:
            computed = any(flow.constant(tensor) is None for tensor in node.inputs[1:] if tensor.name)
            if computed or part.step != 1:
                return refused(node, Reason.COMPUTED_BOUNDS if computed else Reason.SLICE_IN_STEPS)
            ids = ids[(slice(None),) * axis + (part,)]
    return [collapse(ids)]


def gather(flow: Flow, node: gs.Node) -> Outcome:
    """Gather along an axis; of channels only with constant indices."""
    ids, shape = flow.ids(node.inputs[0]), flow.shape(node.inputs[0])
    out = flow.shape(node.outputs[0])
    if not varying(ids):
        return [none(flow, node.outputs[0])]
    indices = flow.constant(node.inputs[1])
    axis = normalised(node.attrs.get("axis", 0), ids.ndim)
    if shape is None or out is None:
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    if ids.shape[axis] > 1:
        if indices is None:
            return refused(node, Reason.COMPUTED_INDICES)
        return [collapse(ids.take(indices, axis))]
    extra = len(out) - ids.ndim + 1
    return [ids.reshape(ids.shape[:axis] + (1,) * extra + ids.shape[axis + 1 :])]


def expand(flow: Flow, node: gs.Node) -> Outcome:
    """Expand: broadcasting."""
    shape = flow.shape(node.outputs[0])
    ids = flow.ids(node.inputs[0])
    if shape is None:
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    if varying(ids) and flow.constant(node.inputs[1]) is None and not _counts_ones(flow, node):
        return refused(node, Reason.COMPUTED_SHAPE)
    return [padded(ids, len(shape))]


def _counts_ones(flow: Flow, node: gs.Node) -> bool:
    """True when the target has 1 on every axis that carries ids, so that it need not change."""
    target = flow.value(node.inputs[1])
    ids = flow.ids(node.inputs[0])
    return target is not None and all(
        axis - ids.ndim + len(target) < 0 or target[axis - ids.ndim + len(target)] == 1 for axis in varying(ids)
    )


def resize(flow: Flow, node: gs.Node) -> Outcome:
    """Resize, Upsample: channels pass where their axis keeps its extent."""
    ids = flow.ids(node.inputs[0])
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if before is None or after is None:
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
    if any(before[axis] != after[axis] for axis in varying(ids)):
        return refused(node, Reason.RESAMPLES_CHANNELS)
    sizes = node.inputs[3] if len(node.inputs) > 3 and node.op == "Resize" else None
    if varying(ids) and sizes is not None and sizes.name and flow.constant(sizes) is None and _needs_channels(node, ids):
        return refused(node, Reason.COMPUTED_SHAPE)
    return [ids]


def _needs_channels(node: gs.Node, ids: Ids) -> bool:
    axes = node.attrs.get("axes")
    return axes is None or any(normalised(axis, ids.ndim) in varying(ids) for axis in axes)


def tile(flow: Flow, node: gs.Node) -> Outcome:
    """Tile: repeats of the ids."""
    ids, shape = flow.ids(node.inputs[0]), flow.shape(node.inputs[0])
    repeats = flow.value(node.inputs[1])
    if repeats is None or shape is None:
        return refused(node, Reason.COMPUTED_REPEATS) if varying(ids) else [none(flow, node.outputs[0])]
    return [np.tile(ids, [int(n) if ids.shape[axis] > 1 else 1 for axis, n in enumerate(repeats)])]


def pad(flow: Flow, node: gs.Node) -> Outcome:
    """Pad: channels that it adds get ids of their own, so that they can go with those they are joined with."""
    ids = flow.ids(node.inputs[0])
    pads = parameter(flow, node, "pads", 1)
    if pads is None:
        return refused(node, Reason.COMPUTED_PADS) if varying(ids) else [ids]
    axes = parameter(flow, node, "axes", 3)
    places = range(ids.ndim) if axes is None else [normalised(a, ids.ndim) for a in axes]
    half = len(pads) // 2
    for place, axis in enumerate(places):
        front, back = int(pads[place]), int(pads[half + place])
        if ids.shape[axis] == 1 or (front, back) == (0, 0):
            continue
        mode = node.attrs.get("mode", "constant")
        if min(front, back) < 0 or mode not in ("constant", b"constant") or is_computed(flow, node):
            return refused(node, Reason.PADS_CHANNELS)
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


def depth_to_space(flow: Flow, node: gs.Node) -> Outcome:
    """DepthToSpace and SpaceToDepth as the Reshape-Transpose-Reshape that defines them."""
    ids, shape = expanded(flow, node.inputs[0]), flow.shape(node.inputs[0])
    if ids is None or shape is None or len(shape) != 4:
        return refused(node, Reason.SHAPE_UNKNOWN, tensor=node.inputs[0].name)
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
