"""What the first layers of a graph say of its inputs: the ids that an embedding knows, the mean and scale that a first
BatchNormalization expects, and the mean and covariance that a dense layer was fitted to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.errors import ModelError
from onnxmerge.execution.batch_axes import without_axis
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.cost import MACS
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.bodies import bodies_to_take_out, taken_out, with_names_of_their_own
from onnxmerge.onnxio.model import from_proto

AMPLITUDE = 0.5
"""Root mean square of the first layer's noise divided by the standard deviation of the other inputs."""
NOISE_EVERY = 3
"""One in so many inputs is noise."""
# Operators that change the shape or the type of a tensor, but none of its values.
SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout")
PADDING = (*SHAPE_ONLY, "Pad")
REPEATING = (*SHAPE_ONLY, "Expand", "Tile", "Transpose", "Slice")
"""Operators whose output holds no other values than their input, perhaps at other places."""


@dataclass(frozen=True)
class InputProperties:
    """What is known of the values of graph inputs.

    Attributes
    ----------
    id_limits : exclusive upper bound of the ids, by input that indexes an embedding or is made one-hot
    sounds : inputs that a convolution over one axis reads as (N, samples): samples of sound
    mean_and_std : mean and standard deviation (channels,), (channels,) along axis 1, by input of a first BatchNormalization
    """

    id_limits: dict[str, int] = field(default_factory=dict)
    mean_and_std: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    sounds: set[str] = field(default_factory=set)


def origin(tensor: gs.Tensor, through: Sequence[str] = SHAPE_ONLY) -> gs.Tensor:
    """The tensor that another one's values come from, by default through operators that only change shape or type."""
    while isinstance(tensor, gs.Variable) and len(tensor.inputs) == 1 and tensor.inputs[0].op in through:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def input_properties(facts: TensorFacts) -> InputProperties:
    """What a graph says of its inputs: by a table that they look up, a comparison with all ids, a first BatchNormalization."""
    properties = InputProperties()
    limits = properties.id_limits
    names = {tensor.name for tensor in facts.model.graph.inputs}
    for node in facts.model.graph.nodes:
        for ids, limit in _ids_and_limit(node, facts):
            name = origin(ids, REPEATING).name
            if name in names:
                limits[name] = min(limits.get(name, limit), limit)
        if node.op == "Conv" and (source := origin(node.inputs[0], PADDING)).name in names:
            weight = facts.constant(node.inputs[1])
            if len(source.shape or ()) == 2 and weight is not None and weight.ndim == 3 and weight.shape[1] == 1:
                properties.sounds.add(source.name)
        if node.op == "BatchNormalization" and node.inputs[0].name in names:
            mean, variance = facts.constant(node.inputs[3]), facts.constant(node.inputs[4])
            if mean is not None and variance is not None and mean.ndim == 1:
                statistics = mean.astype(np.float64), np.sqrt(variance.astype(np.float64))
                properties.mean_and_std[node.inputs[0].name] = statistics
    return properties


def properties_of_file(path: Path, proto: ModelProto) -> InputProperties:
    """The same of a file and what `read_checked` read from it, bodies too; nothing of a model that cannot be analysed."""
    if bodies_to_take_out(proto, MACS):
        named = with_names_of_their_own(proto)
        proto = taken_out(named, bodies_to_take_out(named, MACS))
    try:
        return input_properties(TensorFacts(from_proto(proto, path), {}))
    except ModelError:
        return InputProperties()


def _ids_and_limit(node: gs.Node, facts: TensorFacts) -> Iterator[tuple[gs.Tensor, int]]:
    """Ids that a node reads, and how many there are: Gather(table, ids), OneHot(ids, depth), Equal(ids, 0..n-1)."""
    if node.op == "Gather" and (table := facts.constant(node.inputs[0])) is not None and not node.attrs.get("axis", 0):
        yield node.inputs[1], len(table)
    elif node.op == "OneHot" and (depth := facts.constant(node.inputs[1])) is not None:
        yield node.inputs[0], int(depth.reshape(-1)[0])
    elif node.op == "Equal":
        for ids, others in (node.inputs, node.inputs[::-1]):
            known = facts.constant(origin(others, REPEATING))
            if known is not None and known.size > 2 and np.array_equal(known.reshape(-1), np.arange(known.size)):
                yield ids, known.size


def scaled_for_batchnorm(inputs: Inputs, properties: InputProperties) -> Inputs:
    """Synthetic inputs x of zero mean and unit variance as std x + mean, with mean and std of a first BatchNormalization."""
    if not properties.mean_and_std:
        return inputs

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = inputs.take(indices)
        for name, (mean, std) in properties.mean_and_std.items():
            value = feeds[name]
            shape = (1, -1) + (1,) * (value.ndim - 2)
            feeds[name] = (value * std.reshape(shape) + mean.reshape(shape)).astype(value.dtype)
        return feeds

    scaled = "mean and standard deviation as the first BatchNormalization expects"
    assumed = {
        name: f"{text.partition(', mean 0')[0]}, {scaled}" if name in properties.mean_and_std else text
        for name, text in inputs.assumed.items()
    }
    description = f"{inputs.description}, scaled as the first BatchNormalization expects"
    return replace(inputs, take=take, description=description, assumed=assumed)


def dense_first_layer(analysed: AnalysedModel) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The graph input that one dense layer reads whole, and that layer's weight (out, in) and bias (out,); None elsewhere."""
    channels, axes = analysed.channels, analysed.call.axes
    for layer in channels.layers:
        if layer.layout not in ("rows", "columns") or layer.in_ids.any():
            continue
        source = origin(layer.data)
        shape = channels.shape(source)
        weight = layer.canonical(layer.stored_weight)[0, :, :, 0]
        is_input = any(source is tensor for tensor in channels.model.graph.inputs)
        is_float = source.dtype in (np.float16, np.float32, np.float64, TensorProto.BFLOAT16)
        row = without_axis(shape or (), axes.get(source.name, 0))
        if is_input and is_float and shape is not None and int(np.prod(row)) == weight.shape[1]:
            return str(source.name), weight, _bias(channels, layer)
    return None


