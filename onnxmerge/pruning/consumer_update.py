"""A consumer's new numbers: what channel mixing gives, and how they get into a walk that stands before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxmerge.algorithms.least_squares import mixed_weight, mixing
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Replacement


def mixed_priors(layer: Layer, kept: np.ndarray, moments: Covariance) -> list[np.ndarray]:
    """Channel mixing, times the node's alpha: for each group of the consumer (out, kept, positions)."""
    _, out, inside, positions = layer.weight.shape
    weights = []
    places = layer.channel_positions.shape[1]
    for g in range(layer.groups):
        own = np.flatnonzero(layer.channel_positions[:, 0] // inside == g)
        local = layer.channel_positions[own] - g * inside
        stays = kept[g][local[:, 0]]
        mixed, _ = mixing(moments.xx[np.ix_(own, own)], moments.mean_x[own], np.flatnonzero(stays))
        ordered = layer.alpha * layer.weight[g][:, local].reshape(out, len(own), places * positions)
        prior = mixed_weight(ordered, mixed).reshape(out, int(stays.sum()), places, positions)
        flat = np.zeros((out, inside, positions))
        flat[:, local[stays]] = prior
        weights.append(flat[:, kept[g]])
    return weights


def old_bias(channels: Channels, layer: Layer) -> np.ndarray:
    """(out,) the bias inside the reference's node, as it is added to the output."""
    node, count = layer.node, layer.weight.shape[0] * layer.weight.shape[1]
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(count)
    value = channels.constant(node.inputs[2])
    assert value is not None
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(beta * value.astype(np.float64).reshape(-1), count)


def spread_out(
    channels: Channels, layer: Layer, kept: np.ndarray, weights: Sequence[np.ndarray], bias: np.ndarray
) -> Replacement:
    """Weights (out, kept, positions) for each group of the consumer, alpha included, as its stored weight with zeros at removed
    places; bias (out,): what is added to the output."""
    full = np.zeros(layer.weight.shape)
    for g, weight in enumerate(weights):
        full[g][:, kept[g]] = weight / layer.alpha
    dtype = layer.stored_weight.dtype
    return Replacement(layer.stored(full).astype(dtype), bias)


def install(walk: LayerwiseRun, layer: Layer, new: Replacement, old_bias: np.ndarray) -> None:
    """Put the replaced consumer into a walk that stands before it; old_bias: what its own bias adds to the output."""
    index = walk.node_index[layer.key]
    walk.replace_node(index, *replaced(walk.nodes[index][0], layer, new, old_bias))


def replaced(
    before: NodeProto, layer: Layer, new: Replacement, old_bias: np.ndarray
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """The nodes that compute the replaced consumer, and the constants that they read, by name."""
    node = NodeProto()
    node.CopyFrom(before)
    weight_name, bias_name, raw = (f"{layer.key}//{part}" for part in ("weight", "bias", "raw"))
    constants = {weight_name: new.weight}
    node.input[layer.weight_input] = weight_name
    node.output[0] = layer.key
    nodes = [node]
    bias = old_bias + (0.0 if new.bias is None else new.bias)
    if node.op_type == "MatMul":
        shape = (-1, 1) if layer.weight_input == 0 else (-1,)
        constants[bias_name] = bias.reshape(shape).astype(new.weight.dtype)
        nodes.append(helper.make_node("Add", [raw, bias_name], [node.output[0]]))
        node.output[0] = raw
    else:
        constants[bias_name] = bias.astype(new.weight.dtype)
        others = [attribute for attribute in node.attribute if attribute.name != "beta"]
        del node.attribute[:]
        node.attribute.extend(others)
        del node.input[2:]
        node.input.append(bias_name)
    return nodes, constants
