"""Chains of elementwise nodes that compute a HardSigmoid, written as that one node: each node is one pass over its tensor.

    p clip(a x + b, low, high) + q = clip(p a x + p b + q, 0, 1) = HardSigmoid(x)   where p and q map low and high to 0 and 1
    p (y clip(a x + b, 0, high)) = y HardSigmoid(x)                                 as exporters write HardSwish, where y is x

ONNX Runtime 1.31 gives NaN for NaN in either form, and the same for infinity. Where the product with y exceeds the range of its
type before it is divided, the chain gives infinity and the HardSigmoid the right number.
"""

import math
from dataclasses import dataclass

import numpy as np

from onnxmerge.execution.shapes import Observations
from onnxmerge.graph.nodes import has_input, is_standard
from onnxmerge.graph.number_nodes import NumberNodes
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import names_taken, unused_name
from onnxmerge.onnxio.model import Model

TYPES = (np.float32, np.float16)
"""What ONNX Runtime's CPU execution provider computes a HardSigmoid of."""
TOLERANCE = 1e-6
"""How far from 0 and 1 the limits may be mapped: float32 rounds a constant such as 1/6 by 3e-8 of it."""
LARGEST_OFFSET = 16.0
"""Of a HardSigmoid: float32 rounds numbers of this size by 1e-6, which its result loses; that of HardSwish is 0.5."""
FIRST_OPSET = 7
"""From which on operands of different shapes are joined as numpy joins them."""


@dataclass(frozen=True, eq=False)
class _Chain:
    """Nodes of which HardSigmoid(source) = clip(alpha source + beta, 0, 1) gives the tensor `gate`.

    product: the node among them that multiplies what is to become the gate by another tensor.
    """

    source: gs.Tensor
    alpha: float
    beta: float
    gate: gs.Tensor
    nodes: list[gs.Node]
    product: gs.Node | None


def write_hard_sigmoids(model: Model, observed: Observations) -> tuple[str, dict[str, str]]:
    """Write the chains of a graph as HardSigmoid, or as HardSigmoid and Mul.

    A chain stays where somebody else reads a tensor inside it, where a limit or a factor is no single constant number, and where
    nothing would be saved. Bodies stay as they are.

    Parameters
    ----------
    model : Model
        Its graph is edited.
    observed : dict of str to Observation
        Every tensor of it in a run.

    Returns
    -------
    str
        "12 chains of Add, Clip, Mul and Div became HardSigmoid and Mul"; empty where there was none.
    dict of str to str
        New tensors, each with an old one of its shape and type.
    """
    finder, taken = _ChainFinder(model, observed), names_taken(model)
    operators, results, count = dict[str, None](), {"HardSigmoid": None}, 0
    new_tensors: dict[str, str] = {}
    for node in reversed(list(model.graph.nodes)):
        chain = finder.chain_through(node) if model.opset >= FIRST_OPSET and node.outputs else None
        if chain is None:
            continue
        count += 1
        operators |= dict.fromkeys(each.op for each in chain.nodes)
        if chain.product is not None:
            results["Mul"] = None
            new_tensors[unused_name(f"{chain.gate.name}_hard_sigmoid", taken)] = chain.gate.name
        _write(model.graph, chain, node.name, next(reversed(new_tensors), ""))
    text = f"{count:,} chain{'s' * (count != 1)} of {_enumerated([*operators])} became {_enumerated([*results])}" if count else ""
    return text, new_tensors


