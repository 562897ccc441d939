"""Which channels go: backward elimination with the exact cost of each removal.

For one consumer y = W x with covariance C of x, let P = inverse(C) and M = W^T W. Removing channel i and compensating
with the channels that are left, as well as they can, adds M[i, i] / P[i, i] to E|y - y'|^2; afterwards

    r = P[:, i] / P[i, i],  q = M[:, i],  P <- P - P[i, i] r r^T,
    W <- W - W[:, i] r^T,   so M <- M - q r^T - r q^T + M[i, i] r r^T

(optimal brain surgeon: Hassibi, Stork, Wolff, "Optimal Brain Surgeon and General Network Pruning", 1993, on activations).
Consumers that read the same channels share P, and their M are added (`removal_costs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.removal_costs import RepairedCosts, UnrepairedCosts

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DAMPING = 1e-4
"""Added to the diagonal of the correlation matrix: the share of variance of its own that every channel is taken to have. It
bounds the weights of the compensation; without it a mixture of other channels could be removed with any error in them."""

DEAD_SHARE = 8
"""Removed channels are forgotten when they are one in so many: that copies the matrices."""


@dataclass(frozen=True)
class Elimination:
    """A removal order and its error curve.

    Attributes
    ----------
    order : ndarray of shape (r,), int
        Channels, first removed first.
    cost : ndarray of shape (r,)
        Not falling: the share of the consumers' output variance (mean over the consumers, 0 to 1) that is lost once
        order[: j + 1] are gone and the rest compensates as well as it can.
    """

    order: Integers
    cost: Floats


def eliminate(
    consumers: Sequence[tuple[ArrayLike | None, Floats]],
    removable: ArrayLike | None = None,
    conv_groups: ArrayLike | None = None,
    damping: float = DAMPING,
) -> Elimination:
    """Order in which channels go, jointly over all the consumers that read them; O(n^3) a consumer.

    Parameters
    ----------
    consumers : sequence of pairs
        For each consumer the covariance (n, n) of the channels as it reads them, and M = W^T W (n, n) of its weights, see
        `weight_products`, which is overwritten. Each consumer counts as a share of its own output variance, so none dominates.
        None as a covariance: nothing is made good, and what is lost is the sum of M over all pairs of removed channels.
    removable : array_like of shape (n,), bool, optional
        All by default.
    conv_groups : array_like of shape (n,), int, optional
        Groups of a grouped convolution. Of each the same number goes, so the order is balanced at every multiple of the number of
        groups and ends where one of them has no channel left.
    damping : float
        See `DAMPING`.

    Returns
    -------
    Elimination

    Examples
    --------
    The second channel repeats the first, the third carries most:

    >>> covariance = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    >>> found = eliminate([(covariance, np.ones((3, 3)))])
    >>> found.order.tolist(), found.cost.round(3).tolist()
    ([0, 1, 2], [0.0, 0.308, 1.0])
    """
    states, n = _removal_costs(consumers, damping), len(consumers[0][1])
    allowed = np.ones(n, bool) if removable is None else np.array(removable, bool)
    turns = _Turns(allowed, np.zeros(n, np.int64) if conv_groups is None else np.asarray(conv_groups))
    channels, alive = np.arange(n), np.ones(n, bool)
    order: list[int] = []
    cost: list[float] = []
    while (may_go := turns.may_go()).any():
        candidates = may_go[channels] & alive
        total = np.where(candidates, sum(state.costs() for state in states), np.inf)
        i = int(np.argmin(total))
        for state in states:
            state.remove(i)
        alive[i] = False
        turns.take(int(channels[i]))
        order.append(int(channels[i]))
        cost.append(float(total[i]) / len(consumers))
        if any(state.is_full for state in states):
            for state in states:
                state.apply()
            if DEAD_SHARE * int(alive.sum()) <= (DEAD_SHARE - 1) * len(alive):
                for state in states:
                    state.forget(np.flatnonzero(alive))
                channels, alive = channels[alive], np.ones(int(alive.sum()), bool)
    return Elimination(np.array(order, np.int64), np.cumsum(np.array(cost, np.float64)))


def _removal_costs(consumers: Sequence[tuple[ArrayLike | None, Floats]], damping: float) -> list[RepairedCosts | UnrepairedCosts]:
    """What removals cost: consumers that read one covariance share its inverse."""
    products: dict[int, list[Floats]] = {}
    read: dict[int, ArrayLike] = {}
    costs: list[RepairedCosts | UnrepairedCosts] = []
    for covariance, product in consumers:
        if covariance is None:
            costs.append(UnrepairedCosts(product))
        else:
            read[id(covariance)] = covariance
            products.setdefault(id(covariance), []).append(product)
    return costs + [RepairedCosts(read[key], each, damping) for key, each in products.items()]


def eliminate_independent(score: ArrayLike, removable: ArrayLike, conv_groups: ArrayLike) -> Elimination:
    """The removal order where no channel can make good for another one, and each costs its score (n,); see `eliminate`."""
    left = np.array(score, np.float64)
    turns = _Turns(np.array(removable, bool), np.asarray(conv_groups))
    order: list[int] = []
    while (may_go := turns.may_go()).any():
        order.append(int(np.argmin(np.where(may_go, left, np.inf))))
        turns.take(order[-1])
    return Elimination(np.array(order, np.int64), np.cumsum(left[order]))


def kept_after(elimination: Elimination, n: int, count: int) -> Integers:
    """The channels that stay when the first ones of a removal order go.

    Parameters
    ----------
    elimination : Elimination
    n, count : int
        Channels before and after.

    Returns
    -------
    ndarray of shape (count,)
        Ascending.

    Raises
    ------
    ValueError
        Where the order does not remove as many.

    Examples
    --------
    >>> kept_after(Elimination(np.array([2, 0]), np.array([0.1, 0.3])), n=4, count=3)
    array([0, 1, 3])
    """
    removed = n - count
    if not 0 <= removed <= len(elimination.order):
        raise ValueError(f"cannot keep {count} of {n} channels: {len(elimination.order)} may be removed")
    return np.setdiff1d(np.arange(n), elimination.order[:removed])


class _Turns:
    """Which channels may go next: one of every group of the convolution before any group gives a second one."""

    def __init__(self, allowed: NDArray[np.bool_], conv_groups: NDArray[np.int64]) -> None:
        self.allowed = allowed
        self.conv_groups = np.unique(conv_groups, return_inverse=True)[1]
        self.count = int(self.conv_groups.max()) + 1
        self.waiting = np.zeros(self.count, bool)
        self._next_round()

    def _next_round(self) -> None:
        remaining = np.bincount(self.conv_groups[self.allowed], minlength=self.count)
        self.waiting[:] = bool((remaining > 0).all())

    def may_go(self) -> NDArray[np.bool_]:
        """(n,) bool: channels that may go next."""
        return self.allowed & self.waiting[self.conv_groups]

    def take(self, channel: int) -> None:
        """Note that a channel went."""
        self.allowed[channel] = False
        self.waiting[self.conv_groups[channel]] = False
        if not self.waiting.any():
            self._next_round()


def weight_products(
    weights: ArrayLike, scale: ArrayLike | None = None, metric: ArrayLike | None = None, factor: ArrayLike | None = None
) -> Floats:
    """M = W^T W of a consumer for `eliminate`, in which an output counts by what comes after it.

    e^T M e = sum over kernel positions of (S W e)^T metric (S W e): an error e of the inputs, as the consumers of the outputs see
    it when the activation between is taken as linear.

    Parameters
    ----------
    weights : array_like of shape (o, n, *kernel)
        W.
    scale : array_like of shape (o,), optional
        S, of a BatchNormalization that follows (gamma / its standard deviation).
    metric : array_like of shape (o, o), optional
        How errors in the outputs matter further on, positive semi-definite; the identity where it and `factor` are None.
    factor : array_like of shape (r, o), optional
        F, where F^T F is to be added to the metric.

    Returns
    -------
    ndarray of shape (n, n)

    Examples
    --------
    >>> weight_products(np.ones((2, 3, 1)), scale=[1.0, 0.5])[0]
    array([1.25, 1.25, 1.25])
    """
    given = np.asarray(weights, np.float64)
    scaled = given if scale is None else given * np.asarray(scale, np.float64).reshape(-1, *[1] * (given.ndim - 1))
    rows = np.moveaxis(scaled.reshape(*scaled.shape[:2], -1), 1, 2)
    count = rows.shape[2]
    if metric is None or factor is not None:
        flat = rows if factor is None else np.asarray(factor, np.float64) @ rows.reshape(len(rows), -1)
        flat = flat.reshape(-1, count)
        products = np.asarray(flat.T @ flat)
    if metric is not None:
        seen = np.asarray(metric, np.float64) @ rows.reshape(len(rows), -1)
        by_metric = np.asarray(rows.reshape(-1, count).T @ seen.reshape(-1, count))
        products = by_metric if factor is None else products + by_metric
    return products
