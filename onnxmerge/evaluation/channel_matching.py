"""Which reference channel each channel of a candidate is, by correlation, where channels were removed.

Removing channels keeps the others in their order and their sign, whatever was fitted behind them. A channel counts only where its
twin is beyond doubt: correlation above CERTAIN, and every other reference channel MARGIN below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MIN_CORRELATION, MIN_MARGIN = 0.9, 0.1
MAX_CHANNEL_PAIRS = 1 << 20  # of channels of one tensor: what their products take is bounded
MIN_VALUES = 256  # of one channel, for a correlation to mean something
_MIN_MATCHES = 4
NOT_FINITE = "gives NaN or infinity"


@dataclass
class ChannelCorrelation:
    """Sums of one tensor of both models for every pair of channels, float64; axis: of the channels."""

    axis: int
    count: int = 0
    finite: bool = True
    sums: list[np.ndarray] = field(default_factory=list)

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Arrays that differ in the number of channels at most."""
        one, other = (np.moveaxis(array, self.axis, 0) for array in (reference, candidate))
        if one.shape[1:] != other.shape[1:] or len(one) * len(other) > MAX_CHANNEL_PAIRS:
            return
        a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
        if not np.isfinite(a).all():
            return
        self.finite = self.finite and bool(np.isfinite(b).all())
        parts = [a.sum(axis=1), b.sum(axis=1), (a**2).sum(axis=1), (b**2).sum(axis=1), a @ b.T]
        self.sums = [old + new for old, new in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.count += a.shape[1]

    def correlations(self) -> np.ndarray:
        """(reference channels, candidate channels); 0 for a channel that does not vary."""
        a, b, aa, bb, ab = (part / self.count for part in self.sums)
        spread = np.sqrt(np.outer((aa - a**2).clip(min=0.0), (bb - b**2).clip(min=0.0)))
        safe = spread > 1e-9 * np.sqrt(np.outer(aa, bb)) + 1e-300
        return np.where(safe, ab - np.outer(a, b), 0.0) / np.where(safe, spread, 1.0)

    def unexplained(self) -> str:
        """What removing channels does not explain, "" where nothing is wrong or nothing is certain."""
        if not self.finite:
            return NOT_FINITE
        if self.count < MIN_VALUES:
            return ""
        found = self.correlations()
        channels, twins = matched_channels(np.abs(found))
        if len(channels) < _MIN_MATCHES:
            return ""
        if 2 * np.sum(found[twins, channels] < 0.0) > len(channels):
            return "gives the opposite sign"
        misplaced = np.flatnonzero(twins != np.sort(twins))
        if len(misplaced) != 2:  # none, or an order of its own that a tool gave all layers
            return ""
        return f"has its channels {channels[misplaced[0]]} and {channels[misplaced[1]]} exchanged"


def matched_channels(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidate channels, and the reference channel of each, where there is no doubt; strength (reference, candidate)."""
    best = strength.argmax(axis=0)
    ordered = np.sort(strength, axis=0)
    second = ordered[-2] if len(ordered) > 1 else np.zeros(strength.shape[1])
    sure = np.flatnonzero((ordered[-1] > MIN_CORRELATION) & (ordered[-1] - second > MIN_MARGIN))
    return sure, best[sure]
