"""How much an error in a layer's output matters to the layers that read it."""

from collections import defaultdict

import numpy as np

from onnxmerge.graph.layers import Layer
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext

CONSTANT_VARIANCE = 1e-10
"""An output whose variance is below this share of its second moment is constant: what is left is rounding: squares
of float32 numbers are exact to about 1e-14 of the second moment, and four digits more leave room for those of long chains."""

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
        self._read_by: dict[int, list[tuple[Layer, int]]] = defaultdict(list)
        for layer in context.channels.layers:
            for position, channel_id in enumerate(layer.in_ids.reshape(-1).tolist()):
                if channel_id:
                    self._read_by[channel_id].append((layer, position))

    def metric(self, layer: Layer) -> np.ndarray | None:
        """(out, out) float64, positive semi-definite; None where no layer that counts reads the output."""
        ids = layer.out_ids.reshape(-1)
        consumers: dict[str, tuple[Layer, list[tuple[int, int]]]] = {}
        for row, channel_id in enumerate(ids.tolist()):
            for consumer, position in self._read_by.get(channel_id, []):
                if self._node_index[consumer.key] > self._node_index[layer.key] and consumer.key in self._variance:
                    consumers.setdefault(consumer.key, (consumer, []))[1].append((row, position))
        if not consumers:
            return None
        total = np.zeros((len(ids), len(ids)))
        for consumer, pairs in consumers.values():
            rows, positions = np.array(pairs).T
            factor = self._consumer_count(consumer) / self._variance[consumer.key]
            products = self._weight_products(consumer)[np.ix_(positions, positions)]
            products *= factor
            if len(np.unique(rows)) == len(rows):
                total[np.ix_(rows, rows)] += products
            else:
                np.add.at(total, (rows[:, None], rows[None, :]), products)
        return total

    def _weight_products(self, layer: Layer) -> np.ndarray:
        """(in, in): W^T W of the scaled weight, summed over kernel positions; zero between the groups of a convolution."""
        if layer.key in self._products:
            return self._products[layer.key]
        weight = self._downstream[layer.key].scaled(layer.canonical(layer.stored_weight))
        groups, _, inputs, _ = weight.shape
        products = np.zeros((groups * inputs, groups * inputs))
        for g in range(groups):
            flat, own = weight[g].transpose(0, 2, 1).reshape(-1, inputs), slice(g * inputs, (g + 1) * inputs)
            products[own, own] = flat.T @ flat
        if products.nbytes + sum(each.nbytes for each in self._products.values()) <= HELD_BYTES:
            self._products[layer.key] = products
        return products

    def _consumer_count(self, layer: Layer) -> float:
        """How many layers read what this one writes, at least 1."""
        ids = np.unique(layer.out_ids).tolist()
        return float(max(1, len({consumer.key for channel_id in ids for consumer, _ in self._read_by.get(channel_id, [])})))


def _output_variances(reference: ReferenceStatistics) -> dict[str, float]:
    """Summed variance of the outputs of each layer of the reference, by key; none of layers that are too wide or constant."""
    output_variance = {}
    for key, layer in reference.layers.items():
        if key in reference.too_wide:
            continue
        covariance, variance, second_moment = reference.covariances[key], 0.0, 0.0
        for g, weight in enumerate(reference.downstream[key].scaled(layer.weight)):
            channels = layer.channel_of[g * layer.inputs_per_group : (g + 1) * layer.inputs_per_group]
            whole = len(channels) == len(covariance.xx) and (channels == np.arange(len(channels))).all()
            xx = covariance.xx if whole else covariance.xx[np.ix_(channels, channels)]
            variance += sum(float(np.sum((weight[:, :, p] @ xx) * weight[:, :, p])) for p in range(layer.kernel_size))
            second_moment += float(np.square(weight).sum((0, 2)) @ (np.diag(xx) + covariance.mean_x[channels] ** 2))
        if variance > CONSTANT_VARIANCE * second_moment:
            output_variance[key] = variance
    return output_variance
