"""How long nodes take on ONNX Runtime's CPU execution provider, predicted from shapes: what an allocation spends for speed.

Convolutions work in blocks of channels (`execution.processor.channel_block`): both sides are filled up to whole blocks. A dense
convolution whose inputs are more than a block and no multiple of 4, and a depthwise one whose channels are no multiple of 4, take
a plain path that is several times slower (`onnxruntime/core/optimizer/nchwc_transformer.cc`). The time of a node is the sum of a
part in proportion to (filled) input times output channels, one in proportion to the channels that it writes, and a constant.

The constants are nonnegative least squares of the relative errors over 144 measured models, sixteen networks, each whole and in
eight random sizes, rounded. On networks that were left out of the fit a ratio of times was then 8 % off in the median, and up to
16 % on average over the sizes of one; on a busy machine `benchmarks/node_time.py`, which fits anew, shows more. They hold for one
thread of a processor with AVX-512; ratios matter here, not nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from onnxmerge.graph.cost import shape_of
from onnxmerge.graph.nodes import is_standard
from onnxmerge.graph.tensor_facts import Shapes
from onnxmerge.onnxio import surgeon as gs

Shape = tuple[int, ...]


class Constants(NamedTuple):
    """Nanoseconds that an execution provider takes.

    Attributes
    ----------
    node : float
        For a node that is not fused into another one.
    element : float
        For an element that an operator without multiply-accumulates writes.
    dense, pointwise, first_layer : float
        For a multiply-accumulate in blocks: with a kernel of several positions, of one, and with fewer inputs than a block.
    plain, plain_patch : float
        For a multiply-accumulate outside of blocks, and for an element of the patches that are copied for it.
    depthwise, plain_depthwise : float
        For a multiply-accumulate of a depthwise convolution, in blocks and outside.
    transposed, matrix : float
        For a multiply-accumulate of ConvTranspose, and of Gemm and MatMul.
    """

    node: float
    element: float
    dense: float
    pointwise: float
    first_layer: float
    plain: float
    plain_patch: float
    depthwise: float
    plain_depthwise: float
    transposed: float
    matrix: float


CPU = Constants(1160.0, 0.072, 0.0237, 0.0065, 0.0303, 0.0154, 0.60, 0.128, 0.361, 0.57, 0.045)
ALIGNMENT = 4
"""Channels of blocked convolutions must be a multiple of this number, else ONNX Runtime does not block them."""
FUSED = frozenset({"BatchNormalization", "Relu", "Clip", "Add", "Identity"})
"""Operators that ONNX Runtime mostly fuses into the convolution in front of them: they cost no node of their own."""
FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Constant", "Dropout"})
"""Operators that move no numbers."""


class NodeTime(NamedTuple):
    """Nanoseconds of one node.

    Attributes
    ----------
    product : float
        The part in proportion to the channels read times the channels written, filled up to blocks.
    written : float
        The part in proportion to the channels written.
    constant : float
        The rest.
    """

    product: float
    written: float
    constant: float

    @property
    def total(self) -> float:
        """Nanoseconds in all."""
        return self.product + self.written + self.constant


def filled(count: Any, block: int) -> Any:
    """A number of channels or an array of such, filled up to whole blocks.

    Examples
    --------
    >>> [filled(count, 16) for count in (1, 16, 17)]
    [16, 16, 32]
    """
    return -(-count // block) * block


def node_time(node: gs.Node, shapes: Shapes, block: int, cost: Constants = CPU) -> NodeTime:
    """The predicted time of one node.

    Parameters
    ----------
    node : Node
        The node.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.
    block : int
        Channels that convolutions compute at once.
    cost : Constants
        What the parts of the work take.
    """
    written = shapes.get(node.outputs[0].name) if node.outputs else None
    if written is None or (is_standard(node) and node.op in FREE):
        return NodeTime(0.0, 0.0, 0.0)
    rule = _RULES.get(node.op) if is_standard(node) else None
    if rule is not None and (weight := shape_of(node.inputs[1], shapes)):
        return rule(node, shape_of(node.inputs[0], shapes), weight, written, block, cost)
    return NodeTime(0.0, cost.element * math.prod(written), 0.0 if node.op in FUSED else cost.node)


def _conv(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> NodeTime:
    outputs, inputs, kernel = weight[0], weight[1], math.prod(weight[2:])
    positions, groups = math.prod(written) // max(1, outputs), node.attrs.get("group", 1)
    if groups == outputs and inputs == 1:
        nanoseconds = cost.plain_depthwise * outputs if outputs % ALIGNMENT else cost.depthwise * filled(outputs, block)
        return NodeTime(0.0, nanoseconds * positions * kernel, cost.node)
    if groups > 1 or (inputs >= block and inputs % ALIGNMENT):
        patch = kernel if kernel > 1 else 0
        product = (cost.plain * outputs * kernel + cost.plain_patch * groups * patch) * inputs
        return NodeTime(product * positions, cost.plain_patch * outputs * positions, cost.node)
    each = cost.first_layer if inputs < block else cost.dense if kernel > 1 else cost.pointwise
    channels = filled(outputs, block) * (inputs if inputs < block else filled(inputs, block))
    return NodeTime(each * channels * positions * kernel, 0.0, cost.node)


def _conv_transpose(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> NodeTime:
    return NodeTime(cost.transposed * math.prod(read) * math.prod(weight[1:]), 0.0, cost.node)


def _matrix(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> NodeTime:
    contracted = read[0 if node.op == "Gemm" and node.attrs.get("transA", 0) else -1] if read else 1
    outputs = written[-1] if written else 1
    rows = math.prod(written) // max(1, outputs)
    return NodeTime(cost.matrix * rows * contracted * filled(outputs, block), 0.0, cost.node)


_Rule = Callable[[gs.Node, Shape, Shape, Shape, int, Constants], NodeTime]
_RULES: dict[str, _Rule] = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _matrix, "MatMul": _matrix}
