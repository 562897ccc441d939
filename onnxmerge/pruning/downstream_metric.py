"""How much an error in a layer's output matters to the layers that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.graph.layers import Layer


class OutputErrorMetric:
    """How much an error in each output channel of a weighted node moves what reads it: one step ahead, linearised.

    The metric of a node is S^T S with S = sum over its readers of V_c diag(a) / std(V_c x), V_c the reader's weights, a the scale
    of the BatchNormalizations between; a reader that itself is read by many counts for as many.
    """

    def __init__(
        self,
        channels: Channels,
        order: Mapping[str, int],
        output_variance: Mapping[str, float],
        downstream: Mapping[str, DownstreamAffine],
    ) -> None:
        self._order, self._variance, self._outlooks = order, output_variance, downstream
        self._readers: dict[int, list[tuple[Layer, int]]] = defaultdict(list)
        for layer in channels.layers:
            for place, channel in enumerate(layer.in_ids.reshape(-1).tolist()):
                if channel:
                    self._readers[channel].append((layer, place))

    def metric(self, layer: Layer) -> np.ndarray | None:
        """(out, out) float64, positive semi-definite; None where nothing is known (the output is pinned)."""
        ids = layer.out_ids.reshape(-1)
        readers: dict[str, tuple[Layer, list[tuple[int, int]]]] = {}
        for row, channel in enumerate(ids.tolist()):
            for reader, place in self._readers.get(channel, []):
                if self._order[reader.key] > self._order[layer.key] and reader.key in self._variance:
                    readers.setdefault(reader.key, (reader, []))[1].append((row, place))
        if not readers:
            return None
        total = np.zeros((len(ids), len(ids)))
        for reader, pairs in readers.values():
            rows, places = np.array(pairs).T
            part = self._reading(reader)[np.ix_(places, places)] * (self._weight(reader) / self._variance[reader.key])
            np.add.at(total, (rows[:, None], rows[None, :]), part)
        return total

    def _reading(self, layer: Layer) -> np.ndarray:
        """(in, in): sum over outputs and kernel positions of products of two inputs' weights."""
        weight = self._outlooks[layer.key].scaled(layer.canonical(layer.stored_weight))
        groups, _, inside, _ = weight.shape
        result = np.zeros((groups * inside, groups * inside))
        for g in range(groups):
            flat = weight[g].transpose(0, 2, 1).reshape(-1, inside)
            result[g * inside : (g + 1) * inside, g * inside : (g + 1) * inside] = flat.T @ flat
        return result

    def _weight(self, layer: Layer) -> float:
        """How many nodes read what this reader writes, at least 1."""
        found = {other.key for channel in np.unique(layer.out_ids).tolist() for other, _ in self._readers.get(channel, [])}
        return float(max(1, len(found)))
