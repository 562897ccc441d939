"""Channel groups: which channels of a model live and die together, who writes them and who reads them.

Every output channel of every weighted node gets an id, and one walk over the graph follows the ids (operators.py holds the
rules). What is united, written by one node or bound by a grouped convolution forms a group; a *unit* of a group is one set
of united ids: it is kept or removed as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_ids import Flow, collapse, varying
from onnxmerge.graph.grouping import grouped
from onnxmerge.graph.layers import label
from onnxmerge.graph.operators import operator_of
from onnxmerge.graph.shared_weights import unite_shared_weights
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model

# Operators with weights of their own: each that stays as it is has a reason.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}) | {
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
}

Shapes = Mapping[str, tuple[int, ...]]


def analyse(model: Model, shapes: Shapes, other_shapes: Shapes | None, values: Mapping[str, np.ndarray]) -> Channels:
    """Walk the graph once.

    shapes: concrete shapes of all tensors in one run; other_shapes: the same with other dynamic sizes, None where nothing
    is dynamic; values: the small integer tensors of the first run, since graphs compute shapes.
    """
    flow = Flow(model, dict(shapes), None if other_shapes is None else dict(other_shapes), dict(values))
    for node in model.graph.nodes:
        _visit(flow, node)
    for tensor in model.graph.outputs:
        flow.pin(flow.ids(tensor), refusal(tensor.name, Reason.GRAPH_OUTPUT, output=tensor.name))
    unite_shared_weights(flow)
    _tie(flow)
    return grouped(flow)


def _visit(flow: Flow, node: gs.Node) -> None:
    """Apply the operator's rule; a reason in place of ids pins all that enters."""
    for body in node.subgraphs():
        for tensor in _captured(body):
            flow.pin(flow.ids(tensor), refusal(label(node), Reason.READ_IN_BODY, operator=node.op))
        inside = [inner for inner in _nodes(body) if inner.op in LAYERS]
        flow.refusals += [refusal(label(inner), Reason.INSIDE_BODY, label(node), operator=node.op) for inner in inside]
    if all(flow.constant(output) is not None for output in node.outputs if output.name):
        return
    unseen = [t.name for t in (*node.inputs, *node.outputs) if t.name and flow.shape(t) is None]
    unknown = refusal(label(node), Reason.SHAPE_UNKNOWN, tensor=unseen[0]) if unseen else None
    outcome = unknown or operator_of(node).rule(flow, node)
    if isinstance(outcome, Refusal):
        flow.refusals.append(outcome)
        for tensor in node.inputs:
            flow.pin(flow.ids(tensor), outcome)
        return
    for output, ids in zip(node.outputs, outcome, strict=True):
        if output.name and varying(ids):
            flow.tensors[output.name] = ids
        elif output.name:
            flow.pin(ids, refusal(label(node), Reason.READ_ALONE))


def _captured(graph: gs.Graph) -> list[gs.Tensor]:
    """Tensors that a subgraph reads from outside, at any depth."""
    own = {tensor.name for node in graph.nodes for tensor in node.outputs} | {tensor.name for tensor in graph.inputs}
    read = [tensor for node in graph.nodes for tensor in node.inputs] + list(graph.outputs)
    for node in graph.nodes:
        for value in node.attrs.values():
            read += _captured(value) if isinstance(value, gs.Graph) else []
    return [tensor for tensor in read if tensor.name and tensor.name not in own]


def _nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of a body, at any depth."""
    return [*graph.nodes, *(inner for node in graph.nodes for body in node.subgraphs() for inner in _nodes(body))]


def _tie(flow: Flow) -> None:
    """Make every tensor's ids vary along one axis only.

    A channel axis that is split (channel shuffle, pixel shuffle) stays rectangular only if every block loses the same
    positions, so those ids are united across the shorter axes.
    """
    changed = True
    while changed:
        changed = False
        for name, raw in flow.tensors.items():
            ids = collapse(flow.roots(raw))
            axes = varying(ids)
            if len(axes) > 1:
                longest = max(axes, key=lambda axis: (ids.shape[axis], axis))
                flow.tensors[name] = flow.flatten_to(ids, [longest])
                changed = True
