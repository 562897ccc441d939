"""New weights and biases of a layer: from channel mixing, as the layer stores them, and as nodes of a layer-wise run.

A layer's weights come here as one array (out, kept inputs, kernel size) for each group of a grouped convolution, times Gemm's
alpha; `kept` (groups, inputs per group) bool says which inputs they are for.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from onnx import NodeProto, helper

from onnxmerge.algorithms.least_squares import mixed_weight, mixing
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.onnxio.edits import in_range


def mixed_weights(layer: Layer, kept: np.ndarray, covariance: Covariance) -> list[np.ndarray]:
    """Weights by channel mixing: removed inputs are expressed by kept ones, x ~ Z x[kept], and the weight becomes W Z.

    Parameters
    ----------
    layer : Layer
        The layer.
    kept : ndarray of shape (groups, inputs per group), bool
        The inputs that stay.
    covariance : Covariance
        Of the layer's channels, pooled over their positions (`Layer.channel_positions`).

    Returns
    -------
    list of ndarray of shape (out, kept inputs, kernel size), float64
        For each group of a grouped convolution.
    """
    weight = layer.weight
    _, outputs, inputs, kernel_size = weight.shape
    if not kept.any():
        return [np.zeros((outputs, 0, kernel_size))] * layer.groups
    repeats = layer.channel_positions.shape[1]
    weights = []
    for g in range(layer.groups):
        own = np.flatnonzero(layer.channel_positions[:, 0] // inputs == g)
        positions = layer.channel_positions[own] - g * inputs
        kept_channels = kept[g][positions[:, 0]]
        stays = np.flatnonzero(kept_channels)
        scaling = mixing(covariance.xx[np.ix_(own, own)], stays)
        by_channel = layer.alpha * weight[g][:, positions].reshape(outputs, len(own), repeats * kernel_size)
        mixed = mixed_weight(by_channel, stays, scaling).reshape(outputs, len(stays), repeats, kernel_size)
        full = np.zeros((outputs, inputs, kernel_size))
        full[:, positions[kept_channels]] = mixed
        weights.append(full[:, kept[g]])
    return weights


def kept_weights(layer: Layer, kept: np.ndarray, stored_weight: np.ndarray | None = None) -> list[np.ndarray]:
    """The layer's own weights of the kept inputs; stored_weight: in place of its own."""
    weight = layer.weight if stored_weight is None else layer.canonical(stored_weight).astype(np.float64)
    return [layer.alpha * part[:, own] for part, own in zip(weight, kept, strict=True)]


def bias_of(channels: Channels, layer: Layer) -> np.ndarray:
    """(out,) float64: what the layer's own bias adds to its output, Gemm's beta included; zeros without one.

    Of a recurrent layer the whole of its bias, (directions * 2 * gates * units,).
    """
    node, count = layer.node, layer.out_ids.size
    if not layer.is_linear:
        value = channels.constant(node.inputs[3]) if has_input(node, 3) else None
        return np.zeros(2 * count) if value is None else value.astype(np.float64).reshape(-1)
    if not layer.takes_bias or not has_input(node, 2):
        return np.zeros(count)
    value = channels.constant(node.inputs[2])
    if value is None:
        raise ValueError(f"the bias of {layer.name} is computed")
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(beta * value.astype(np.float64).reshape(-1), count)


def full_replacement(layer: Layer, kept: np.ndarray, weights: Sequence[np.ndarray], bias: np.ndarray) -> Replacement:
    """Weights of the kept inputs as a weight in the layout and dtype of the file, zero at removed inputs.

    Parameters
    ----------
    layer : Layer
        The layer.
    kept : ndarray of shape (groups, inputs per group), bool
        The inputs that stay.
    weights : sequence of ndarray of shape (out, kept inputs, kernel size)
        For each group of a grouped convolution, times alpha.
    bias : ndarray of shape (out,) or (1,)
        What is added to the layer's own bias.
    """
    full = np.zeros(layer.canonical(layer.stored_weight).shape)
    for g, weight in enumerate(weights):
        full[g][:, kept[g]] = weight / layer.alpha
    return Replacement(in_range(layer.stored(full), layer.stored_weight.dtype), bias)


