"""Which channels of a model can be removed, and which only together.

Every output channel of every layer gets an id, and one pass over the nodes follows the ids through the operators
(`operators/table.py`). Ids that meet in a join, in a shared weight or in a channel axis that is split are united; what the graph
outputs, or what an operator mixes, is pinned.
"""

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_grouping import form_groups
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_ids import collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import node_name, node_refusal
from onnxmerge.graph.operators.table import operator_of
from onnxmerge.graph.operators.unsupported import has_quantised_weight, not_followed, quantised
from onnxmerge.graph.shared_weights import SharedWeights
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs

# Operators with weights of their own: each that stays as it is has a reason.
_LAYER_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)


def analyse_channels(facts: TensorFacts) -> Channels:
    """Find the channel groups of a model, which stays as it is.

    Parameters
    ----------
    facts : TensorFacts
        The model, with what was seen when it was run.

    Returns
    -------
    Channels
        The groups of channels that can shrink, and why the other layers stay as they are.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     mlp (float[1, 2] x) => (float[1, 2] y) <float[2, 3] v = {1, 2, 3, 4, 5, 6}, float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    ...     { hidden = Gemm(x, v)  active = Relu(hidden)  y = Gemm(active, w) }'''))
    >>> channels = analyse_channels(TensorFacts(model, {"x": (1, 2), "hidden": (1, 3), "active": (1, 3), "y": (1, 2)}))
    >>> [(group.name, group.size) for group in channels.groups]
    [('hidden', 3)]
    >>> [(refusal.where, refusal.text) for refusal in channels.refusals]
    [('y', 'written to the graph output y')]
    """
    propagation, expanded = ChannelPropagation(facts), -1
    while len(propagation.expanded) > expanded:  # a join may find channels that an Expand before it has to start
        expanded = len(propagation.expanded)
        propagation = ChannelPropagation(facts, expanded=propagation.expanded)
        for node in facts.model.graph.nodes:
            _visit(propagation, node)
    for tensor in facts.model.graph.outputs:
        propagation.pin(propagation.ids(tensor), refusal(tensor.name, Reason.GRAPH_OUTPUT, output=tensor.name))
    shared_weights = SharedWeights(propagation)
    shared_weights.unite_channels()
    _keep_rectangular(propagation)
    _pin_what_size_moves(propagation)
    return form_groups(propagation, shared_weights.layer_keys)


def _visit(propagation: ChannelPropagation, node: gs.Node) -> None:
    """Apply the operator's rule; where it refuses, all that enters the node is pinned."""
    for body in node.subgraphs(recursive=True):
        _visit_body(propagation, node, body)
    if all(propagation.constant(output) is not None for output in node.outputs if output.name):
        return
    rule = operator_of(node).propagate
    result = (None if rule is not_followed else _missing_shape(propagation, node)) or rule(propagation, node)
    if isinstance(result, Refusal):
        result = quantised(propagation, node) if has_quantised_weight(propagation, node) else result
        propagation.refusals.append(result)
        for tensor in node.inputs:
            propagation.pin(propagation.ids(tensor), result)
        return
    for output in node.outputs[len(result) :]:
        if propagation.facts.is_read(output):
            why = node_refusal(node, Reason.OUTPUT_READ, tensor=output.name)
            for tensor in node.inputs:
                propagation.pin(propagation.ids(tensor), why)
    for output, ids in zip(node.outputs, result, strict=False):
        if output.name and varying_axes(ids):
            propagation.tensor_ids[output.name] = ids
        elif output.name and ids.any():
            entering = propagation.united.representatives(
                np.concatenate([propagation.ids(each).reshape(-1) for each in node.inputs])
            )
            is_all = len(np.unique(entering[entering > 0])) == 1
            propagation.pin(ids, refusal(node_name(node), Reason.ALL_AT_ONCE if is_all else Reason.READ_ALONE))


def _missing_shape(propagation: ChannelPropagation, node: gs.Node) -> Refusal | None:
    for tensor in (*node.inputs, *node.outputs):
        if tensor.name and propagation.shape(tensor) is None:
            return refusal(node_name(node), Reason.SHAPE_UNKNOWN, tensor=tensor.name)
    return None


def _visit_body(propagation: ChannelPropagation, node: gs.Node, body: gs.Graph) -> None:
    """What a body of a node (If, Loop, Scan) reads is pinned, and the layers inside stay as they are."""
    for tensor in [*(tensor for inner in body.nodes for tensor in inner.inputs), *body.outputs]:
        if tensor.name in propagation.tensor_ids:
            why = refusal(node_name(node), Reason.READ_IN_BODY, operator=node.op)
            propagation.pin(propagation.tensor_ids[tensor.name], why)
    for inner in body.nodes:
        if inner.op in _LAYER_OPERATORS:
            why = refusal(node_name(inner), Reason.INSIDE_BODY, node_name(node), operator=node.op)
            propagation.refusals.append(why)


def _keep_rectangular(propagation: ChannelPropagation) -> None:
    """Unite ids until those of every tensor vary along one axis only.

    A channel axis that is split (channel shuffle, pixel shuffle) stays rectangular only if every block loses the same
    positions, so those ids are united across the shorter axes.
    """
    changed = True
    while changed:
        changed = False
        for name, ids in propagation.tensor_ids.items():
            ids = collapse(propagation.united.representatives(ids))
            axes = varying_axes(ids)
            if len(axes) > 1:
                longest = max(axes, key=lambda axis: (ids.shape[axis], axis))
                propagation.tensor_ids[name] = propagation.unite_except(ids, [longest])
                changed = True


def _pin_what_size_moves(propagation: ChannelPropagation) -> None:
    """Pin the channels that a Reshape or Flatten put elsewhere in the run with other sizes of the dynamic axes."""
    others = propagation.facts.other_shapes or {}
    for node in propagation.facts.model.graph.nodes:
        tensors = (*node.inputs[:1], *node.outputs[:1])
        shapes = [others[tensor.name] for tensor in tensors if tensor.name in others]
        if node.op not in ("Reshape", "Flatten") or node.outputs[0].name not in propagation.tensor_ids or len(shapes) < 2:
            continue
        before, after = (propagation.united.representatives(propagation.ids(tensor)) for tensor in tensors)
        try:
            moved = np.broadcast_to(before, shapes[0]).reshape(shapes[1])
        except ValueError:  # the axis of the channels has another extent
            moved = np.zeros(())
        if not np.array_equal(collapse(moved), collapse(after)):
            why = node_refusal(node, Reason.MOVED_BY_SIZE)
            propagation.pin(before, why)
            propagation.pin(after, why)
