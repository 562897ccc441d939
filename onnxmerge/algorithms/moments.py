"""First and second moments of samples: sums that add up over batches and shards, and the covariances that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MomentSums:
    """Sums over samples of inputs x (d,) and targets y (o,), float64.

    Where something near the means was subtracted from the samples, `covariance` adds it to the means again.

    Attributes
    ----------
    count : number of samples
    sum_x : (d,), sum of x
    sum_y : (o,), sum of y
    xx : (d, d), sum of x x^T, or of no shape where it was not wanted
    xy : (d, o), sum of x y^T
    yy : (o,), sum of y^2

    Examples
    --------
    >>> MomentSums.of([[1.0], [3.0], [5.0]], [[0.0], [4.0], [8.0]]).covariance().xx
    array([[2.66666667]])
    """

    count: float
    sum_x: Floats
    sum_y: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @staticmethod
    def of(inputs: ArrayLike, targets: ArrayLike) -> MomentSums:
        """The sums of samples in memory.

        Parameters
        ----------
        inputs : (samples, d)
        targets : (samples, o)

        Returns
        -------
        MomentSums
        """
        x, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
        return MomentSums(float(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum(0))

    @np.errstate(over="ignore", invalid="ignore")  # callers refuse what is not finite
    def covariance(self, by_x: Floats | float = 0.0, by_y: Floats | float = 0.0) -> Covariance:
        """Means and covariances of the samples (divided by their number, not by one less) of x + by_x and y + by_y.

        The covariance of x takes the place of the sum `xx`, which is spent: of the largest layers it takes gigabytes.
        """
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        xx = np.divide(self.xx, self.count, out=self.xx)
        for row, mean in zip(xx if xx.ndim else (), mean_x, strict=False):
            row -= mean * mean_x
        return Covariance(
            count=self.count,
            mean_x=mean_x + by_x,
            mean_y=mean_y + by_y,
            xx=xx,
            xy=self.xy / self.count - np.outer(mean_x, mean_y),
            variance_y=np.maximum(self.yy / self.count - mean_y**2, 0.0),
        )


@dataclass(frozen=True)
class Covariance:
    """Means and covariances of inputs x (d,) and targets y (o,), float64.

    Attributes
    ----------
    count : number of samples
    mean_x : (d,)
    mean_y : (o,)
    xx : (d, d), covariance of x
    xy : (d, o), covariance of x with y
    variance_y : (o,)
    """

    count: float
    mean_x: Floats
    mean_y: Floats
    xx: Floats
    xy: Floats
    variance_y: Floats


def pooled_covariance(counts: Sequence[float], parts: Sequence[Covariance]) -> Covariance:
    """Means and covariances of all samples from those of parts of them.

    With shares p of the samples and means m, cov = sum p (cov_part + (m_part - m) (m_part - m)^T): Chan, Golub, LeVeque,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Parameters
    ----------
    counts : number of samples in each part
    parts : the moments of each part

    Returns
    -------
    Covariance

    Examples
    --------
    >>> parts = [MomentSums.of(x, x).covariance() for x in ([[1.0], [3.0]], [[5.0]])]
    >>> pooled_covariance([2, 1], parts).xx
    array([[2.66666667]])
    """
    shares = np.asarray(counts, np.float64) / float(np.sum(counts))
    mean_x = sum(share * part.mean_x for share, part in zip(shares, parts, strict=True))
    mean_y = sum(share * part.mean_y for share, part in zip(shares, parts, strict=True))
    xx, xy, variance = (np.zeros(value.shape) for value in (parts[0].xx, parts[0].xy, parts[0].variance_y))
    for share, part in zip(shares, parts, strict=True):
        by_x, by_y = part.mean_x - mean_x, part.mean_y - mean_y
        xx += share * (part.xx + np.outer(by_x, by_x))
        xy += share * (part.xy + (np.outer(by_x, by_y) if part.xy.size else 0.0))
        variance += share * (part.variance_y + by_y**2)
    return Covariance(sum(part.count for part in parts), np.asarray(mean_x), np.asarray(mean_y), xx, xy, variance)
