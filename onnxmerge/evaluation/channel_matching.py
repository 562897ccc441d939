"""Which reference channel each channel of a candidate is, by correlation, where channels were removed.

Removing channels keeps the others in their order and their sign, whatever their consumers were fitted to. A channel counts only
where there is no doubt: its correlation with one reference channel is above MIN_CORRELATION, those with all others lower by at
least MIN_MARGIN.
"""

from dataclasses import dataclass, field

import numpy as np

# A removed channel or a new scale rarely leaves a correlation this high with the wrong channel.
MIN_CORRELATION, MIN_MARGIN = 0.9, 0.1
MAX_CHANNEL_PAIRS = 1 << 20  # of one tensor: bounds the memory and time of their products
MIN_VALUES = 256  # of one channel, so that chance correlations stay far below MIN_CORRELATION
_MIN_MATCHES = 4  # channels matched before anything is said of a tensor
NOT_FINITE = "gives NaN or infinity"


@dataclass
class ChannelCorrelation:
    """Running sums of the correlation between every reference and every candidate channel of one tensor, in float64.

    Attributes
    ----------
    axis : of the channels
    count : values of one channel so far
    finite : whether the candidate was finite wherever the reference was
    sums : of both, of their squares, and of the products of all pairs
    """

    axis: int
    count: int = 0
    finite: bool = True
    sums: list[np.ndarray] = field(default_factory=list)

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add values; only the number of channels may differ, other shapes are left out."""
        one, other = (np.moveaxis(array, self.axis, 0) for array in (reference, candidate))
        if one.shape[1:] != other.shape[1:] or not one.size * other.size or len(one) * len(other) > MAX_CHANNEL_PAIRS:
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
        deviations = np.sqrt(np.outer((aa - a**2).clip(min=0.0), (bb - b**2).clip(min=0.0)))
        varies = deviations > 1e-9 * np.sqrt(np.outer(aa, bb)) + 1e-300
        return np.where(varies, ab - np.outer(a, b), 0.0) / np.where(varies, deviations, 1.0)

    def unexplained(self) -> str:
        """What removing channels does not explain; empty where nothing is wrong or nothing is certain."""
        if not self.finite:
            return NOT_FINITE
        if self.count < MIN_VALUES:
            return ""
        correlations = self.correlations()
        channels, originals = matched_channels(np.abs(correlations))
        if len(channels) < _MIN_MATCHES:
            return ""
        if 2 * np.sum(correlations[originals, channels] < 0.0) > len(channels):
            return "gives the opposite sign"
        misplaced = np.flatnonzero(originals != np.sort(originals))
        if len(misplaced) != 2:  # none, or a new order of the whole layer, as some tools make it
            return ""
        return f"has its channels {channels[misplaced[0]]} and {channels[misplaced[1]]} exchanged"


def matched_channels(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidate channels that match without doubt, and the reference channel of each; by |correlation| (reference, candidate)."""
    best = strength.argmax(axis=0)
    ordered = np.sort(strength, axis=0)
    second = ordered[-2] if len(ordered) > 1 else np.zeros(strength.shape[1])
    certain = np.flatnonzero((ordered[-1] > MIN_CORRELATION) & (ordered[-1] - second > MIN_MARGIN))
    return certain, best[certain]
