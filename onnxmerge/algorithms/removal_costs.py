"""What removing each channel next costs, with and without making good for it; see `elimination` for the formulas.

Only the diagonals and one row of P and M are needed per step, so downdates are kept as thin factors and applied in blocks, to the
lower triangles alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.symmetric import invert, row_of, shrunk, subtract_product

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK, WIDE = 64, 4096
"""Removals between two applications of the collected downdates, twice as many from WIDE channels on; changes speed, not results.
Larger blocks make each step dearer, smaller ones read the matrices more often."""

CONSTANT = 1e-12
"""A channel whose variance is below this share of the largest one is constant up to rounding: it carries nothing."""

LEAST_PRECISION = 0.5
"""P[i, i] is never below 1 / (1 + damping) for a matrix with a unit diagonal; below this it is rounding."""


class RepairedCosts:
    """P = inverse(correlation + damping) and M = W^T W of consumers that read the same channels, with pending downdates."""

    def __init__(self, covariance: ArrayLike, products: Sequence[Floats], damping: float) -> None:
        given = np.asarray(covariance)
        deviation = _deviation(given)
        for product in products:
            product *= deviation / _variance(product, given)
            product *= deviation[:, None]
        self.metric = products[0]
        for other in products[1:]:
            self.metric += other
        self.precision = _inverse(given, deviation, damping)
        self._start_block()

    def _start_block(self) -> None:
        self.precision_diagonal = np.diag(self.precision).copy()
        self.metric_diagonal = np.diag(self.metric).copy()
        self.pending, self.rows = 0, np.zeros((3, BLOCK * (1 + (len(self.precision) >= WIDE)), len(self.precision)))

    def costs(self) -> Floats:
        """(n,) cost of removing each channel next."""
        return np.maximum(self.metric_diagonal, 0.0) / np.maximum(self.precision_diagonal, LEAST_PRECISION)

    def remove(self, i: int) -> None:
        """Compensate the removal of position i with all the others."""
        scaled, halves, ratios = self.rows[:, : self.pending]
        precision = row_of(self.precision, i) - scaled[:, i] @ scaled
        metric = row_of(self.metric, i) - halves[:, i] @ ratios - ratios[:, i] @ halves
        precision[i] = max(precision[i], LEAST_PRECISION)
        ratio = precision / precision[i]
        half = metric - 0.5 * metric[i] * ratio
        self.rows[:, self.pending] = precision / np.sqrt(precision[i]), half, ratio
        self.precision_diagonal -= self.rows[0, self.pending] ** 2
        self.metric_diagonal -= 2.0 * half * ratio
        self.pending += 1

    @property
    def is_full(self) -> bool:
        """Whether no more can be pending."""
        return bool(self.pending == self.rows.shape[1])

    def apply(self) -> None:
        """Apply what is pending."""
        scaled, halves, ratios = self.rows[:, : self.pending]
        subtract_product(self.precision, scaled, scaled)
        subtract_product(self.metric, np.concatenate([halves, ratios]), np.concatenate([ratios, halves]))
        self._start_block()

    def forget(self, alive: Integers) -> None:
        """Keep these positions alone; nothing is pending."""
        self.precision, self.metric = shrunk(self.precision, alive), shrunk(self.metric, alive)
        self._start_block()


class UnrepairedCosts:
    """A consumer that nothing is made good of: E|y - y'|^2 is the sum of `products` (n, n) over all pairs of removed channels."""

    def __init__(self, products: Floats) -> None:
        self.products = products / max(float(products.sum()), np.finfo(float).tiny)
        self.crossed, self.pending = np.zeros(len(products)), 0

    def costs(self) -> Floats:
        """(n,) cost of removing each channel next."""
        return np.maximum(np.diag(self.products) + 2.0 * self.crossed, 0.0)

    def remove(self, i: int) -> None:
        """Remove position i."""
        self.crossed = self.crossed + self.products[i]
        self.pending += 1

    @property
    def is_full(self) -> bool:
        """Whether it is time to `apply` and `forget`."""
        return self.pending >= BLOCK

    def apply(self) -> None:
        """Apply what is pending: nothing is."""
        self.pending = 0

    def forget(self, alive: Integers) -> None:
        """Keep these positions alone."""
        self.products, self.crossed = self.products[np.ix_(alive, alive)], self.crossed[alive]


def _inverse(covariance: Floats, deviation: Floats, damping: float) -> Floats:
    """Lower triangle of the inverse of the correlation matrix, damped until it is positive definite."""
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0.0)
    correlation = np.empty(covariance.shape)
    while True:
        np.multiply(covariance, inverse, out=correlation)
        correlation *= inverse[:, None]
        np.fill_diagonal(correlation, 1.0 + damping)
        try:
            return invert(correlation)
        except np.linalg.LinAlgError:
            if damping >= 1.0:  # then it is positive definite, whatever rounding did to it
                raise
            damping = 10.0 * max(damping, np.finfo(float).eps)


def _deviation(covariance: Floats) -> Floats:
    """Standard deviation (n,), zero for dead channels."""
    variance = np.maximum(np.diag(covariance).astype(np.float64), 0.0)
    live = variance > CONSTANT * max(float(variance.max(initial=0.0)), np.finfo(float).tiny)
    return np.where(live, np.sqrt(variance), 0.0)


def _variance(products: Floats, covariance: Floats) -> float:
    """The output variance of a consumer, infinite instead of zero."""
    variance = float(np.einsum("ij,ij->", products, covariance))
    return variance if variance > np.finfo(float).tiny else np.inf