def _bias(channels: Channels, layer: Layer) -> np.ndarray:
    """(out,) what is added to a dense layer's output, by itself or by an Add that reads it; zeros where that is not constant."""
    adds = [node for node in layer.node.outputs[0].outputs if node.op == "Add"]
    tensors = layer.node.inputs[2:3] if layer.takes_bias else [tensor for node in adds for tensor in node.inputs]
    values = (channels.constant(tensor) for tensor in tensors)
    found = next((value for value in values if value is not None and value.size == layer.out_ids.size), None)
    return np.zeros(layer.out_ids.size) if found is None else found.astype(np.float64).reshape(-1)


def trained_mean(weight: np.ndarray, bias: np.ndarray, assumed: float) -> np.ndarray:
    """The mean of the inputs that a dense layer was trained on, as far as its weights and biases tell it.

    A step of gradient descent adds e_i x to the weights W_i of unit i and e_i to its bias b_i, x an input and e_i the error that
    reaches the unit times the rate. sum(W) / sum(b) over the units is therefore a mean of the inputs, weighted with errors that
    have mostly one sign, since units learn to be silent for most inputs. It counts as far as the two sums stand out from those of
    random signs, which have the squares |W|^2 and |b|^2 on average.

    Parameters
    ----------
    weight : ndarray of shape (out, in)
    bias : ndarray of shape (out,)
    assumed : float
        The mean of every input where weights tell nothing.

    Returns
    -------
    ndarray of shape (in,)

    Examples
    --------
    >>> errors = np.array([[-1.0], [-2.0], [0.5], [-1.5]])
    >>> trained_mean(errors * np.array([0.5, -1.0]), errors[:, 0], 0.0).round(2)
    array([ 0.18, -0.36])
    """
    total, shift = weight.sum(0), float(bias.sum())
    squares = float(total @ total)
    if shift == 0.0 or squares == 0.0:
        return np.full(weight.shape[1], assumed)
    certain = max(0.0, 1.0 - float(np.vdot(weight, weight)) / squares) * shift**2 / (shift**2 + float(bias @ bias))
    return np.asarray(assumed + certain * (total / shift - assumed))


def with_first_layer_noise(inputs: Inputs, name: str, weight: np.ndarray, bias: np.ndarray, seed: int) -> Inputs:
    """Move inputs to the mean that a dense first layer was trained on, and replace every third one by noise shaped by it.

    The noise is x = m + a V^T (s z) / rms(s), with weight = U diag(s) V^T and z ~ N(0, I), for networks that see their whole
    input at once: weights were fitted to the data, so their row space says where the data varies: x ~ N(m, W^T W), scaled. Mixed
    with dead leaves it stands in for data far better than either alone (LeNet-300-100 at 80 % removed, all of mean 0: accuracy
    75 % with dead leaves, 77 % with white noise, 85 % with both). With m of `trained_mean` in the place of 0 the Kullback-Leibler
    divergence of the predicted classes of ten perceptrons without 50 to 80 % of their channels is a fifth less. Networks for
    photographs do better with less noise than half, those for clothes with more. Inputs move by one standard deviation at most,
    in the root mean square: trained networks ask for half of that, a few random weights for any number of them.

    Parameters
    ----------
    inputs : other inputs; their standard deviation times `AMPLITUDE` is a
    name : the model input that is replaced
    weight, bias : (out, in), (out,) of the dense layer that reads it
    seed : of the noise
    """
    weight = weight.astype(np.float64)  # here, since nothing holds a copy of large weights where no inputs are made
    _, scales, directions = np.linalg.svd(weight, full_matrices=False)
    calls, axis = list(inputs.first(64 if name in inputs.axes else 1).batches(64)), inputs.axes.get(name, 0)
    first = np.concatenate([feeds[name] for feeds in calls], axis)
    others, is_only_input = first.astype(np.float64), inputs.by_row and len(calls[0]) == 1
    amplitude = AMPLITUDE * float(others.std()) * np.sqrt(weight.shape[1]) / max(float(np.linalg.norm(scales)), 1e-30)
    factor, assumed = amplitude * scales[:, None] * directions, float(others.mean())
    moved = trained_mean(weight, bias, assumed) - assumed
    mean = assumed + moved * min(1.0, float(others.std()) / max(float(np.sqrt(np.square(moved).mean())), 1e-30))

    def take(indices: Indices) -> dict[str, np.ndarray]:
        is_noise = indices % NOISE_EVERY == NOISE_EVERY - 1
        made = ~is_noise if is_only_input else np.ones(len(indices), bool)  # those that are to be replaced cost as much as others
        feeds = inputs.take(indices[made]) if made.any() else {}
        value = np.empty((len(indices), len(mean)))
        if name in feeds:
            value[made] = np.moveaxis(feeds[name], axis, 0).reshape(-1, len(mean)) + (mean - assumed)
        for row in np.flatnonzero(is_noise):
            noise = np.random.default_rng([seed, int(indices[row])]).standard_normal(len(factor))
            value[row] = mean + noise @ factor
        rows = value.reshape(-1, *without_axis(first.shape, axis)).astype(first.dtype)
        return {**feeds, name: np.ascontiguousarray(np.moveaxis(rows, 0, axis))}

    return replace(inputs, take=take, description=f"{inputs.description}, a third of them noise shaped by the first layer")