def _enumerated(words: list[str]) -> str:
    """`Add, Clip and Div`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _write(graph: gs.Graph, chain: _Chain, name: str, gate: str) -> None:
    """Put the new nodes in the place of the last node of a chain; gate: what the tensor between them is called."""
    output, product = chain.nodes[-1].outputs[0], chain.product
    position = next(index for index, node in enumerate(graph.nodes) if node is chain.nodes[-1])
    written = output if product is None else gs.Variable(gate, output.dtype)
    factors = [] if product is None else [written if each is chain.gate else each for each in product.inputs]
    for node in chain.nodes:
        node.inputs.clear()
        node.outputs.clear()
    attributes = {"alpha": chain.alpha, "beta": chain.beta}
    graph.nodes.insert(position, gs.Node("HardSigmoid", name, attributes, [chain.source], [written]))
    if product is not None:
        graph.nodes.insert(position + 1, gs.Node("Mul", product.name, {}, factors, [output]))
    gone = set(map(id, chain.nodes))
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]


class _ChainFinder:
    def __init__(self, model: Model, observed: Observations) -> None:
        self.nodes, self.observed = NumberNodes(model), observed

    def chain_through(self, node: gs.Node) -> _Chain | None:
        """The chain whose last limiting node is this one."""
        limited = self._limited(node)
        if limited is None:
            return None
        low, high, data = limited
        nodes = [node]
        while (inner := self.nodes.only_producer(data)) and (limits := self._limited(inner)):
            low, high, data = float(np.clip(limits[0], low, high)), float(np.clip(limits[1], low, high)), limits[2]
            nodes.insert(0, inner)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return None
        scale, shift, tensor, product, gate = 1.0, 0.0, node.outputs[0], None, node.outputs[0]
        while not np.allclose(sorted((scale * low + shift, scale * high + shift)), (0.0, 1.0), rtol=0.0, atol=TOLERANCE):
            reader = self.nodes.only_reader(tensor)
            line = None if reader is None else self.nodes.line(reader)
            if reader is None:
                return None
            if line is not None and line.data is tensor and not (product and line.offset):
                scale, shift = line.factor * scale, line.factor * shift + line.offset
            elif line is None and product is None and is_standard(reader) and reader.op == "Mul":
                product = reader
            else:
                return None
            nodes.append(reader)
            tensor = reader.outputs[0]
            gate = gate if product else tensor
        alpha, beta, source, before = self._widened(scale, shift, data)
        chain = _Chain(source, alpha, beta, gate, [*before, *nodes], product)
        return chain if self._is_worth_it(chain) else None

    def _widened(self, alpha: float, beta: float, data: gs.Tensor) -> tuple[float, float, gs.Tensor, list[gs.Node]]:
        """The same function of what a factor and an offset in front of `data` are applied to, and their nodes."""
        nodes: list[gs.Node] = []
        for _ in ("factor", "offset"):
            node = self.nodes.only_producer(data)
            line = None if node is None else self.nodes.line(node)
            if node is None or line is None or abs(alpha * line.offset + beta) > LARGEST_OFFSET:
                break
            alpha, beta, data = alpha * line.factor, alpha * line.offset + beta, line.data
            nodes.insert(0, node)
        return alpha, beta, data, nodes

    def _is_worth_it(self, chain: _Chain) -> bool:
        """Whether there are fewer nodes, of numbers and types that they can have, and no constant adds an axis."""
        source, last = self.observed.get(chain.source.name), self.observed.get(chain.nodes[-1].outputs[0].name)
        gate = self.observed.get(chain.gate.name)
        product = last if chain.product is None else self.observed.get(chain.product.outputs[0].name)
        if source is None or gate is None or product is None or last is None:
            return False
        alpha = abs(np.float32(chain.alpha))
        return bool(
            len(chain.nodes) > 1 + (chain.product is not None)
            and source.dtype in TYPES
            and (source.shape, product.shape) == (gate.shape, last.shape)
            and np.finfo(np.float32).tiny <= alpha <= np.finfo(np.float32).max
            and abs(chain.beta) <= LARGEST_OFFSET
        )

    def _limited(self, node: gs.Node) -> tuple[float, float, gs.Tensor] | None:
        """The lower and the upper limit that a node puts on a tensor, and that tensor; None for other nodes."""
        if not is_standard(node) or node.op not in ("Relu", "Clip", "Min", "Max"):
            return None
        if node.op == "Relu":
            return 0.0, math.inf, node.inputs[0]
        if node.op == "Clip":
            limits: list[float | None] = [node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)]
            for index in (1, 2):
                if has_input(node, index):
                    limits[index - 1] = self.nodes.number(node.inputs[index])
            low, high = limits
            return None if low is None or high is None else (low, high, node.inputs[0])
        found = self.nodes.operands(node)
        if found is None:
            return None
        return (-math.inf, *found) if node.op == "Min" else (found[0], math.inf, found[1])
