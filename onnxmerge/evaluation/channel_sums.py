"""Running sums of one tensor of both models, channel by channel: how far apart they are, and which channels were permuted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

_SAME = 1e-5  # relative difference of sums of the same channel: float32 rounding


@dataclass
class ChannelSums:
    """Sums of one tensor of both models, in float64.

    Attributes
    ----------
    axis : of the channels
    exact : whether all values were equal to the bit
    finite : whether the candidate was finite wherever the reference was
    count : values of one channel so far
    sums : (5, channels) of reference, candidate, their squares, and the squared difference
    """

    axis: int
    exact: bool = True
    finite: bool = True
    count: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros((5, 1)))

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add two arrays of one shape. Values where the reference is not finite are left out."""
        self.exact = self.exact and np.array_equal(reference, candidate, equal_nan=reference.dtype.kind == "f")
        one, other = self._rows(reference), self._rows(candidate)
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
        """Whether the candidate's tensor here has the sums of the reference's tensor there."""
        mine, theirs = self.sums[[1, 3]], other.sums[[0, 2]]
        tolerance = _SAME * 1e-3 * float(np.abs(theirs).max(initial=0.0))
        return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=_SAME, atol=tolerance)

    def permutation(self) -> dict[int, int]:
        """Reference channel that each misplaced candidate channel holds; empty unless all of them are found."""
        reference, candidate = self.sums[[0, 2]].T, self.sums[[1, 3]].T
        tolerance = _SAME * np.abs(reference) + 1e-12
        misplaced = np.flatnonzero((np.abs(candidate - reference) > tolerance).any(axis=1))
        free, originals = list(misplaced), {}
        for channel in misplaced:
            gaps = [float(np.abs(candidate[channel] - reference[other]).sum()) for other in free]
            original = free.pop(int(np.argmin(gaps)))
            if (np.abs(candidate[channel] - reference[original]) > 100 * tolerance[original]).any():
                return {}
            originals[int(channel)] = int(original)
        return originals
