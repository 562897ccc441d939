"""Initial states of recurrent layers that are zeros, left out: without one a layer starts from zeros.

PyTorch exports layers of an open batch with states of ConstantOfShape, which all layers of a stack cut their own from. A layer
that reads such a state would have its units tied to channels of the others, or to an axis that cannot shrink.
"""

import numpy as np

from onnxmerge.graph.nodes import has_input, is_standard
from onnxmerge.graph.number_nodes import NumberNodes
from onnxmerge.graph.operators.recurrent import CELL, STATE
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model

RECURRENT = ("LSTM", "GRU", "RNN")
MOVES = (
    "Cast",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
"""Operators whose output holds nothing but values of their first input."""


def drop_zero_states(model: Model) -> str:
    """Take initial states that are zeros whatever the inputs are from the recurrent layers of a graph.

    Parameters
    ----------
    model : Model
        Its graph is edited.

    Returns
    -------
    str
        "4 initial states of zeros went, as layers start from zeros"; empty where there was none.
    """
    nodes, count = NumberNodes(model), 0
    for node in model.graph.nodes:
        if not (is_standard(node) and node.op in RECURRENT):
            continue
        for index in (STATE, CELL):
            if has_input(node, index) and _is_zero(nodes, node.inputs[index]):
                node.inputs[index] = gs.Variable.empty()
                count += 1
        while node.inputs and not node.inputs[-1].name:
            node.inputs.pop()
    return f"{count:,} initial state{'s' * (count != 1)} of zeros went, as layers start from zeros" if count else ""


def _is_zero(nodes: NumberNodes, tensor: gs.Tensor) -> bool:
    """Whether a tensor holds zeros in every run."""
    value = nodes.stored(tensor)
    if value is not None or not tensor.inputs:
        return value is not None and not np.any(value)
    (node,) = tensor.inputs
    if not is_standard(node):
        return False
    if node.op == "ConstantOfShape":
        fill = node.attrs.get("value")
        return fill is None or not np.any(fill.values)
    return (node.op in MOVES and _is_zero(nodes, node.inputs[0])) or (
        node.op == "Concat" and all(_is_zero(nodes, each) for each in node.inputs)
    )
