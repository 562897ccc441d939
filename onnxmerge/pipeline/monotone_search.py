"""Which of many allocations has a measured quantity just within what is allowed, found in few measurements."""

import math
from collections.abc import Sequence

LEAST_POWER = 0.05
"""Least power of the prediction that a measured quantity is expected to follow, so that it never looks constant. The greatest is
1, since losses that saturate, and latencies of which a part is no work, follow smaller ones."""
SMALLEST, GREATEST = 1e-12, 1e6
"""Bounds of a measured quantity, so that its logarithm exists; NaN, of outputs that are not finite any more, is the greatest."""


class MonotoneSearch:
    """Bracketing of the first allocation of a sequence whose measured quantity is at most what is allowed.

    The quantity (loss of the outputs, latency) falls along the sequence, as does the prediction of it. It is expected to follow a
    power of the prediction through the two nearest allocations that were measured, and before that to equal the prediction.

    Parameters
    ----------
    predicted : Sequence[float]
        Prediction for each allocation, falling.
    lowest : float
        Quantity from which on an allocation that passes ends the search.
    goal : float
        Quantity that is aimed at.
    allowed : float
        Greatest quantity that passes.
    known : dict[int, float] or None
        Index -> quantity, for expectations only.

    Attributes
    ----------
    passing : int
        First index known to pass; the length of the sequence where none is.
    failing : int
        Last index known not to pass; -1 where none is.
    """

    def __init__(
        self, predicted: Sequence[float], *, lowest: float, goal: float, allowed: float, known: dict[int, float] | None = None
    ) -> None:
        self.lowest, self.goal, self.allowed = lowest, goal, allowed
        self.passing, self.failing = len(predicted), -1
        self._log_predicted = [_log(each) for each in predicted]
        self._log_measured = {index: _log(quantity) for index, quantity in (known or {}).items()}
        self._first: int | None = None

    def next(self) -> int | None:
        """The index to measure: the first that is expected to reach the goal, or the last that could pass.

        None where the first that passes is known.
        """
        if self._first is not None:
            index, self._first = self._first, None
            return index
        undecided = range(self.failing + 1, self.passing)
        goal = _log(self.goal)
        return next((index for index in undecided if self._expected(index) <= goal), undecided[-1] if undecided else None)

    def record(self, index: int, quantity: float, last: int | None = None) -> bool:
        """Learn what was measured at an index.

        Parameters
        ----------
        index : int
            What was measured.
        quantity : float
            Result; NaN counts as the greatest.
        last : int or None
            Last index of the same allocation, where several in a row are the same.

        Returns
        -------
        bool
            Whether the search is over: the allocation passes and is close enough to what is allowed.
        """
        last = index if last is None else last
        self._log_measured[last] = _log(quantity)
        if not quantity <= self.allowed:
            self.failing = max(self.failing, last)
            return False
        self.passing = min(self.passing, index)
        return quantity >= self.lowest

    def restart(self, lowest: float) -> None:
        """Search again, first where the search ended; what was measured before only says what to expect."""
        self._first = self.passing if self.passing < len(self._log_predicted) else None
        self.passing, self.failing, self.lowest = len(self._log_predicted), -1, lowest

    def _expected(self, index: int) -> float:
        """Logarithm of the quantity at an index."""
        predicted, measured = self._log_predicted, self._log_measured
        nearest = sorted(measured, key=lambda known: (abs(known - index), known))[:2]
        if not nearest:
            return predicted[index]
        power, first = 1.0, nearest[0]
        if len(nearest) == 2 and abs(step := predicted[first] - predicted[nearest[1]]) > SMALLEST:
            power = min(max((measured[first] - measured[nearest[1]]) / step, LEAST_POWER), 1.0)
        return measured[first] + power * (predicted[index] - predicted[first])


def _log(quantity: float) -> float:
    return math.log(GREATEST if math.isnan(quantity) else min(max(quantity, SMALLEST), GREATEST))
