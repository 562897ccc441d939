"""How long nodes take on ONNX Runtime's CPU execution provider, predicted from shapes: what an allocation spends for speed.

Convolutions work in blocks of channels (`execution.processor.channel_block`): both sides are filled up to whole blocks, and
four blocks of outputs are computed at once, so that one alone takes longer than its share (`REMAINDERS`). A dense
convolution whose inputs are more than a block and no multiple of 4, and a depthwise one whose channels are no multiple of 4, take
a plain path that is several times slower. Operators that do not work in blocks make the layout change, which costs about what
they cost themselves; what is merged into a convolution costs nothing (`graph.layouts`). The time of a node is the sum of a part
in proportion to (filled) input times output channels, one in proportion to the channels that it writes, and a constant. An
element of a tensor that is larger than a cache takes longer.

The constants are nonnegative least squares of the relative errors over 288 measured models, rounded: sixteen networks, five of
them from public packages, each whole and in eight random sizes, with one input and with eight. What too few of them have has a
value of an earlier fit (`plain_depthwise`) or of one profile (`transposed`), and `depthwise` and `stored` leave room for each
other. On networks that were left out of the fit a ratio of times was 7 % off in the median, 9 % in the mean and up to 24 % on
average over the sizes of one (`benchmarks/node_time.py`, which fits anew); without `REMAINDERS` it was 9, 11 and 28 %. They hold
for one thread of a processor with AVX-512; ratios matter here, not nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from onnxmerge.algorithms.bilinear_cost import with_remainder
from onnxmerge.graph.cost import PAST_KEYS, node_macs, shape_of
from onnxmerge.graph.layers import GATES
from onnxmerge.graph.layouts import ALIGNMENT, Layouts, is_blocked, is_depthwise
from onnxmerge.graph.nodes import is_standard, operator_key
from onnxmerge.graph.tensor_facts import Shapes
from onnxmerge.onnxio import surgeon as gs

Shape = tuple[int, ...]


class Constants(NamedTuple):
    """Nanoseconds that an execution provider takes.

    Attributes
    ----------
    node : float
        For a node that is not merged into another one.
    element, large_element : float
        For an element that an operator without multiply-accumulates, or a change of layout, writes into a tensor that a cache
        holds and into a larger one.
    stored : float
        For an element that a convolution in blocks writes, beside its multiply-accumulates.
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
    large_element: float
    stored: float
    dense: float
    pointwise: float
    first_layer: float
    plain: float
    plain_patch: float
    depthwise: float
    plain_depthwise: float
    transposed: float
    matrix: float


CPU = Constants(1280.0, 0.152, 0.393, 0.15, 0.0163, 0.0169, 0.0203, 0.024, 0.14, 0.05, 0.36, 0.04, 0.0222)
LARGE = 250_000
"""Elements beyond which a tensor does not stay in a core's own cache: 1 MB, half of that where the constants were measured."""
REMAINDERS = (0.0, 0.6, 0.16, 0.06)
"""Convolutions compute four blocks of outputs at once: what one, two or three blocks cost more than their share, in blocks. Of a
convolution with 16, 32, 48 and 64 outputs a multiply-accumulate took 1.6, 1.08, 1.03 and 1 times as long, whatever its kernel."""
STEPWISE = {"RNN": 2.4}
"""Recurrent operators whose multiply-accumulates take longer than those of matrices: of twelve sizes 1.3 to 3.4 times, those of
LSTM and GRU 0.6 to 1.4 times."""
NOT_FOLDED = frozenset({"DequantizeLinear", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})
"""Operators that run in every call, of constants too."""
FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Constant", "Dropout", "Identity"})
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


