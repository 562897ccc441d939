"""How much an output varies over the inputs, as a whole and row by row, and how much of that a candidate explains.

One row may be lost although the fidelity of the whole is high: a detector's output (N, 84, 8400) holds boxes in pixels beside
scores from 0 to 1, whose variance is a ten-thousandth of the whole.
"""

from dataclasses import dataclass

import numpy as np

LEAST_DEVIATION = 1e-4
"""Standard deviation of a row, as a share of its size, below which it counts as constant and is not judged."""


@dataclass
class Variance:
    """Per element the count, the mean over the inputs, the squared deviations from it, and the candidate's squared errors."""

    count: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray
    errors: np.ndarray

    def add(self, values: np.ndarray, differences: np.ndarray, valid: np.ndarray, part: slice) -> np.ndarray:
        """Of some elements: all arrays are (samples, these elements); those that are not valid hold zero.

        Returns
        -------
        ndarray of shape (samples,)
            The squared deviation of each sample from the mean so far.
        """
        count, before = valid.sum(axis=0), self.count[part]
        mean = values.sum(axis=0) / np.maximum(count, 1)
        deviations = np.where(valid, values - mean, 0.0)
        total = before + count
        shift = (mean - self.mean[part]) * (count > 0)
        share = count / np.maximum(total, 1)
        self.errors[part] += np.einsum("se,se->e", differences, differences)
        self.deviations[part] += np.einsum("se,se->e", deviations, deviations) + shift**2 * before * share
        self.mean[part] += shift * share
        self.count[part] = total
        deviations = np.where(valid, values - self.mean[part], 0.0)
        return np.asarray(np.einsum("se,se->s", deviations, deviations))

    @property
    def squares(self) -> float:
        """The sum of the squared deviations of all elements."""
        return float(self.deviations.sum())

    @property
    def over_elements(self) -> float:
        """The sum of the squared deviations from the one mean of all elements and inputs."""
        total = max(float(self.count.sum()), 1.0)
        overall = float(np.sum(self.count * self.mean)) / total
        return self.squares + float(np.sum(self.count * (self.mean - overall) ** 2))

    def row_fidelities(self, shape: tuple[int, ...]) -> np.ndarray:
        """The share of the variance of each row that is explained.

        Parameters
        ----------
        shape : tuple of int
            Of one sample, without the batch; rows lie along its first axis, of a matrix along the shorter one.

        Returns
        -------
        ndarray of shape (rows that vary,)
            Empty where a sample is a vector or has a single row.
        """
        if len(shape) < 2 or min(shape[0], shape[-1]) < 2:
            return np.zeros(0)
        axis = 1 if len(shape) == 2 and shape[1] < shape[0] else 0
        others = tuple(each for each in range(len(shape)) if each != axis)
        parts = self.deviations, self.errors, self.deviations + self.count * self.mean**2
        varies, differs, size = (each.reshape(shape).sum(axis=others) for each in parts)
        judged = varies > LEAST_DEVIATION**2 * size
        return np.asarray(1.0 - differs[judged] / varies[judged])
