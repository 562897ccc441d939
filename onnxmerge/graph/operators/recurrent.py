"""LSTM, GRU and RNN: channels that enter end, and each unit of the state is a channel that starts.

A unit has one row for each gate in the weight W of the inputs, in the weight R of the state and in the biases, and one column in
R: these leave together, in both directions at once, since `hidden_size` holds for both. What the other units compute is then
what they compute where the unit's column in R is zero.
"""

import numpy as np

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_ids import Ids, along_axis, with_rank
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input, node_refusal
from onnxmerge.graph.operators.elementwise import note_operand
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.onnxio import surgeon as gs

# Inputs: data, W (directions, gates units, inputs), R (directions, gates units, units), B (directions, 2 gates units), lengths,
# the state and the cell at the beginning (directions, batch, units), and the peepholes P (directions, 3 units).
WEIGHT, RECURRENCE, BIAS, STATE, CELL, PEEPHOLES = 1, 2, 3, 5, 6, 7


def recurrent(propagation: ChannelPropagation, node: gs.Node) -> list[Ids] | Refusal:
    """A layer whose outputs are the units of the state: Y (steps, directions, batch, units), Y_h and Y_c without the steps."""
    weight, recurrence = (propagation.constant(node.inputs[index]) for index in (WEIGHT, RECURRENCE))
    others = [propagation.constant(node.inputs[index]) for index in (BIAS, PEEPHOLES) if has_input(node, index)]
    if weight is None or recurrence is None or any(other is None for other in others):
        return node_refusal(node, Reason.COMPUTED_WEIGHT)
    directions, rows, count = recurrence.shape
    units = propagation.united.new_ids(count)
    gates = np.tile(units, rows // count)
    written = next(output for output in node.outputs if output.name)
    channels, axis = propagation.ids_along(node.inputs[0], 2), len(propagation.known_shape(written)) - 1
    out_ids = np.tile(gates, directions)[None]
    propagation.layers.append(Layer(node, WEIGHT, "gates", channels[None], out_ids, weight, 2, axis, axis + 1))
    propagation.note_parameter(node, RECURRENCE, along_axis(gates, 1, 3))
    propagation.note_parameter(node, RECURRENCE, along_axis(units, 2, 3))
    for index, repeats in ((BIAS, 2 * rows // count), (PEEPHOLES, 3)):
        if has_input(node, index):
            propagation.note_parameter(node, index, along_axis(np.tile(units, repeats), 1, 2))
    state = along_axis(units, 2, 3)
    for index in (STATE, CELL):
        if has_input(node, index) and units.any():
            propagation.united.unite(state, with_rank(propagation.ids(node.inputs[index]), 3))
            note_operand(propagation, node, index, state)
    return [along_axis(units, -1, len(propagation.shape(output) or (1,)) if output.name else 1) for output in node.outputs]


def edit_recurrent(kept: KeptChannels, node: gs.Node) -> NodeEdit | None:
    """How many units are left."""
    units = next((kept.mask(layer.units) for layer in kept.channels.layers if layer.node is node), np.ones(1, bool))
    return None if units.all() else NodeEdit(attributes={"hidden_size": int(units.sum())})
