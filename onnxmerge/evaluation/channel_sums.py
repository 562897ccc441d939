"""Running sums of one tensor of both models, channel by channel, float64 inside: how far apart, and who is whose twin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

_SAME = 1e-5  # relative, of sums that belong to the same channel


@dataclass
class ChannelSums:
    """axis: of the channels. For each channel: sums of both, of their squares, of the squared difference."""

    axis: int
    exact: bool = True
    finite: bool = True
    count: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros((5, 1)))

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Two arrays of one shape. Where the reference is not finite nothing is compared."""
        self.exact = self.exact and np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f")
        one, other = self._rows(expected), self._rows(found)
        valid = np.isfinite(one)
        self.finite = self.finite and bool(np.isfinite(other[valid]).all())
        one, other = (np.where(valid & np.isfinite(other), array, 0.0) for array in (one, other))
        parts = (one, other, one**2, other**2, (other - one) ** 2)
        self.sums = self.sums + np.stack([part.sum(axis=1) for part in parts])
        self.count += one.shape[1]

    def _rows(self, array: np.ndarray) -> np.ndarray:
        """(channels, everything else)."""
        if array.ndim < 2:
            return array.reshape(1, -1).astype(np.float64)
        channels = array.shape[self.axis]
        return np.moveaxis(array, self.axis, 0).reshape(channels, -1).astype(np.float64)

    @property
    def error(self) -> float:
        """Relative L2 error |y - y'| / |y| of the whole tensor; infinite where only the candidate is not finite."""
        if not self.finite:
            return math.inf
        error, energy = float(self.sums[4].sum()), float(self.sums[2].sum())
        return 0.0 if error == 0.0 else math.sqrt(error / energy) if energy > 0.0 else math.inf

    def same_as(self, other: ChannelSums) -> bool:
        """Whether the candidate's tensor here is what the reference has there."""
        mine, theirs = self.sums[[1, 3]], other.sums[[0, 2]]
        return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=_SAME, atol=_SAME * _size(theirs))

    def permutation(self) -> dict[int, int]:
        """Candidate's channel -> the reference's channel that it holds, for channels out of place; empty unless all fit."""
        reference, candidate = self.sums[[0, 2]].T, self.sums[[1, 3]].T
        tolerance = _SAME * np.abs(reference) + 1e-12
        misplaced = np.flatnonzero((np.abs(candidate - reference) > tolerance).any(axis=1))
        free, moved = list(misplaced), {}
        for channel in misplaced:
            gaps = [float(np.abs(candidate[channel] - reference[other]).sum()) for other in free]
            twin = free.pop(int(np.argmin(gaps)))
            if (np.abs(candidate[channel] - reference[twin]) > 100 * tolerance[twin]).any():
                return {}
            moved[int(channel)] = int(twin)
        return moved


def _size(sums: np.ndarray) -> float:
    return float(np.abs(sums).max(initial=0.0)) * 1e-3
