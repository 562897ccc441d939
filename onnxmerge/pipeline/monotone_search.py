"""Which of many allocations has a measured quantity just within what is allowed, found in few measurements."""

import math
from collections.abc import Sequence

import numpy as np

SMALLEST, GREATEST = 1e-12, 1e6
"""Bounds of a measured quantity, so that its logarithm exists; NaN, of outputs that are not finite any more, is the greatest."""
SLOW_STEPS = 3
"""Measurements in a row that leave more than half of the allocations undecided, after which the one in the middle is measured:
regula falsi alone creeps where the quantity jumps or hardly changes."""


class MonotoneSearch:
    """Bracketing of the first allocation of a sequence whose measured quantity is at most what is allowed.

    The quantity (loss of the outputs, latency) falls along the sequence, as does the prediction of it. It is expected to follow a
    power of the prediction through the measurements on both sides, or the nearest two; with none it is expected as predicted.
    Of n allocations the first that passes is known after at most (SLOW_STEPS + 1) * (floor(log2(n)) + 1) measurements, whatever
    the quantity does.

    Parameters
    ----------
    predicted : Sequence[float]
        Prediction for each allocation, falling.
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

    def __init__(self, predicted: Sequence[float], *, goal: float, allowed: float, known: dict[int, float] | None = None) -> None:
        self.predicted, self.goal, self.allowed = predicted, goal, allowed
        self.passing, self.failing = len(predicted), -1
        self._log_predicted = [_log(each) for each in predicted]
        self._log_measured = {index: _log(quantity) for index, quantity in (known or {}).items()}
        self._first: int | None = None
        self._slow_steps = 0

    def next(self) -> int | None:
        """The index to measure: the first that is expected to reach the goal; None where the first that passes is known.

        Beyond what was measured, an expectation leads no further than to the middle of what is undecided.
        """
        if self._first is not None:
            return self._first
        undecided = range(self.failing + 1, self.passing)
        if not undecided:
            return None
        middle = undecided[len(undecided) // 2]
        if self._slow_steps >= SLOW_STEPS:
            return middle
        expected = {index: self._expected(index) for index in undecided}
        reached = (index for limit in (self.goal, self.allowed) for index in undecided if expected[index] <= _log(limit))
        index = next(reached, undecided[-1])
        if self.passing == len(self._log_predicted) and self.failing >= 0:
            return min(index, middle)
        return max(index, middle) if self.failing < 0 and self.passing < len(self._log_predicted) else index

    def expected(self, index: int) -> float:
        """The quantity that is expected at an index."""
        return math.exp(self._expected(index))

    def record(self, index: int, quantity: float, last: int | None = None) -> None:
        """Learn what was measured at an index.

        Parameters
        ----------
        index : int
            What was measured.
        quantity : float
            Result; NaN counts as the greatest.
        last : int or None
            Last index of the same allocation, where several in a row are the same.
        """
        last = index if last is None else last
        before, self._log_measured[last] = self.passing - self.failing - 1, _log(quantity)
        if quantity <= self.allowed:
            self.passing = min(self.passing, index)
        else:
            self.failing = max(self.failing, last)
        self._slow_steps = self._slow_steps + 1 if 2 * (self.passing - self.failing - 1) > before else 0
        self._first = None

    def restart(self) -> None:
        """Search again, first where the search ended; what was measured before becomes the prediction."""
        self._first = self.passing if self.passing < len(self._log_predicted) else None
        expected = np.array([self._expected(index) for index in range(len(self._log_predicted))])
        highest, lowest = np.maximum.accumulate(expected[::-1])[::-1], np.minimum.accumulate(expected)
        self._log_predicted, self._log_measured = (0.5 * (highest + lowest)).tolist(), {}  # falling, whatever was measured
        self.passing, self.failing, self._slow_steps = len(expected), -1, 0

    def _expected(self, index: int) -> float:
        """Logarithm of the quantity at an index."""
        predicted, measured = self._log_predicted, self._log_measured
        below, above = (sorted(each for each in measured if side * (each - index) > 0) for side in (-1, 1))
        nearest = [index] if index in measured else [*below[-1:], *above[:1]] if below and above else [*below[-2:], *above[:2]]
        if not nearest:
            return predicted[index]
        first, power = min(nearest, key=lambda known: abs(known - index)), 1.0
        if len(nearest) == 2 and abs(step := predicted[nearest[0]] - predicted[nearest[1]]) > SMALLEST:
            power = max((measured[nearest[0]] - measured[nearest[1]]) / step, 0.0)
            power = power if below and above else min(power, 1.0)  # behind what was measured losses saturate at most
        return measured[first] + power * (predicted[index] - predicted[first])


def _log(quantity: float) -> float:
    return math.log(GREATEST if math.isnan(quantity) else min(max(quantity, SMALLEST), GREATEST))
