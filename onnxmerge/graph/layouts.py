"""Which tensors ONNX Runtime's CPU execution provider keeps in blocks of channels, and which nodes it merges into a convolution.

The rules are those of `onnxruntime/core/optimizer/nchwc_transformer.cc` and of its convolution fusions, to what predicting a time
needs: a convolution computes in blocks of channels, some operators go on in blocks, and every other reader of such a tensor makes
ONNX Runtime change the layout first, as does a blocked convolution that reads plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.graph.cost import shape_of
from onnxmerge.graph.nodes import is_standard
from onnxmerge.graph.tensor_facts import Shapes
from onnxmerge.onnxio import surgeon as gs

ALIGNMENT = 4
"""Channels of blocked convolutions must be a multiple of this number, else ONNX Runtime does not block them."""
GO_ON_IN_BLOCKS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Relu", "Sigmoid", "Tanh", "BatchNormalization", "Resize"}
)
"""Operators that take a tensor in blocks and give one."""
JOINS_IN_BLOCKS = frozenset({"Add", "Sum", "Mul"})
"""Operators that join tensors in blocks of equal shapes."""
MERGED = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
"""Operators that ONNX Runtime merges into the convolution in front of them, where nothing else reads its output."""
KEEP_VALUES = frozenset({"Identity", "Dropout"})


@dataclass(frozen=True)
class Layouts:
    """How a graph is laid out.

    Attributes
    ----------
    merged : frozenset of int
        `id` of the nodes that cost nothing of their own.
    changes : tuple of Tensor
        Those whose layout is changed, each as often as it is.
    """

    merged: frozenset[int]
    changes: tuple[gs.Tensor, ...]


def is_depthwise(node: gs.Node, weight: Sequence[int]) -> bool:
    """Whether each output channel of a convolution with this shape of weights reads one input channel of its own."""
    return bool(node.attrs.get("group", 1) == weight[0] and weight[1] == 1)


def is_blocked(node: gs.Node, shapes: Shapes, block: int) -> bool:
    """Whether a convolution computes in blocks: aligned depthwise ones, and dense ones whose inputs are few or aligned."""
    weight = shape_of(node.inputs[1], shapes) if is_standard(node) and node.op == "Conv" else None
    if not weight or len(weight) != len(("outputs", "inputs", "height", "width")):
        return False
    if is_depthwise(node, weight):
        return weight[0] % ALIGNMENT == 0
    return node.attrs.get("group", 1) == 1 and (weight[1] < block or weight[1] % ALIGNMENT == 0)


def layouts(nodes: Sequence[gs.Node], shapes: Shapes, block: int) -> Layouts:
    """The layouts of a graph's tensors.

    Parameters
    ----------
    nodes : Sequence[Node]
        In order of execution.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.
    block : int
        Channels that convolutions compute at once.

    Returns
    -------
    Layouts
    """
    blocked, ends, merged = set[str](), set[str](), set[int]()
    to_blocks, to_plain = dict[str, gs.Tensor](), dict[str, gs.Tensor]()
    for node in nodes:
        if not node.outputs:
            continue
        output, convolution = node.outputs[0].name, is_blocked(node, shapes, block)
        computed = [tensor for tensor in node.inputs if tensor.name in shapes and not isinstance(tensor, gs.Constant)]
        end = [tensor for tensor in computed if tensor.name in ends and len(tensor.outputs) == 1]
        if convolution:
            if node.inputs[0].name not in blocked and shape_of(node.inputs[1], shapes)[1] >= block:
                to_blocks[node.inputs[0].name] = node.inputs[0]
        elif end and is_standard(node) and (node.op in MERGED or _is_join(node, computed, blocked, shapes)):
            merged.add(id(node))
        elif not (is_standard(node) and _goes_on(node, computed, blocked, shapes)):
            to_plain.update({tensor.name: tensor for tensor in computed if tensor.name in blocked})
            continue
        blocked.add(output)
        if convolution or id(node) in merged:
            ends.add(output)
    return Layouts(frozenset(merged), (*to_blocks.values(), *to_plain.values()))


def _goes_on(node: gs.Node, computed: Sequence[gs.Tensor], blocked: set[str], shapes: Shapes) -> bool:
    if node.op in KEEP_VALUES or node.op in GO_ON_IN_BLOCKS:
        return bool(computed) and computed[0].name in blocked
    if node.op == "Concat":
        return all(tensor.name in blocked for tensor in node.inputs)
    return _is_join(node, computed, blocked, shapes)


def _is_join(node: gs.Node, computed: Sequence[gs.Tensor], blocked: set[str], shapes: Shapes) -> bool:
    equal = len({shapes[tensor.name] for tensor in computed}) == 1
    return node.op in JOINS_IN_BLOCKS and len(computed) > 1 and equal and all(tensor.name in blocked for tensor in computed)
