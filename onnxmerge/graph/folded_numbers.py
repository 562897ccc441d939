"""Numbers that a graph multiplies by or adds behind a convolution, put into its weights: each such node is a pass over a tensor.

    c (W x + b) + d = (c W) x + (c b + d)

ONNX Runtime 1.31 does this by itself with a number for each channel, and not with one number for all of them. What stands behind
an activation stays there: in the convolution that reads it, a removed channel would leave its share of the sum in the bias.
"""

import numpy as np

from onnxmerge.execution.shapes import Observations
from onnxmerge.graph.graph_editor import GraphEditor
from onnxmerge.graph.nodes import has_input, is_standard, node_name
from onnxmerge.graph.number_nodes import Line, NumberNodes
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model


def fold_numbers(model: Model, observed: Observations) -> str:
    """Put the numbers of a graph into the weights of its convolutions in float32; float16 would be rounded once more.

    Parameters
    ----------
    model : Model
        Its graph is edited. Layers keep the names that they go by.
    observed : dict of str to Observation
        Every tensor of it in a run.

    Returns
    -------
    str
        "57 nodes of Mul and Add went into weights of convolutions"; empty where there was none.
    """
    nodes, editor, folded = NumberNodes(model), GraphEditor(model), list[str]()
    names = {node.name for node in model.graph.nodes}
    for node in list(model.graph.nodes):
        line, operator = nodes.line(node), node.op
        convolution = None if line is None else nodes.only_producer(line.data)
        if line is None or convolution is None:
            continue
        before, after = observed.get(line.data.name), observed.get(node.outputs[0].name)
        if before is None or after is None or before.dtype != np.float32 or before.shape != after.shape:
            continue
        found = _scaled(model, nodes, convolution, line)
        if found is not None:
            weight, bias = found
            if line.factor != 1.0:
                editor.set_input(convolution, 1, weight)
            if has_input(convolution, 2) or bias.any():
                editor.set_input(convolution, 2, bias)
            _let_write(convolution, node, names)
            folded.append(operator)
    model.graph.nodes[:] = [node for node in model.graph.nodes if node.outputs]
    count = f"{len(folded):,} node{'s' * (len(folded) != 1)}"
    return f"{count} of {' and '.join(dict.fromkeys(folded))} went into weights of convolutions" if folded else ""


def _scaled(model: Model, nodes: NumberNodes, node: gs.Node, line: Line) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and bias with the numbers in them; None for no convolution, a weight computed or read twice, or beyond float32."""
    if not is_standard(node) or node.op not in ("Conv", "ConvTranspose"):
        return None
    weight = nodes.stored(node.inputs[1]) if nodes.only_reader(node.inputs[1]) is node else None
    bias = nodes.constant(node.inputs[2]) if has_input(node, 2) else np.zeros(1)
    if weight is None or bias is None:
        return None
    outputs = len(weight) if node.op == "Conv" else weight.shape[1] * int(node.attrs.get("group", 1))
    total = line.factor * np.broadcast_to(bias.astype(np.float64), (outputs,)) + line.offset
    new = line.factor * weight.astype(np.float64), total
    if not all(np.abs(each).max(initial=0.0) <= np.finfo(np.float32).max for each in new):
        return None
    return new[0].astype(np.float32), total.astype(np.float32)


def _let_write(convolution: gs.Node, node: gs.Node, names: set[str]) -> None:
    """Let a convolution write what a node behind it wrote; without a name it is still called by the tensor that it wrote.

    names: of the nodes of the graph; one that another node has is not taken.
    """
    if convolution.name or node_name(convolution) not in names:
        convolution.name = node_name(convolution)
    convolution.outputs = [node.outputs[0]]
    node.inputs.clear()
    node.outputs.clear()
