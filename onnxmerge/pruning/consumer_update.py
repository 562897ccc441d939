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
    _, outputs, inputs, kernel_size = layer.weight.shape
    repeats = layer.channel_positions.shape[1]
    weights = []
    for g in range(layer.groups):
        own = np.flatnonzero(layer.channel_positions[:, 0] // inputs == g)
        positions = layer.channel_positions[own] - g * inputs
        kept_channels = kept[g][positions[:, 0]]
        scaling, _ = mixing(covariance.xx[np.ix_(own, own)], covariance.mean_x[own], np.flatnonzero(kept_channels))
        by_channel = layer.alpha * layer.weight[g][:, positions].reshape(outputs, len(own), repeats * kernel_size)
        mixed = mixed_weight(by_channel, scaling).reshape(outputs, int(kept_channels.sum()), repeats, kernel_size)
        full = np.zeros((outputs, inputs, kernel_size))
        full[:, positions[kept_channels]] = mixed
        weights.append(full[:, kept[g]])
    return weights


def kept_weights(layer: Layer, kept: np.ndarray, stored_weight: np.ndarray | None = None) -> list[np.ndarray]:
    """The layer's own weights of the kept inputs; stored_weight: in place of its own."""
    weight = layer.weight if stored_weight is None else layer.canonical(stored_weight).astype(np.float64)
    return [layer.alpha * part[:, own] for part, own in zip(weight, kept, strict=True)]


def bias_of(channels: Channels, layer: Layer) -> np.ndarray:
    """(out,) float64: what the layer's own bias adds to its output, Gemm's beta included; zeros without one."""
    node, count = layer.node, layer.out_ids.size
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
    full = np.zeros(layer.weight.shape)
    for g, weight in enumerate(weights):
        full[g][:, kept[g]] = weight / layer.alpha
    return Replacement(layer.stored(full).astype(layer.stored_weight.dtype), bias)


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
    weight_name, bias_name, product_name = (f"{layer.key}//{part}" for part in ("weight", "bias", "product"))
    dtype = replacement.weight.dtype
    bias = (own_bias + (0.0 if replacement.bias is None else replacement.bias)).astype(dtype)
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
