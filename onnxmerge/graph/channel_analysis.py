"""Which channels of a model can be removed, and which only together.

Every output channel of every layer gets an id, and one pass over the nodes follows the ids through the operators
(`operators/table.py`). Ids that meet in a join, in a shared weight or in a channel axis that is split are united; what the graph
outputs, or what an operator mixes, is pinned.
"""

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.branches import with_branches
from onnxmerge.graph.channel_grouping import form_groups
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_ids import Ids, channel_axis_and_rows, collapse, varying_axes
from onnxmerge.graph.channel_propagation import ChannelPropagation, EqualGroups
from onnxmerge.graph.nodes import node_key, node_name, node_refusal
from onnxmerge.graph.operators.reductions_softmax import normalised
from onnxmerge.graph.operators.table import operator_of
from onnxmerge.graph.operators.unsupported import has_quantised_weight, not_followed, quantised
from onnxmerge.graph.shared_weights import SharedWeights
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.bodies import OUTPUT_MARK, draws_numbers, loop_of

# Operators with weights of their own: each that stays as it is has a reason.
_LAYER_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)

# Operators that pick or add positions of an axis by numbers that are the same for every row.
_CUTTING = frozenset({"Slice", "Gather", "Pad"})


def analyse_channels(facts: TensorFacts, whole_heads: bool = False, means: frozenset[str] = frozenset()) -> Channels:
    """Find the channel groups of a model, which stays as it is.

    Parameters
    ----------
    facts : TensorFacts
        The model, with what was seen when it was run.
    whole_heads : bool
        Whether what goes of an attention is heads, each with all of its channels, and not channels of every head.
    means : frozenset of str
        `ChannelPropagation.means`: of normalisations that let channels pass.

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
    propagation, found = _visited(ChannelPropagation(facts, whole_heads=whole_heads, means=means)), -1
    if heads := propagation.layers_of_heads():
        propagation = _visited(ChannelPropagation(facts, whole_heads=True, heads_of_layers=heads, means=means))
    while len(propagation.expanded) + len(propagation.tables) > found:  # a join may find channels that start before it
        found = len(propagation.expanded) + len(propagation.tables)
        if found:
            known = propagation.expanded, propagation.tables
            propagation = ChannelPropagation(facts, *known, whole_heads=whole_heads, heads_of_layers=heads, means=means)
            propagation = _visited(propagation)
    for tensor in facts.model.graph.outputs:
        propagation.pin(propagation.ids(tensor), refusal(tensor.name, Reason.GRAPH_OUTPUT, output=tensor.name))
    shared_weights = SharedWeights(propagation)
    shared_weights.unite_channels()
    _keep_rectangular(propagation)
    _note_rows(propagation)
    _pin_what_size_moves(propagation)
    return with_branches(form_groups(propagation, shared_weights.layer_keys))


def _visited(propagation: ChannelPropagation) -> ChannelPropagation:
    """The same, once every node of the graph was visited."""
    for node in propagation.facts.model.graph.nodes:
        _visit(propagation, node)
    return propagation


def _visit(propagation: ChannelPropagation, node: gs.Node) -> None:
    """Apply the operator's rule; where it refuses, all that enters the node is pinned."""
    _visit_bodies(propagation, node)
    if all(propagation.constant(output) is not None for output in node.outputs if output.name):
        return
    rule = normalised if node_key(node) in propagation.means else operator_of(node).propagate
    result = (None if rule is not_followed else _missing_shape(propagation, node)) or rule(propagation, node)
    if isinstance(result, Refusal):
        result = quantised(propagation, node) if has_quantised_weight(propagation, node) else result
        if not any(True for _ in node.subgraphs()):  # what bodies read is refused already
            propagation.refusals.append(result)
        for tensor in node.inputs:
            propagation.pin(propagation.ids(tensor), result)
        return
    _note_tables(propagation, node)
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


def _note_tables(propagation: ChannelPropagation, node: gs.Node) -> None:
    """Note constants of a node that hold channels of their own; of one that is a layer the weight is noted already."""
    for index, tensor in enumerate(node.inputs):
        is_noted = any(layer.node is node and layer.weight_input == index for layer in propagation.layers[-1:])
        is_noted |= any(each.node is node and each.input_index == index for each in propagation.parameters[-len(node.inputs) :])
        if tensor.name in propagation.tables and not is_noted:
            propagation.note_parameter(node, index, propagation.ids(tensor))