def mixed_replacement(layer: Layer, kept: np.ndarray, covariance: Covariance) -> Replacement:
    """Channel mixing with the bias that keeps the mean of every output; kept (groups, inputs per group) bool."""
    weights = mixed_weights(layer, kept, covariance)
    means = covariance.mean_x[layer.channel_of].reshape(layer.groups, -1)
    shifts = [
        (layer.alpha * full.sum(-1)) @ mean - weight.sum(-1) @ mean[own]
        for full, weight, mean, own in zip(layer.weight, weights, means, kept, strict=True)
    ]
    return full_replacement(layer, kept, weights, np.concatenate(shifts))


def replace_layer(run: LayerwiseRun, layer: Layer, replacement: Replacement, own_bias: np.ndarray) -> None:
    """Put a replacement into a run that has not passed the layer yet; own_bias: `bias_of` the layer."""
    index = run.node_index[layer.key]
    run.replace_node(index, *replacement_nodes(run.nodes[index][0], layer, replacement, own_bias))


def replacement_nodes(
    node: NodeProto, layer: Layer, replacement: Replacement, own_bias: np.ndarray
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """What computes a replaced layer.

    Parameters
    ----------
    node : NodeProto
        The layer's node.
    layer : Layer
        The layer.
    replacement : Replacement
        Its new weight and what is added to its bias.
    own_bias : ndarray of shape (out,)
        `bias_of` the layer.

    Returns
    -------
    nodes : list of NodeProto
        The node with other inputs, and behind one that takes no bias an Add.
    constants : dict[str, ndarray]
        The weight and the bias that they read, by name.
    """
    new = deepcopy(node)
    if not layer.is_linear:
        return _recurrent_nodes(new, layer, replacement, own_bias)
    weight_name, bias_name, product_name = (f"{layer.key}//{part}" for part in ("weight", "bias", "product"))
    dtype = replacement.weight.dtype
    bias = in_range(own_bias + (0.0 if replacement.bias is None else replacement.bias), dtype)
    new.input[layer.weight_input] = weight_name
    if not layer.takes_bias:
        new.output[0] = product_name
        add = helper.make_node("Add", [product_name, bias_name], [layer.key])
        return [new, add], {weight_name: replacement.weight, bias_name: bias.reshape(layer.bias_shape)}
    new.output[0] = layer.key
    others = [attribute for attribute in node.attribute if attribute.name != "beta"]
    del new.attribute[:]
    new.attribute.extend(others)
    del new.input[2:]
    new.input.append(bias_name)
    return [new], {weight_name: replacement.weight, bias_name: bias}


def _recurrent_nodes(
    new: NodeProto, layer: Layer, replacement: Replacement, own_bias: np.ndarray
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """The same for a recurrent layer: what is added to its bias goes to the half that belongs to the inputs."""
    weight_name, bias_name = f"{layer.key}//weight", f"{layer.key}//bias"
    directions, rows, _ = layer.stored_weight.shape
    bias = own_bias.reshape(directions, 2, rows).copy()
    if replacement.bias is not None:
        bias[:, 0] += np.broadcast_to(replacement.bias, directions * rows).reshape(directions, rows)
    new.input.extend([""] * (4 - len(new.input)))
    new.input[1], new.input[3] = weight_name, bias_name
    constants = {weight_name: replacement.weight, bias_name: in_range(bias.reshape(directions, -1), replacement.weight.dtype)}
    return [new], constants


def state_weights(channels: Channels, layer: Layer, kept: np.ndarray) -> dict[str, np.ndarray]:
    """What the units of a recurrent layer read of one another, zero for removed ones, by its name in a run that holds it.

    kept: (number of ids,) bool.
    """
    value = channels.constant(layer.node.inputs[2])
    if value is None:
        raise ValueError(f"the weight of the state of {layer.name} is computed")
    return {f"{layer.key}//state": value * kept[layer.units].astype(value.dtype)}


def remove_states(run: LayerwiseRun, channels: Channels, kept: np.ndarray, layers: Sequence[Layer]) -> None:
    """Put the `state_weights` of the recurrent ones among the layers into a run that has not passed them yet."""
    for layer in [layer for layer in layers if not layer.is_linear]:
        weights, index = state_weights(channels, layer, kept), run.node_index[layer.key]
        new = deepcopy(run.nodes[index][0])
        (new.input[2],) = weights
        run.replace_node(index, [new], weights)
