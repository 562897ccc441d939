"""Numbers that a graph multiplies by or adds next to a convolution, put into its weights: each such node is a pass over a tensor.

    c (W x + b) + d = (c W) x + (c b + d)
    c y HardSigmoid(a y) = (c y) HardSigmoid((a / c) (c y))   where a convolution writes y, as c W and c b write c y
    W (x + d) + b = W x + (b + d W 1)                         of a convolution that pads nothing

ONNX Runtime 1.31 does the first by itself with a number for each channel, and nothing with one number for all of them. A factor
in front of a convolution stays: it may be the last of the nodes of a Gelu, which ONNX Runtime computes at once.
"""

import numpy as np

from onnxmerge.execution.shapes import Observations
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.graph_editor import GraphEditor
from onnxmerge.graph.nodes import has_input, is_standard, node_name
from onnxmerge.graph.number_nodes import Line, NumberNodes
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import unused_name
from onnxmerge.onnxio.model import Model


def fold_numbers(model: Model, observed: Observations) -> tuple[str, dict[str, str]]:
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
    dict of str to str
        New tensors, each with an old one of its shape and type.
    """
    folding, operators, count = _Folding(model), dict[str, None](), 0
    for node in list(model.graph.nodes):
        line, operator = folding.nodes.line(node), node.op
        if line is None:
            continue
        before, after = observed.get(line.data.name), observed.get(node.outputs[0].name)
        if before is None or after is None or before.dtype != np.float32 or before.shape != after.shape:
            continue
        if folding.into_producer(node, line) or folding.into_gated(node, line) or folding.into_readers(node, line):
            count += 1
            operators[operator] = None
    model.graph.nodes[:] = [node for node in model.graph.nodes if node.outputs]
    text = f"{count:,} node{'s' * (count != 1)} of {' and '.join(operators)} went into weights of convolutions" if count else ""
    return text, folding.new_tensors


class _Folding:
    """Each method tells whether it has emptied the node."""

    def __init__(self, model: Model) -> None:
        self.model, self.nodes, self.editor = model, NumberNodes(model), GraphEditor(model)
        self.new_tensors: dict[str, str] = {}

    def into_producer(self, node: gs.Node, line: Line) -> bool:
        """Into the convolution that writes what the node reads."""
        producer = self.nodes.only_producer(line.data)
        if producer is None or not self._put([producer], line.factor, line.offset):
            return False
        output = node.outputs[0]
        _empty(node)
        _let_write(producer, output)
        return True

    def into_gated(self, node: gs.Node, line: Line) -> bool:
        """A factor behind y HardSigmoid(y) into the convolution that writes y."""
        product = self.nodes.only_producer(line.data)
        if product is None or line.offset or not (is_standard(product) and product.op == "Mul"):
            return False
        for gated, gate in (product.inputs, product.inputs[::-1]):
            hard_sigmoid = self.nodes.only_producer(gate)
            if hard_sigmoid is None or hard_sigmoid.op != "HardSigmoid" or hard_sigmoid.inputs[0] is not gated:
                continue
            alpha = float(hard_sigmoid.attrs.get("alpha", 0.2)) / line.factor  # 0.2: the default of ONNX
            is_read_elsewhere = len(gated.outputs) > len((hard_sigmoid, product)) or self.nodes.is_kept(gated)
            in_range = np.finfo(np.float32).tiny <= abs(alpha) <= np.finfo(np.float32).max
            if is_read_elsewhere or not in_range or not self._put(gated.inputs, line.factor, 0.0):
                return False
            hard_sigmoid.attrs["alpha"] = alpha
            scaled = gs.Variable(unused_name(f"{gated.name}_scaled", self.editor.taken), gated.dtype)
            self.new_tensors[scaled.name] = gated.name
            for reader in (hard_sigmoid, product):
                reader.inputs = [scaled if each is gated else each for each in reader.inputs]
            output = node.outputs[0]
            _empty(node)
            _let_write(gated.inputs[0], scaled)
            _let_write(product, output)
            return True
        return False

    def into_readers(self, node: gs.Node, line: Line) -> bool:
        """What the node adds to y HardSigmoid(y) into the convolutions that read its sum.

        Elsewhere it stays: a channel that is removed would leave its share of the sum in their biases, where it left nothing.
        """
        output = node.outputs[0]
        readers = list(output.outputs)
        product = self.nodes.only_producer(line.data)
        gates = [factor.inputs[0].op for factor in product.inputs if factor.inputs] if product is not None else []
        if line.factor != 1.0 or self.nodes.is_kept(output) or "HardSigmoid" not in gates:
            return False
        if not all(each.op == "Conv" and each.inputs[0] is output and _pads_nothing(each) for each in readers):
            return False
        if not self._put(readers, line.factor, line.offset, reads=True):
            return False
        _empty(node)
        for each in readers:
            each.inputs[0] = line.data
        return True

    def _put(self, convolutions: list[gs.Node], factor: float, offset: float, reads: bool = False) -> bool:
        """Let convolutions write factor * output + offset, or read input + offset; False where one of them cannot."""
        new = [self._scaled(node, factor, offset, reads) for node in convolutions]
        if not new or any(each is None for each in new):
            return False
        for node, weight_bias in zip(convolutions, new, strict=True):
            weight, bias = weight_bias or (np.zeros(0), np.zeros(0))
            if factor != 1.0:
                self.editor.set_input(node, 1, weight)
            if has_input(node, 2) or bias.any():
                self.editor.set_input(node, 2, bias)
        return True

    def _scaled(self, node: gs.Node, factor: float, offset: float, reads: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Its new weight and bias; None for no convolution, for a weight that is computed or read twice, and beyond float32."""
        if not is_standard(node) or node.op not in ("Conv", "ConvTranspose"):
            return None
        tensor = node.inputs[1]
        weight = self.nodes.stored(tensor) if self.nodes.only_reader(tensor) is node else None
        bias = constant_value(self.model, node.inputs[2]) if has_input(node, 2) else np.zeros(1)
        if weight is None or bias is None:
            return None
        outputs = len(weight) if node.op == "Conv" else weight.shape[1] * int(node.attrs.get("group", 1))
        scaled = factor * weight.astype(np.float64)
        wide = np.broadcast_to(bias.astype(np.float64), (outputs,))
        total = wide + offset * weight.reshape(outputs, -1).sum(1, dtype=np.float64) if reads else factor * wide + offset
        largest = np.finfo(np.float32).max
        if not all(np.abs(each).max(initial=0.0) <= largest for each in (scaled, total)):
            return None
        return scaled.astype(np.float32), total.astype(np.float32)


def _pads_nothing(convolution: gs.Node) -> bool:
    return convolution.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(convolution.attrs.get("pads", ()))


def _empty(node: gs.Node) -> None:
    node.inputs.clear()
    node.outputs.clear()


def _let_write(node: gs.Node, tensor: gs.Tensor) -> None:
    """Let a node write another tensor; a layer without a name is still called by the tensor that it wrote."""
    node.name = node_name(node)
    node.outputs = [tensor]
