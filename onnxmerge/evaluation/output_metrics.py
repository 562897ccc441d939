"""The running sums of one output's fidelity, float64 inside.

The reference's variance is taken about the mean over the inputs, element by element: means and squared deviations of batches
are combined (Chan, Golub, LeVeque 1979), so that a large mean costs no digits. Elements where the reference itself is NaN or
infinite are left out. An input where only the candidate is not finite counts as lost: relative L2 infinite, cosine 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.results import OutputFidelity

_ROUNDING = 16.0  # units in the last place that still count as equal to a constant


@dataclass
class Variance:
    """Per-element count and mean over the inputs, and the sum of the squared deviations from these means."""

    count: np.ndarray
    mean: np.ndarray
    squares: float = 0.0

    def add(self, values: np.ndarray, valid: np.ndarray) -> None:
        """values and valid are (samples, elements); elements that are not valid hold zero."""
        count = valid.sum(axis=0)
        mean = values.sum(axis=0) / np.maximum(count, 1)
        deviations = np.where(valid, values - mean, 0.0)
        total = self.count + count
        shift = (mean - self.mean) * (count > 0)
        share = count / np.maximum(total, 1)
        self.squares += float(np.sum(deviations**2)) + float(np.sum(shift**2 * self.count * share))
        self.mean = self.mean + shift * share
        self.count = total

    @property
    def over_elements(self) -> float:
        """The sum of the squared deviations from the one mean of all elements and inputs."""
        total = max(float(self.count.sum()), 1.0)
        overall = float(np.sum(self.count * self.mean)) / total
        return self.squares + float(np.sum(self.count * (self.mean - overall) ** 2))


@dataclass
class Spread:
    """A number for each input: its sum, its worst value and the input that has it."""

    total: float = 0.0
    worst: float = -math.inf
    where: int = 0

    def add(self, values: np.ndarray, first: int) -> None:
        """Larger is worse; first is the number of the first of these inputs."""
        self.total += float(np.sum(values))
        position = int(np.argmax(values))
        if values[position] > self.worst:
            self.worst, self.where = float(values[position]), first + position


@dataclass
class OutputMoments:
    """Everything accumulated for one output."""

    name: str
    samples: int = 0
    error: float = 0.0
    energy: float = 0.0
    largest: float = 0.0
    tiny: float = float(np.finfo(np.float64).eps)
    finite: bool = True
    variances: dict[tuple[int, ...], Variance] = field(default_factory=dict)
    relative: Spread = field(default_factory=Spread)
    distance: Spread = field(default_factory=Spread)
    scored: int = 0
    top1: int = 0
    top5: int | None = None

    def add(self, expected: np.ndarray, found: np.ndarray, first: int, *, scores: bool) -> None:
        """Arrays (samples, ...) of one shape; first is the number of the first input among all."""
        if not len(expected):
            return
        self.samples += len(expected)
        if expected.dtype.kind not in "biuf":
            self._add_equality(expected, found, first)
            return
        shape = expected.shape[1:]
        if np.issubdtype(expected.dtype, np.floating):
            self.tiny = float(np.finfo(expected.dtype).eps)
        expected, found = (array.reshape(len(array), -1).astype(np.float64) for array in (expected, found))
        lost = self._add_numbers(expected, found, shape, first)
        if scores:
            self._add_scores(expected, found, lost)

    def _add_numbers(self, expected: np.ndarray, found: np.ndarray, shape: tuple[int, ...], first: int) -> np.ndarray:
        valid = np.isfinite(expected)
        usable = valid & np.isfinite(found)
        lost = np.asarray((valid & ~usable).any(axis=1))
        reference = np.where(valid, expected, 0.0)
        candidate = np.where(usable, found, 0.0)
        differences = candidate - reference
        error, energy, other = ((array**2).sum(axis=1) for array in (differences, reference, candidate))
        self.finite = self.finite and not lost.any()
        self.error += float(error.sum())
        self.energy += float(energy.sum())
        self.largest = max(self.largest, float(np.abs(differences).max(initial=0.0)))
        elements = reference.shape[1]
        self.variances.setdefault(shape, Variance(np.zeros(elements, np.int64), np.zeros(elements))).add(reference, valid)
        relative = np.where(lost, np.inf, _divide(np.sqrt(error), np.sqrt(energy), np.inf))
        norms = np.sqrt(energy) * np.sqrt(other)
        cosine = np.where(lost, 0.0, _divide((reference * candidate).sum(axis=1), norms, 0.0))
        cosine = np.where((energy == 0) & (other == 0) & ~lost, 1.0, np.clip(cosine, -1.0, 1.0))
        self.relative.add(relative, first)
        self.distance.add(1.0 - cosine, first)
        return lost

    def _add_equality(self, expected: np.ndarray, found: np.ndarray, first: int) -> None:
        unequal = (expected != found).reshape(len(expected), -1).any(axis=1).astype(np.float64)
        self.error += float(unequal.sum())
        self.energy += len(expected)
        self.largest = max(self.largest, float(unequal.max()))
        self.relative.add(unequal, first)
        self.distance.add(unequal, first)

    def _add_scores(self, expected: np.ndarray, found: np.ndarray, lost: np.ndarray) -> None:
        rows = np.arange(len(expected))
        expected, found = (np.nan_to_num(array, nan=-np.inf, posinf=np.inf, neginf=-np.inf) for array in (expected, found))
        best = found.argmax(axis=1)
        self.scored += len(expected)
        self.top1 += int(np.sum((best == expected.argmax(axis=1)) & ~lost))
        if expected.shape[1] > 5:
            ahead = (expected > expected[rows, best][:, np.newaxis]).sum(axis=1)
            self.top5 = (self.top5 or 0) + int(np.sum((ahead < 5) & ~lost))

    def _share_explained(self) -> float:
        """1 - error / variance; where the reference does not vary over the inputs, its variance over the elements, then its
        energy, takes the place."""
        if not self.finite:
            return -math.inf
        rounding = (_ROUNDING * self.tiny) ** 2 * self.energy
        candidates = [
            sum(variance.squares for variance in self.variances.values()),
            sum(variance.over_elements for variance in self.variances.values()),
        ]
        total = next((value for value in candidates if value > rounding), self.energy)
        if total == 0.0:
            return 1.0 if self.error == 0.0 else -math.inf
        return 1.0 - self.error / total

    def result(self) -> OutputFidelity:
        """The metrics so far; an output that never held a sample counts as equal."""
        samples = max(self.samples, 1)
        fidelity = self._share_explained()
        lost = 1.0 - fidelity
        scored = 0 < self.scored == self.samples  # a batch of one hides that axis 0 is not the batch; the others show it
        return OutputFidelity(
            name=self.name,
            fidelity=fidelity,
            sqnr_db=-10.0 * math.log10(lost) if lost > 0.0 else math.inf,
            relative_l2_mean=self.relative.total / samples,
            relative_l2_worst=max(self.relative.worst, 0.0),
            cosine_mean=1.0 - self.distance.total / samples,
            cosine_worst=1.0 - max(self.distance.worst, 0.0),
            max_abs_error=self.largest if self.finite else math.inf,
            worst_input=self.relative.where,
            top1_agreement=self.top1 / self.samples if scored else None,
            top5_agreement=self.top5 / self.samples if scored and self.top5 is not None else None,
            finite=self.finite,
        )


def _divide(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    """above / below; where below is zero: 0 for 0 / 0, else `otherwise`."""
    safe = np.where(below == 0.0, 1.0, below)
    return np.where(below == 0.0, np.where(above == 0.0, 0.0, otherwise), above / safe)
