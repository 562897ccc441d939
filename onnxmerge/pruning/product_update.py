"""Queries and keys that lose channels: what their logits lose, and the layers that write them with another basis.

Where both factors are linear in layers, these take in the best basis of fewer channels (`algorithms/product_bases.py`); where not
(rotary positions), nothing makes good what goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.algorithms.product_bases import ProductBasis, product_basis
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.product_factors import LinearFactor, channels_of_rows, constant_behind
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.onnxio.edits import in_range
from onnxmerge.pruning.consumer_update import bias_of
from onnxmerge.statistics.product_moments import ProductMoments


@dataclass(frozen=True, eq=False)
class GroupProduct:
    """A product that sums over channels of a group, with its moments.

    Attributes
    ----------
    rows : ndarray of shape (rows, k)
        Channels of the group, -1 for others.
    moments : ProductMoments
        Of the product.
    """

    rows: np.ndarray
    moments: ProductMoments

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """For each key of one head or of several: its channels (k,), the rows, moments of queries, covariance of the key."""
        blocks, number = np.unique(self.rows, axis=0, return_inverse=True)
        for at, channels in enumerate(blocks):
            rows = np.flatnonzero(number.reshape(-1) == at)
            yield channels, rows, self.moments.query[rows].sum(0), self.moments.key[rows].mean(0)

    def elimination_terms(self, count: int) -> np.ndarray:
        """(count, count): the logits lose the sum over the channels that go; of a new basis the strongest takes the strongest's
        place."""
        if self.moments.factors is None:
            return self._summed_logits(count)
        products = np.zeros((count, count))
        for channels, _, query, key in self.blocks():
            energy = query * key
            strongest = channels[np.argsort(-np.diag(energy), kind="stable")]
            products[strongest, strongest] = product_basis(query, key).share * max(float(energy.sum()), 0.0)
        return products

    def share_lost(self, removal: Removal) -> float:
        """The share of the second moment of the logits that a removal costs."""
        removed = np.setdiff1d(np.arange(removal.group.size), removal.kept)
        if removal.method != "reconstruct" or self.moments.factors is None:
            logits = self._summed_logits(removal.group.size)
            return float(logits[np.ix_(removed, removed)].sum() / max(float(logits.sum()), np.finfo(float).tiny))
        lost, total = 0.0, np.finfo(float).tiny
        for channels, _, query, key in self.blocks():
            size, kept = float(np.sum(query * key)), int(np.isin(channels, removal.kept).sum())
            lost, total = lost + size * float(product_basis(query, key).share[kept:].sum()), total + size
        return lost / total

    def _summed_logits(self, count: int) -> np.ndarray:
        """(count, count): what is lost is the sum over the channels that go."""
        summed = np.zeros((count + 1, count + 1))
        np.add.at(summed, (self.rows[:, :, None], self.rows[:, None, :]), self.moments.logits)
        return summed[:-1, :-1]


@dataclass(frozen=True, eq=False)
class OutputMix:
    """New outputs of a layer as mixtures of the old ones.

    Attributes
    ----------
    layer : Layer
        The layer.
    blocks : dict
        Positions (k,) on the layer's flattened outputs, as bytes -> these, and the map (k, k) with an output in each column.
    zeros : list of ndarray
        Positions of outputs that are removed, with nothing in their place.
    """

    layer: Layer
    blocks: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    zeros: list[np.ndarray] = field(default_factory=list)

    def applied(self, channels: Channels, replacement: Replacement | None) -> Replacement:
        """The layer with mixed outputs; replacement: what it is replaced by already."""
        stored = self.layer.stored_weight if replacement is None else replacement.weight
        weight = self.layer.canonical(stored).astype(np.float64)
        rows, behind = weight.reshape(self.layer.out_ids.size, -1), constant_behind(channels, self.layer)
        own = bias_of(channels, self.layer)
        bias = own + behind + (0.0 if replacement is None or replacement.bias is None else replacement.bias)
        mixed, mixed_bias = rows.copy(), bias.copy()
        for positions, mixture in self.blocks.values():
            mixed[positions], mixed_bias[positions] = mixture.T @ rows[positions], mixture.T @ bias[positions]
        for positions in self.zeros:
            mixed[positions], mixed_bias[positions] = 0.0, 0.0
        return Replacement(in_range(self.layer.stored(mixed.reshape(weight.shape)), stored.dtype), mixed_bias - own - behind)


def group_products(channels: Channels, group: ChannelGroup, moments: Mapping[str, ProductMoments]) -> list[GroupProduct]:
    """The products that sum over channels of a group; moments: of all products, by key."""
    return [GroupProduct(channels_of_rows(channels, group, product), moments[product.key]) for product in group.products]


def output_mixes(channels: Channels, removals: Sequence[Removal], moments: Mapping[str, ProductMoments]) -> dict[str, OutputMix]:
    """By key, the layers that write queries and keys of which some are removed."""
    mixes: dict[str, OutputMix] = {}
    for removal in removals:
        for product in group_products(channels, removal.group, moments):
            removed = np.setdiff1d(product.rows[product.rows >= 0], removal.kept)
            if removal.method == "reconstruct" and product.moments.factors is not None:
                for positions, mixture, layer in _mixtures(product, product.moments.factors, removal):
                    mix = mixes.setdefault(layer.key, OutputMix(layer))
                    mix.blocks[positions.tobytes()] = positions, mixture
            else:
                for producer in [each for each in removal.group.producers if each.layer.is_linear]:
                    positions = producer.positions[removed]
                    mix = mixes.setdefault(producer.key, OutputMix(producer.layer))
                    mix.zeros.append(positions[positions >= 0])
    return mixes


def _mixtures(
    product: GroupProduct, factors: tuple[LinearFactor, LinearFactor], removal: Removal
) -> Iterator[tuple[np.ndarray, np.ndarray, Layer]]:
    """Positions (k,), the map (k, k) of them and the layer, for every head of both factors; zeros for removed channels."""
    for channels, rows, query, key in product.blocks():
        kept = np.flatnonzero(np.isin(channels, removal.kept))
        basis = product_basis(query, key)
        for factor, columns in zip(factors, _in_order(basis, query, len(kept)), strict=True):
            mixture = np.zeros_like(query)
            mixture[:, kept] = columns
            for row in rows:
                yield factor.positions[row], mixture, factor.layer


def _in_order(basis: ProductBasis, query_moments: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first channels of a basis, in the order of the old ones that they are most like."""
    query, key = basis.query[:, :count], basis.key[:, :count]
    order = np.argsort(np.abs(query * np.sqrt(np.diag(query_moments))[:, None]).argmax(0), kind="stable")
    return query[:, order], key[:, order]