def node_time(
    node: gs.Node, shapes: Shapes, layouts: Layouts, block: int, repeats: float = 1.0, cost: Constants = CPU
) -> NodeTime:
    """The predicted time of one node.

    Parameters
    ----------
    node : Node
        The node.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.
    layouts : Layouts
        Of the graph.
    block : int
        Channels that convolutions compute at once.
    repeats : float
        The batch that is timed, as a multiple of the one that the shapes are of.
    cost : Constants
        What the parts of the work take.
    """
    written = shapes.get(node.outputs[0].name) if node.outputs else None
    if written is None or id(node) in layouts.merged or (is_standard(node) and node.op in FREE):
        return NodeTime(0.0, 0.0, 0.0)
    rule = _RULES.get(node.op) if is_standard(node) else None
    elements = repeats * math.prod(written)
    if rule is not None and (weight := shape_of(node.inputs[1], shapes)):
        product, patches = rule(node, shape_of(node.inputs[0], shapes), weight, written, block, cost)
        stored = 0.0
        if is_blocked(node, shapes, block):
            stored = cost.stored * elements / weight[0] * filled(weight[0], block)
        return NodeTime(repeats * product, repeats * patches + stored, cost.node)
    product = repeats * cost.matrix * node_macs(node, shapes) if operator_key(node) in PAST_KEYS else 0.0
    return NodeTime(product, _written(elements, cost), cost.node)


def runs_once(nodes: Iterable[gs.Node]) -> set[int]:
    """`id` of the nodes that read constants alone, of nodes in the order in which they run. Bodies may read what is computed.

    ONNX Runtime computes them when it opens a model. Exporters of recurrent layers leave their weights to be put together so,
    which was taken for two thirds of the time of a call.
    """
    known, found = set[str](), set[int]()
    for node in nodes:
        read = [tensor for tensor in node.inputs if tensor.name]
        are_constant = all(isinstance(each, gs.Constant) or each.name in known for each in read)
        is_folded = node.op not in NOT_FOLDED and not any(True for _ in node.subgraphs())
        if node.op == "Constant" or (read and are_constant and is_folded):
            known.update(tensor.name for tensor in node.outputs)
            found.add(id(node))
    return found


def change_time(tensor: gs.Tensor, shapes: Shapes, repeats: float = 1.0, cost: Constants = CPU) -> float:
    """Nanoseconds that changing the layout of a tensor takes."""
    return _written(repeats * math.prod(shapes[tensor.name]), cost)


def join_time(shape: Shape, repeats: float = 1.0, cost: Constants = CPU) -> float:
    """Nanoseconds that joining a tensor with a constant takes, which was merged into a convolution before."""
    return cost.node + repeats * math.prod(shape) * (cost.stored + cost.depthwise)


def _written(elements: float, cost: Constants) -> float:
    return elements * (cost.element if elements <= LARGE else cost.large_element)


def _conv(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> tuple[float, float]:
    outputs, inputs, kernel = weight[0], weight[1], math.prod(weight[2:])
    positions, groups = math.prod(written) // max(1, outputs), node.attrs.get("group", 1)
    if is_depthwise(node, weight):
        nanoseconds = cost.plain_depthwise * outputs if outputs % ALIGNMENT else cost.depthwise * filled(outputs, block)
        return 0.0, nanoseconds * positions * kernel
    if groups > 1 or (inputs >= block and inputs % ALIGNMENT):
        patch = kernel if kernel > 1 else 0
        product = (cost.plain * outputs * kernel + cost.plain_patch * groups * patch) * inputs
        return product * positions, cost.plain_patch * outputs * positions
    each = cost.first_layer if inputs < block else cost.dense if kernel > 1 else cost.pointwise
    channels = float(with_remainder(filled(outputs, block), block, REMAINDERS))
    channels *= inputs if inputs < block else filled(inputs, block)
    return each * channels * positions * kernel, 0.0


def _conv_transpose(
    node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants
) -> tuple[float, float]:
    return cost.transposed * math.prod(read) * math.prod(weight[1:]), 0.0


def _matrix(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> tuple[float, float]:
    contracted = read[0 if node.op == "Gemm" and node.attrs.get("transA", 0) else -1] if read else 1
    outputs = written[-1] if written else 1
    rows = math.prod(written) // max(1, outputs)
    return cost.matrix * rows * contracted * filled(outputs, block), 0.0


def _recurrent(node: gs.Node, read: Shape, weight: Shape, written: Shape, block: int, cost: Constants) -> tuple[float, float]:
    inputs_and_units = weight[2] + weight[1] // GATES[node.op]
    return STEPWISE.get(node.op, 1.0) * cost.matrix * math.prod(read[:2]) * weight[0] * weight[1] * inputs_and_units, 0.0


_Rule = Callable[[gs.Node, Shape, Shape, Shape, int, Constants], tuple[float, float]]
_RULES: dict[str, _Rule] = {
    **{"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _matrix, "MatMul": _matrix},
    **dict.fromkeys(GATES, _recurrent),
}
