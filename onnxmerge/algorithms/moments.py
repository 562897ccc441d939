"""First and second moments of samples: sums that add up over batches and shards, and what they say when centred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MomentSums:
    """Sums over samples of inputs x (d) and targets y (o), float64; they add over batches and shards.

    count: number of samples. sum_x (d,), sum_y (o,), xx (d, d) = sum x x^T, xy (d, o) = sum x y^T, yy (o,) = sum y^2.
    """

    count: float
    sum_x: Floats
    sum_y: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @staticmethod
    def of(inputs: ArrayLike, targets: ArrayLike) -> MomentSums:
        """Moments of samples in memory: inputs (samples, d), targets (samples, o)."""
        x, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
        return MomentSums(float(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum(0))

    def __add__(self, other: MomentSums) -> MomentSums:
        return MomentSums(
            self.count + other.count,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def of_inputs(self, chosen: ArrayLike) -> MomentSums:
        """Those of the inputs chosen (k,) alone, against the same targets."""
        places = np.asarray(chosen)
        xx = self.xx[np.ix_(places, places)]
        return MomentSums(self.count, self.sum_x[places], self.sum_y, xx, self.xy[places], self.yy)

    def moved(self, by_x: ArrayLike, by_y: ArrayLike) -> MomentSums:
        """The moments of x + by_x (d,) and y + by_y (o,)."""
        x, y, n = np.asarray(by_x, np.float64), np.asarray(by_y, np.float64), self.count
        return MomentSums(
            n,
            self.sum_x + n * x,
            self.sum_y + n * y,
            self.xx + np.outer(self.sum_x, x) + np.outer(x, self.sum_x) + n * np.outer(x, x),
            self.xy + np.outer(self.sum_x, y) + np.outer(x, self.sum_y) + n * np.outer(x, y),
            self.yy + 2.0 * y * self.sum_y + n * y * y,
        )

    def covariance(self) -> Covariance:
        """Means and covariances."""
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        xx = self.xx / self.count - np.outer(mean_x, mean_x)
        return Covariance(
            mean_x=mean_x,
            mean_y=mean_y,
            xx=0.5 * (xx + xx.T),
            xy=self.xy / self.count - np.outer(mean_x, mean_y),
            variance_y=np.maximum(self.yy / self.count - mean_y**2, 0.0),
        )


@dataclass(frozen=True)
class Covariance:
    """mean_x (d,), mean_y (o,), xx (d, d) = cov(x), xy (d, o) = cov(x, y), variance_y (o,)."""

    mean_x: Floats
    mean_y: Floats
    xx: Floats
    xy: Floats
    variance_y: Floats

    def residual(self, weight: Floats) -> Floats:
        """(o,) variance of y - weight x, for a weight (o, d)."""
        cross = np.einsum("od,do->o", weight, self.xy)
        residual: Floats = np.maximum(self.variance_y - 2.0 * cross + self.explained(weight), 0.0)
        return residual

    def explained(self, weight: Floats) -> Floats:
        """(o,) variance of weight x."""
        explained: Floats = np.maximum(np.einsum("od,od->o", weight @ self.xx, weight), 0.0)
        return explained


def pooled_covariance(counts: Sequence[float], parts: Sequence[Covariance]) -> Covariance:
    """Means and covariances of all samples from those of parts with so many samples each (Chan, Golub, LeVeque 1979)."""
    shares = np.asarray(counts, np.float64) / float(np.sum(counts))
    mean_x = sum(share * part.mean_x for share, part in zip(shares, parts, strict=True))
    mean_y = sum(share * part.mean_y for share, part in zip(shares, parts, strict=True))
    xx, xy, variance = (np.zeros_like(value) for value in (parts[0].xx, parts[0].xy, parts[0].variance_y))
    for share, part in zip(shares, parts, strict=True):
        by_x, by_y = part.mean_x - mean_x, part.mean_y - mean_y
        xx += share * (part.xx + np.outer(by_x, by_x))
        xy += share * (part.xy + (np.outer(by_x, by_y) if part.xy.size else 0.0))
        variance += share * (part.variance_y + by_y**2)
    return Covariance(np.asarray(mean_x), np.asarray(mean_y), xx, xy, variance)
