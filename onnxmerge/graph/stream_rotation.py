"""A residual stream written in another orthonormal basis V: x becomes z = V^T x, and nothing else changes.

Layers, tables and constants that write it give V^T times what they gave. Its normalisations are written out without centring,
scale and shift, as ONNX Runtime fuses them; layers that read it get W diag(scale) V as their weight, and W shift for their bias.
Where the mean over channels is subtracted, the last direction is that of equal values, and nothing writes it any more. Once K of
D channels stay, `keep_mean` puts z / sqrt(|z|^2 / D + epsilon) in terms of the mean over K.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxmerge.graph.channel_ids import varying_axes
from onnxmerge.graph.channel_propagation import ChannelParameter
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.graph_editor import GraphEditor
from onnxmerge.graph.normalisations import Normalisation
from onnxmerge.graph.streams import Stream
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import in_range, new_constant, remove_unused_nodes, unused_name
from onnxmerge.onnxio.export import export_with
from onnxmerge.onnxio.model import Model, fresh_copy, from_proto
from onnxmerge.onnxio.storage import stored_as_read


def principal_basis(second_moments: np.ndarray, is_centred: bool) -> np.ndarray:
    """(D, D) the directions, in columns, by descending moment; where the mean is subtracted that of equal values is last, and 0.

    Parameters
    ----------
    second_moments : ndarray of shape (D, D)
        Of the normalised channels.
    is_centred : bool
        Whether the mean over channels is subtracted.

    Examples
    --------
    >>> np.abs(principal_basis(np.diag([1.0, 3.0]), is_centred=False)).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    count = len(second_moments)
    below_all = second_moments.trace() / count + 1.0 if is_centred else 0.0
    basis = np.linalg.eigh(second_moments - below_all)[1][:, ::-1].copy()
    if is_centred:
        basis[:, -1] = 0.0
    return basis


def rotated(streams: Sequence[Stream], bases: Sequence[np.ndarray]) -> tuple[Model, frozenset[str]]:
    """A new model with each stream in its basis (D, D), and the keys of the nodes that now take the means of squares."""
    channels = streams[0].channels
    model = fresh_copy(channels.model)
    editor = GraphEditor(model)
    copies = {id(old): new for old, new in zip(channels.model.graph.nodes, model.graph.nodes, strict=True)}
    means: set[str] = set()
    for stream, basis in zip(streams, bases, strict=True):
        for parameter in stream.parameters:
            value = channels.constant(parameter.node.inputs[parameter.input_index])
            if value is not None:
                editor.set_input(copies[id(parameter.node)], parameter.input_index, _turned(value, parameter, stream, basis))
        for producer in stream.group.producers:
            weight = producer.layer.weight
            rows = producer.positions[:, 0]
            weight[0, rows] = np.tensordot(basis.T, weight[0, rows], 1)
            _write(editor, copies, producer.layer.node, producer.layer.weight_input, producer.layer.stored(weight))
        for consumer in stream.group.consumers:
            layer, before = consumer.layer, stream.readers[consumer.key]
            weight, columns = layer.weight, consumer.positions[:, 0]
            own = weight[0][:, columns]
            weight[0][:, columns] = np.einsum("ock,c,cd->odk", own, before.scale, basis)
            _write(editor, copies, layer.node, layer.weight_input, layer.stored(weight))
            if before.shift.any():
                editor.add_bias(copies[id(layer.node)], layer, layer.alpha * np.einsum("ock,c->o", own, before.shift))
        means |= {_write_normalisation(editor, copies, each, len(basis)) for each in stream.normalisations}
    remove_unused_nodes(model)
    return from_proto(export_with(model, stored_as_read), channels.model.path), frozenset(means)


def _write(editor: GraphEditor, copies: Mapping[int, gs.Node], node: gs.Node, index: int, weight: np.ndarray) -> None:
    editor.set_input(copies[id(node)], index, in_range(weight, np.dtype(np.float32)))


def _turned(value: np.ndarray, parameter: ChannelParameter, stream: Stream, basis: np.ndarray) -> np.ndarray:
    """A constant that is added to a stream, in its basis."""
    axis = varying_axes(parameter.ids)[0]
    order = np.searchsorted(stream.group.channel_ids, parameter.ids.reshape(-1))
    rows = np.moveaxis(value.astype(np.float64), axis - parameter.ids.ndim, -1)
    turned = np.empty_like(rows)
    turned[..., :] = (rows @ basis[order])[..., order]
    return in_range(np.moveaxis(turned, -1, axis - parameter.ids.ndim), value.dtype)


def _write_normalisation(editor: GraphEditor, copies: Mapping[int, gs.Node], old: Normalisation, count: int) -> str:
    """Put x / sqrt(|x|^2 / D + epsilon) in the place of a normalisation; the key of the node that takes the mean."""
    nodes, last, name = editor.model.graph.nodes, copies[id(old.nodes[-1])], old.output.name
    source = next(tensor for tensor in copies[id(old.nodes[0])].inputs if tensor.name == old.source.name)

    def constant(what: str, value: ArrayLike, dtype: type[np.generic] = np.float32) -> gs.Tensor:
        return new_constant(editor.model, f"{name}_{what}", np.array(value, dtype), editor.taken)

    parts = ("square", "mean", "with_epsilon", "root", "normalised", "before")
    variables = [gs.Variable(unused_name(f"{name}_{part}", editor.taken), np.dtype(np.float32)) for part in parts]
    square, mean, shifted, root, normalised, unused = variables
    output, last.outputs = last.outputs[0], [unused]
    axes = [constant("axes", [-1], np.int64)] if editor.model.opset >= 18 else []
    new: tuple[tuple[str, list[gs.Tensor], gs.Tensor], ...] = (
        ("Pow", [source, constant("two", 2.0)], square),
        ("ReduceMean", [square, *axes], mean),
        ("Add", [mean, constant("epsilon", old.epsilon)], shifted),
        ("Sqrt", [shifted], root),
        ("Div", [source, root], normalised),
        ("Mul", [normalised, constant("scale", np.ones(count))], output),
    )
    at = next(index for index, node in enumerate(nodes) if node is last)
    for offset, (operator, inputs, result) in enumerate(new):
        attributes: dict[str, Any] = (
            {} if operator != "ReduceMean" else {"keepdims": 1} if axes else {"axes": [-1], "keepdims": 1}
        )
        nodes.insert(at + offset, gs.Node(operator, f"{name}/{operator}", attributes, inputs, [result]))
    return mean.name


def keep_mean(editor: GraphEditor, mean: gs.Node, before: int, after: int) -> None:
    """Let a normalisation that `rotated` wrote go on dividing by the mean over `before` channels, of which `after` are left.

    x / sqrt(|x|^2 / D + epsilon) = sqrt(D / K) x / sqrt(|x|^2 / K + epsilon D / K).
    """
    nodes = [mean]
    for _ in ("Add", "Sqrt", "Div", "Mul"):
        nodes.append(nodes[-1].outputs[0].outputs[0])
    for node, factor in ((nodes[1], before / after), (nodes[-1], np.sqrt(before / after))):
        values = [(at, constant_value(editor.model, tensor)) for at, tensor in enumerate(node.inputs)]
        index, value = next((at, value) for at, value in values if value is not None)
        editor.set_input(node, index, np.asarray(value * factor, value.dtype))
