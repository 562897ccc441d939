"""What a file says of the sizes of its inputs: constants that only agree with some sizes, and notes of exporters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from onnxmerge.onnxio.external_data import is_external

IMAGE_SIDES = range(16, 1537)  # pixels: from the smallest images that networks take to the largest that detectors do
SCALES = (32, 16, 8, 4, 2, 1)  # pixels of the input to one of a feature map: total strides of usual networks
STORED_VALUES = 8  # elements: literal shapes and sizes have one an axis
DEFAULT_CHANNELS, MOST_CHANNELS = 3, 4096
SMALLEST_STATED = 64  # pixels; smaller ones are those of feature maps
ROWS = range(4, 8193)  # of a table of positions


@dataclass(frozen=True)
class SizeHints:
    """Sizes to try.

    Attributes
    ----------
    images : list of (int, int)
        Height and width that the file states: a note of the exporter, or a Resize to literal sizes.
    sides : list of int
        Of square images, that literal shapes and tables of constants could come from.
    lengths : list of int
        Of sequences: rows of tables that are added or looked up, inputs of dense layers.
    channels : int
        Of an image whose channel axis is dynamic: what the first convolution reads, or 3.
    is_line : bool
        Whether the layers shrink the height more than the width, as those that read a line of text do.
    """

    images: list[tuple[int, int]]
    sides: list[int]
    lengths: list[int]
    channels: int
    is_line: bool


def size_hints(proto: ModelProto) -> SizeHints:
    """The hints of the main graph."""
    nodes, constants = list(proto.graph.node), _constants(proto)
    convolutions = [(node, dims) for node in nodes if node.op_type == "Conv" and len(dims := _weight(node, constants)) > 2]
    channels, scales = DEFAULT_CHANNELS, list(SCALES)
    if convolutions:
        node, dims = convolutions[0]
        read = dims[1] * _number(node, "group", 1)
        channels, scales = read if 0 < read <= MOST_CHANNELS else channels, [_number(node, "strides", 1), *SCALES]
    grids = list(_grids(proto, nodes, constants, {dims[0] for _, dims in convolutions}))
    sides = [*_anchored(nodes, constants), *(grid * scale for scale in scales for grid in grids)]
    stated = [(height * scale, width * scale) for height, width in _resized(nodes, constants) for scale in reversed(SCALES)]
    images = [pair for pair in (*_noted(proto), *stated) if min(pair) >= SMALLEST_STATED and max(pair) in IMAGE_SIDES]
    plausible = dict.fromkeys(side for side in sides if side in IMAGE_SIDES)
    return SizeHints(images, list(plausible), list(dict.fromkeys(_lengths(nodes, constants))), channels, _is_line(nodes))


def _is_line(nodes: Iterable[NodeProto]) -> bool:
    strides = [each.ints for node in nodes for each in node.attribute if each.name == "strides" and len(each.ints) == 2]
    return math.prod(height for height, _ in strides) > math.prod(width for _, width in strides)


def _constants(proto: ModelProto) -> dict[str, TensorProto]:
    """Initializers and tensors of Constant nodes by name."""
    made = {
        node.output[0]: each.t
        for node in proto.graph.node
        if node.op_type == "Constant"
        for each in node.attribute
        if each.HasField("t")
    }
    return made | {tensor.name: tensor for tensor in proto.graph.initializer}


def _weight(node: NodeProto, constants: dict[str, TensorProto]) -> Sequence[int]:
    """The shape of the constant that is the second input; empty where there is none."""
    return constants[node.input[1]].dims if len(node.input) > 1 and node.input[1] in constants else ()


def _literal(node: NodeProto, number: int, constants: dict[str, TensorProto]) -> list[int]:
    """The values of an input that is a short constant of integers, such as a shape; empty for any other."""
    tensor = constants.get(node.input[number]) if len(node.input) > number else None
    if tensor is None or tensor.data_type != TensorProto.INT64 or math.prod(tensor.dims) > STORED_VALUES or is_external(tensor):
        return []
    return [int(value) for value in np.ravel(onnx.numpy_helper.to_array(tensor))]


def _noted(proto: ModelProto) -> Iterator[tuple[int, int]]:
    """The height and width that the exporter of YOLO models writes into the metadata: imgsz = "[320, 320]"."""
    for entry in proto.metadata_props:
        if entry.key == "imgsz":
            try:
                height, width = json.loads(entry.value)
                yield int(height), int(width)
            except (ValueError, TypeError, OverflowError, RecursionError):
                return


def _resized(nodes: Iterable[NodeProto], constants: dict[str, TensorProto]) -> list[tuple[int, int]]:
    """Height and width of the largest Resize to literal sizes, (N, C, H, W) or (N, H, W, C)."""
    sizes = [_literal(node, 3, constants) for node in nodes if node.op_type == "Resize"]
    pairs = [(size[1], size[2]) if size[3] in (1, 3, 4) else (size[2], size[3]) for size in sizes if len(size) == 4]
    return sorted(pairs)[-1:]


def _grids(proto: ModelProto, nodes: Iterable[NodeProto], constants: dict[str, TensorProto], channels: set[int]) -> Iterator[int]:
    """Sides of feature maps: [.., 80, 80] in a literal shape, 196 or 197 tokens of 14 x 14 patches, 25088 = 512 x 7 x 7."""
    for node in nodes:
        if node.op_type == "Reshape":
            shape = _literal(node, 1, constants)
            yield from (one for one, other in pairwise(shape) if one == other)
            yield from _squares(shape)
        elif node.op_type in ("Add", "Gather", "Where"):
            yield from (side for name in node.input if name in constants for side in _squares(constants[name].dims[-2:-1]))
        elif node.op_type in ("Gemm", "MatMul") and len(dims := _weight(node, constants)) == 2:
            inputs = dims[1 if _number(node, "transB", 0) else 0]
            per_channel = (inputs // each for each in sorted(channels) if each > 0 and inputs % each == 0)
            yield from (math.isqrt(places) for places in per_channel if _is_square(places))
    for output in proto.graph.output:
        dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        yield from (one for one, other in pairwise(dims) if one == other)


def _squares(numbers: Iterable[int]) -> Iterator[int]:
    """Sides of square grids of so many places, one or two of them for tokens of classes; grids of fewer than 7 x 7 are chance."""
    yield from (
        math.isqrt(number - more) for number in numbers for more in (0, 1, 2) if number >= 49 + more and _is_square(number - more)
    )


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _anchored(nodes: Iterable[NodeProto], constants: dict[str, TensorProto]) -> Iterator[int]:
    """Sides s of images with one or three anchors a place, in grids of strides 8, 16 and 32: n = s^2 / 64 (1 + 1/4 + 1/16)."""
    tables = [
        constants[name] for node in nodes if node.op_type in ("Add", "Sub", "Mul") for name in node.input if name in constants
    ]
    for number in dict.fromkeys(dim for table in tables for dim in table.dims if dim >= 21):
        for anchors in (1, 3):
            places = number / anchors * 64 * 16 / 21
            if places.is_integer() and _is_square(int(places)):
                yield math.isqrt(int(places))


def _lengths(nodes: Iterable[NodeProto], constants: dict[str, TensorProto]) -> Iterator[int]:
    for node in nodes:
        stored = [constants[name] for name in node.input if name in constants]
        if node.op_type in ("Add", "Gather", "Slice"):
            yield from (table.dims[-2] for table in stored if len(table.dims) > 1 and table.dims[-2] in ROWS)
        elif node.op_type in ("Gemm", "MatMul"):
            yield from (inputs for inputs in _weight(node, constants) if inputs in ROWS)


def _number(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute, or the first of several."""
    return next((each.ints[0] if each.ints else each.i for each in node.attribute if each.name == name), default)
