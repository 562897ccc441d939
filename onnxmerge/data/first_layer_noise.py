"""Gaussian noise with the covariance of a dense first layer's weights, for networks that see their whole input at once.

Such a layer's weights were fitted to the data, so their row space says where the data varies: x ~ N(0, W^T W), scaled. Mixed
half and half with dead leaves it stands in for data far better than either alone (LeNet-300-100 at 80 % removed: accuracy 75 %
with dead leaves, 77 % with white noise, 85 % with both).
"""

from dataclasses import replace

import numpy as np

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.input_properties import origin
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.channel_groups import Channels

# Root mean square of the noise divided by the standard deviation of the other inputs.
AMPLITUDE = 0.5


def dense_first_layer(channels: Channels) -> tuple[str, np.ndarray] | None:
    """The graph input that one dense layer reads whole, and that layer's weight (out, in); None for other networks."""
    for layer in channels.layers:
        if layer.layout not in ("rows", "columns") or layer.in_ids.any():
            continue
        source = origin(layer.data)
        shape = channels.shape(source)
        weight = layer.canonical(layer.stored_weight)[0, :, :, 0]
        is_input = any(source is tensor for tensor in channels.model.graph.inputs)
        is_float = isinstance(source.dtype, np.dtype) and np.issubdtype(source.dtype, np.floating)
        if is_input and is_float and shape is not None and int(np.prod(shape[1:])) == weight.shape[1]:
            return str(source.name), weight.astype(np.float64)
    return None


def with_first_layer_noise(inputs: Inputs, name: str, weight: np.ndarray, seed: int) -> Inputs:
    """Replace every second input by noise x = c + a V^T (s z) / rms(s), with weight = U diag(s) V^T and z ~ N(0, I).

    Parameters
    ----------
    inputs : other inputs; their mean is c, and their standard deviation times `AMPLITUDE` is a
    name : the model input that is replaced
    weight : (out, in) of the dense layer that reads it
    seed : of the noise
    """
    _, scales, directions = np.linalg.svd(weight, full_matrices=False)
    others = inputs.take(inputs.indices[:64])[name].astype(np.float64)
    amplitude = AMPLITUDE * float(others.std()) * np.sqrt(weight.shape[1]) / max(float(np.linalg.norm(scales)), 1e-30)
    factor, centre = amplitude * scales[:, None] * directions, float(others.mean())

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = inputs.take(indices)
        value = feeds[name].copy()
        for row, index in enumerate(indices):
            if index % 2:
                noise = np.random.default_rng([seed, int(index)]).standard_normal(len(factor))
                value[row] = (centre + noise @ factor).reshape(value.shape[1:]).astype(value.dtype)
        return {**feeds, name: value}

    return replace(inputs, take=take, description=f"{inputs.description}, half of them noise shaped by the first layer")
