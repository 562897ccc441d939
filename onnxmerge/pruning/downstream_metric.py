"""How much an error in a layer's output matters to the layers that read it."""

from collections import defaultdict
from typing import Any

import numpy as np

from onnxmerge.graph.layers import Layer
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext

CONSTANT_VARIANCE = 1e-10
"""An output whose variance is below this share of its second moment is constant: what is left is rounding: squares
of float32 numbers are exact to about 1e-14 of the second moment, and four digits more leave room for those of long chains."""

Metric = tuple[np.ndarray | None, np.ndarray | None]
"""A matrix (out, out), and a factor F (r, out) of what F^T F adds to it: for layers with few outputs less work, and memory."""

HELD_BYTES = 1 << 26
"""Memory for products of weights that are held, 64 MiB: all layers that write a stream need those of the layers that read it."""


class OutputErrorMetric:
    """How much an error in each output channel of a layer changes the outputs of the layers that read it, to first order.

    The metric of a layer is S^T S with S = sum over its consumers of V_c diag(a) / std(V_c x): V_c the consumer's weight, a the
    scale of the BatchNormalizations between. A consumer counts as often as there are layers that read it, at least once.

    Parameters
    ----------
    context : RunContext
        The channel analysis of the model, and where its nodes stand.
    reference : ReferenceStatistics
        What each layer read, and what follows it. Layers with constant outputs are left out.
    """

    def __init__(self, context: RunContext, reference: ReferenceStatistics) -> None:
        self._node_index, self._downstream = context.node_index, reference.downstream
        self._variance = _output_variances(reference)
        self._products: dict[str, np.ndarray] = {}
        self._layers = [(layer, layer.key) for layer in context.channels.layers]
        self._read_by: dict[int, list[int]] = defaultdict(list)
        for number, (layer, _) in enumerate(self._layers):
            for channel_id in np.unique(layer.in_ids).tolist():
                if channel_id:
                    self._read_by[channel_id].append(number)

    def metric(self, layer: Layer) -> Metric:
        """Its two parts; None for a part that no layer adds to, for both where no layer that counts reads the output."""
        ids, at = layer.out_ids.reshape(-1), self._node_index[layer.key]
        total: np.ndarray | None = None
        factors: list[np.ndarray] = []
        for number in self._readers(ids):
            consumer, key = self._layers[number]
            if self._node_index[key] <= at or key not in self._variance:
                continue
            rows, positions = _meeting(ids, consumer.in_ids.reshape(-1))
            share = len(self._readers(consumer.out_ids.reshape(-1)) or [0]) / self._variance[key]
            if consumer.groups == 1 and consumer.out_ids.size * consumer.kernel_size < len(ids):
                weight = self._downstream[key].scaled(consumer.canonical(consumer.stored_weight))[0] * np.sqrt(share)
                seen = np.zeros((weight.shape[0], len(ids), weight.shape[2]))
                _add(seen, (slice(None), rows), weight[:, positions], rows)
                factors.append(np.moveaxis(seen, 2, 1).reshape(-1, len(ids)))
            else:
                total = np.zeros((len(ids), len(ids))) if total is None else total
                products = self._weight_products(consumer, key)[np.ix_(positions, positions)]
                products *= share
                _add(total, np.ix_(rows, rows), products, rows)
        return total, np.concatenate(factors) if factors else None

    def factor(self, layer: Layer) -> np.ndarray:
        """(out, r): what errors in the layer's own outputs are multiplied with, so that their squares add up to the metric's."""
        metric, factor = self.metric(layer)
        total = np.zeros((layer.out_ids.size,) * 2) if metric is None else metric
        if factor is not None:
            total += factor.T @ factor
        elif metric is None:
            total += np.eye(len(total))
        values, vectors = np.linalg.eigh(total)
        scale = self._downstream[layer.key].scale
        found: np.ndarray = vectors * np.sqrt(np.maximum(values, 0.0))
        return found if scale is None else scale[:, np.newaxis] * found

    def _readers(self, ids: np.ndarray) -> list[int]:
        """Which layers read any of these channels, in their order."""
        return sorted({number for channel_id in set(ids.tolist()) for number in self._read_by.get(channel_id, ())})

    def _weight_products(self, layer: Layer, key: str) -> np.ndarray:
        """(in, in): W^T W of the scaled weight, summed over kernel positions; zero between the groups of a convolution."""
        if key in self._products:
            return self._products[key]
        weight = self._downstream[key].scaled(layer.canonical(layer.stored_weight))
        groups, _, inputs, _ = weight.shape
        products = np.zeros((groups * inputs, groups * inputs))
        for g in range(groups):
            flat, own = weight[g].transpose(0, 2, 1).reshape(-1, inputs), slice(g * inputs, (g + 1) * inputs)
            products[own, own] = flat.T @ flat
        if products.nbytes + sum(each.nbytes for each in self._products.values()) <= HELD_BYTES:
            self._products[key] = products
        return products


def _add(array: np.ndarray, index: Any, values: np.ndarray, rows: np.ndarray) -> None:
    """array[index] += values, also where `rows`, which the index is made of, repeat."""
    if len(np.unique(rows)) == len(rows):
        array[index] += values
    else:
        np.add.at(array, index, values)


def _meeting(ids: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a position in `ids` (n,) and one in `read` (m,) where the same channel stands; ids may repeat."""
    order = np.argsort(ids, kind="stable")
    first, last = (np.searchsorted(ids[order], read, side) for side in ("left", "right"))
    positions = np.repeat(np.arange(len(read)), last - first)
    within = np.arange(len(positions)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    known = read[positions] > 0
    return order[first[positions] + within][known], positions[known]


def _output_variances(reference: ReferenceStatistics) -> dict[str, float]:
    """Summed variance of the outputs of each layer of the reference, by key; none of layers that are too wide or constant."""
    output_variance = {}
    for key, layer in reference.layers.items():
        if key in reference.too_wide:
            continue
        covariance, variance, second_moment = reference.covariances[key], 0.0, 0.0
        for g, weight in enumerate(reference.downstream[key].scaled(layer.canonical(layer.stored_weight))):
            channels = layer.channel_of[g * layer.inputs_per_group : (g + 1) * layer.inputs_per_group]
            whole = len(channels) == len(covariance.xx) and (channels == np.arange(len(channels))).all()
            xx = covariance.xx if whole else covariance.xx[np.ix_(channels, channels)]
            variance += sum(float(np.sum((weight[:, :, p] @ xx) * weight[:, :, p])) for p in range(layer.kernel_size))
            second_moment += float(np.square(weight).sum((0, 2)) @ (np.diag(xx) + covariance.mean_x[channels] ** 2))
        if variance > CONSTANT_VARIANCE * second_moment:
            output_variance[key] = variance
    return output_variance