def _missing_shape(propagation: ChannelPropagation, node: gs.Node) -> Refusal | None:
    for tensor in (*node.inputs, *node.outputs):
        if tensor.name and propagation.shape(tensor) is None:
            return refusal(node_name(node), Reason.SHAPE_UNKNOWN, tensor=tensor.name)
    return None


def _visit_bodies(propagation: ChannelPropagation, node: gs.Node) -> None:
    """What enters or leaves a body (of If, Loop, Scan) is pinned, and layers that were not taken out of it are refused."""
    loop = loop_of(node.name)
    where, operator = (loop, "Loop") if loop else (node_name(node), node.op)
    for body in node.subgraphs():
        nodes = [inner for each in (body, *body.subgraphs(recursive=True)) for inner in each.nodes]
        for tensor in [*(tensor for inner in nodes for tensor in inner.inputs), *body.outputs]:
            if tensor.name in propagation.tensor_ids:
                propagation.pin(propagation.tensor_ids[tensor.name], refusal(where, Reason.READ_IN_BODY, operator=operator))
        if loop or any(inner.name.startswith(OUTPUT_MARK) for inner in nodes):
            continue
        why = "which does not run on these inputs" if operator in ("If", "Loop") else "whose channels are not followed"
        is_random = operator == "Loop" and any(draws_numbers(inner.op, len(inner.inputs)) for inner in nodes)
        why = "which draws random numbers in each round" if is_random else why
        for inner in nodes:
            if inner.op in _LAYER_OPERATORS:
                reason = refusal(node_name(inner), Reason.INSIDE_BODY, where, operator=operator, why=why)
                propagation.refusals.append(reason)


def _keep_rectangular(propagation: ChannelPropagation) -> None:
    """Unite ids until every tensor stays rectangular, whatever is removed.

    A channel axis that is split (channel shuffle, pixel shuffle) stays so only if every block loses the same positions, so those
    ids are united across the shorter axes. Heads of a product may lose different ones, equally many, unless something cuts them.
    """
    changed = True
    while changed:
        changed, labels = False, propagation.row_labels()
        for name, ids in propagation.tensor_ids.items():
            ids = collapse(propagation.united.representatives(ids))
            axes = channel_axis_and_rows(ids, labels) if varying_axes(ids) else []
            if len(axes) < len(varying_axes(ids)):
                propagation.tensor_ids[name] = propagation.unite_except(ids, axes)
                changed = True
        for node in propagation.facts.model.graph.nodes:
            if node.op in _CUTTING and node.inputs[0].name in propagation.tensor_ids and _cuts_rows(propagation, node, labels):
                ids = collapse(propagation.united.representatives(propagation.ids(node.inputs[0])))
                propagation.unite_except(ids, channel_axis_and_rows(ids, labels)[:1])
                changed = True


def _cuts_rows(propagation: ChannelPropagation, node: gs.Node, labels: np.ndarray) -> bool:
    """Whether rows (heads) that may lose different channels come out of a node as others than those that entered it."""
    before, after = (collapse(propagation.united.representatives(propagation.ids(t))) for t in (node.inputs[0], node.outputs[0]))
    if len(varying_axes(before)) < 2:
        return False
    rows = [
        {row.tobytes() for row in _rows(ids, channel_axis_and_rows(ids, labels)[0])} if varying_axes(ids) else set()
        for ids in (before, after)
    ]
    return not rows[0] >= rows[1]


def _rows(ids: Ids, channel_axis: int) -> Ids:
    """(rows, channels) ids of a tensor."""
    return np.ascontiguousarray(np.moveaxis(ids, channel_axis, -1).reshape(-1, ids.shape[channel_axis]))


def _note_rows(propagation: ChannelPropagation) -> None:
    """Note tensors whose rows keep equally many channels, and pin those of products whose heads would go as a whole."""
    labels, seen = propagation.row_labels(), set[bytes]()
    for product in propagation.products:
        ids = collapse(propagation.united.representatives(product.ids))
        if varying_axes(ids) and channel_axis_and_rows(ids, labels)[0] == 0:
            propagation.pin(ids, node_refusal(product.node, Reason.TWO_COMPUTED_FACTORS))
    for node in propagation.facts.model.graph.nodes:
        for output in node.outputs:
            ids = collapse(propagation.united.representatives(propagation.ids(output)))
            if len(varying_axes(ids)) > 1:
                rows = np.unique(_rows(ids, channel_axis_and_rows(ids, labels)[0]), axis=0)
                if rows.tobytes() not in seen:
                    seen.add(rows.tobytes())
                    propagation.equal_groups.append(EqualGroups(node, rows))


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
