"""What a group's consumers are expected to lose by a removal: the estimate by which method `auto` chooses."""

import numpy as np

from onnxmerge.algorithms.elimination import weight_products
from onnxmerge.algorithms.least_squares import mixing
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal
from onnxmerge.pruning.importance import group_covariance
from onnxmerge.pruning.product_update import group_products
from onnxmerge.statistics.reference_run import ReferenceStatistics

BLOCK = 512
"""Columns of a covariance that are multiplied at a time."""


class ExpectedErrors:
    """The expected errors of one group, for any of its removals.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    group : ChannelGroup
        The channel group, n channels.
    reference : ReferenceStatistics
        Covariances of what each consumer reads, and moments of products.
    """

    def __init__(self, channels: Channels, group: ChannelGroup, reference: ReferenceStatistics) -> None:
        self._products = group_products(channels, group, reference.products)
        self._consumers = []
        self._known: dict[tuple[str, bytes], float] = {}
        for consumer in group.consumers:
            columns = consumer.columns()
            few = len(columns) * columns.shape[2] < group.size
            seen = np.moveaxis(columns, 2, 1).reshape(-1, group.size) if few else weight_products(columns)
            self._consumers.append((group_covariance(reference, group, consumer), seen))

    @property
    def size_bytes(self) -> int:
        """Memory of the matrices that are held for every consumer."""
        return sum(covariance.nbytes + seen.nbytes for covariance, seen in self._consumers)

    def of(self, removal: Removal) -> float:
        """Mean over the consumers of E|W x - W Z x[kept] - c|^2 / E|W x - E W x|^2, with the best constant c.

        A product that sums over the channels is one more, see `GroupProduct.share_lost`.
        Z (n, k) is the scaling matrix of `merge`, the channel mixing of `reconstruct`, and the identity on kept channels for
        `prune`. With D = x - Z x[kept], which is zero for kept channels, the numerator is trace(W^T W cov(D)).

        Parameters
        ----------
        removal : Removal
            Of channels of the group; `kept`, `method` and `scaling` are read.

        Returns
        -------
        float
            A share of the variance, above 1 where the removal is worse than a constant; 0 where nothing reads the group.
        """
        key = removal.method, removal.kept.tobytes()
        if key not in self._known:
            shares = [_share_lost(removal, *matrices) for matrices in self._consumers]
            shares += [product.share_lost(removal) for product in self._products]
            self._known[key] = float(np.mean(shares)) if shares else 0.0
        return self._known[key]


def _share_lost(removal: Removal, covariance: np.ndarray, seen: np.ndarray) -> float:
    """Of one consumer; seen: W (o, n) where it has fewer outputs than inputs, else W^T W (n, n)."""
    kept = removal.kept
    removed = np.setdiff1d(np.arange(len(covariance)), kept)
    rows = None if removal.scaling is None else removal.scaling[removed]
    if removal.method == "reconstruct" and len(kept):
        rows = mixing(covariance, kept)
    if len(seen) < len(covariance):
        lost = seen.copy()
        lost[:, kept] = 0.0 if rows is None else -seen[:, removed] @ rows
        return _output_variance(lost, covariance) / max(_output_variance(seen, covariance), np.finfo(float).tiny)
    error = covariance[np.ix_(removed, removed)]
    if rows is not None:
        crossed = rows @ covariance[np.ix_(kept, removed)]
        error = error - crossed - crossed.T + rows @ covariance[np.ix_(kept, kept)] @ rows.T
    variance = max(float(np.einsum("ij,ij->", seen, covariance)), np.finfo(float).tiny)
    return float(np.sum(seen[np.ix_(removed, removed)] * error)) / variance


def _output_variance(weight: np.ndarray, covariance: np.ndarray) -> float:
    """trace(W C W^T), a few columns of C at a time: of the widest layers a float64 copy takes gigabytes."""
    blocks = (slice(start, start + BLOCK) for start in range(0, len(covariance), BLOCK))
    return sum(float(np.vdot(weight @ covariance[:, own].astype(np.float64), weight[:, own])) for own in blocks)
