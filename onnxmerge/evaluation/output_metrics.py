"""Running sums for the fidelity of one output, in float64.

The reference's variance is taken about the mean over the inputs, element by element: means and squared deviations of batches
are combined (Chan, Golub, LeVeque 1979), so that a large mean costs no digits. Elements where the reference itself is NaN or
infinite are left out, and counted: such an output fails. An input where only the candidate is not finite has an infinite relative
L2 and a cosine of 0.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.evaluation.decisions import ChangedDecisions, as_two_classes
from onnxmerge.evaluation.neighbours import Neighbours
from onnxmerge.evaluation.output_kinds import IDS, SIGMOID
from onnxmerge.evaluation.output_variance import Variance
from onnxmerge.evaluation.ratio_interval import ratio_interval
from onnxmerge.results import OutputFidelity
from onnxmerge.results.fidelity import ROW_FIDELITY

# Machine epsilons by which values may vary and still count as constant, and from which share of their size on they do not. A
# softmax in float32 that always gives the same class varies by a millionth: any error is billions of times that variance.
_ROUNDING_UNITS, _CONSTANT_UNITS, _CONSTANT = 16.0, 1024.0, 1e-4
BLOCK_NUMBERS = 1 << 15
"""Numbers that are compared at once, so that the arrays that they take stay in the processor's cache: a third of the time of
16 million at once, and a tenth of their memory."""
NO_VALUES = "it has no values for any of the inputs, so that nothing was compared"
QUANTILES = np.arange(21) / 20  # of the errors of single inputs


@dataclass
class InputErrors:
    """A measure of error of every input, where larger is worse: numbers of inputs and values, batch by batch."""

    by_batch: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, values: np.ndarray, first: int) -> None:
        """Add one value for each of some inputs, of which the first has the number `first`."""
        self.by_batch.append((np.arange(first, first + len(values)), values))

    @property
    def values(self) -> np.ndarray:
        """(inputs,), zero where there are none."""
        return np.concatenate([values for _, values in self.by_batch]) if self.by_batch else np.zeros(1)

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The 0th, 5th ... 100th percentile, each the value of an input."""
        return tuple(np.quantile(self.values, QUANTILES, method="nearest").tolist()) if self.by_batch else ()

    def input_with(self, value: float) -> int:
        """Number of the first input that has this value; 0 where there are no inputs."""
        numbers = [int(each) for numbers, values in self.by_batch for each in numbers[values == value]]
        return numbers[0] if numbers else 0


@dataclass
class OutputMoments:
    """Everything accumulated for one output.

    Attributes
    ----------
    name : str
        The output's.
    samples : int
        Inputs so far.
    error, energy : float
        Sum of squared differences, and of the squared reference.
    max_abs_error : float
        Largest absolute difference.
    epsilon : float
        Machine epsilon of the output's dtype.
    finite : bool
        Whether the candidate was finite wherever the reference was.
    compared, left_out : int
        Values that were compared, and those where the reference is not finite.
    variances : dict of tuple to Variance
        Of the reference, by shape of a sample.
    by_input : list of (ndarray, ndarray)
        For each batch the squared difference of every sample, and the reference's squared deviation from its mean.
    relative_l2, cosine_distance : InputErrors
        Relative L2 error, and 1 - cosine similarity.
    scored_samples, top1, top5 : int
        Inputs with class scores, and how often the candidate's best class is the reference's best or one of its best five.
    decisions : ChangedDecisions
        How many decisions change; it knows what the graph tells of the output.
    neighbours : Neighbours
        Whether vectors keep their nearest ones.
    synthetic : bool
        Whether the inputs were made without data.
    unmeasured : str
        Why the output cannot be compared, as a clause; empty where it can.
    """

    name: str
    samples: int = 0
    error: float = 0.0
    energy: float = 0.0
    max_abs_error: float = 0.0
    epsilon: float = float(np.finfo(np.float64).eps)
    finite: bool = True
    compared: int = 0
    left_out: int = 0
    variances: dict[tuple[int, ...], Variance] = field(default_factory=dict)
    by_input: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    relative_l2: InputErrors = field(default_factory=InputErrors)
    cosine_distance: InputErrors = field(default_factory=InputErrors)
    scored_samples: int = 0
    top1: int = 0
    top5: int | None = None
    decisions: ChangedDecisions = field(default_factory=ChangedDecisions)
    neighbours: Neighbours = field(default_factory=Neighbours)
    synthetic: bool = False
    unmeasured: str = ""

    def add(self, reference: np.ndarray, candidate: np.ndarray, first: int, *, scores: bool) -> None:
        """Add arrays (samples, ...) of one shape, of inputs of which the first has the number `first`."""
        if not len(reference):
            return
        self.samples += len(reference)
        if reference.dtype.kind not in "biuf":
            self.decisions.holds = IDS
        if self.decisions.holds == IDS:
            self._add_equality(reference, candidate, first)
            return
        shape = reference.shape[1:]
        if np.issubdtype(reference.dtype, np.floating):
            self.epsilon = float(np.finfo(reference.dtype).eps)
        reference, candidate = (array.reshape(len(array), -1) for array in (reference, candidate))
        not_finite = self._add_numbers(reference, candidate, shape, first)
        if scores and self.decisions.holds == SIGMOID and reference.shape[1] == 1:
            reference, candidate = as_two_classes(reference), as_two_classes(candidate)
        if scores:
            self._add_scores(reference, candidate, not_finite)

    def _add_numbers(self, reference: np.ndarray, candidate: np.ndarray, shape: tuple[int, ...], first: int) -> np.ndarray:
        samples, elements = reference.shape
        variance = self.variances.setdefault(shape, Variance(np.zeros(elements, np.int64), *np.zeros((3, elements))))
        error, energy, other, product, deviation = np.zeros((5, samples))
        not_finite = np.zeros(samples, bool)
        step = max(1, BLOCK_NUMBERS // samples)
        for part in (slice(start, start + step) for start in range(0, elements, step)):
            y, z = (array[:, part].astype(np.float64) for array in (reference, candidate))
            valid = np.isfinite(y)
            usable = valid & np.isfinite(z)
            not_finite |= (valid & ~usable).any(axis=1)
            y, z = np.where(valid, y, 0.0), np.where(usable, z, 0.0)
            differences = z - y
            found = int(np.count_nonzero(valid))
            self.compared, self.left_out = self.compared + found, self.left_out + valid.size - found
            self.max_abs_error = max(self.max_abs_error, float(np.abs(differences).max(initial=0.0)))
            pairs = (error, differences, differences), (energy, y, y), (other, z, z), (product, y, z)
            for total, one, two in pairs:
                total += np.einsum("se,se->s", one, two)
            deviation += variance.add(y, differences, valid, part)
        self.finite = self.finite and not not_finite.any()
        self.error += float(error.sum())
        self.energy += float(energy.sum())
        self.by_input.append((error, deviation))
        relative_l2 = np.where(not_finite, np.inf, _divide(np.sqrt(error), np.sqrt(energy), np.inf))
        norms = np.sqrt(energy) * np.sqrt(other)
        cosine = np.where(not_finite, 0.0, _divide(product, norms, 0.0))
        cosine = np.where((energy == 0) & (other == 0) & ~not_finite, 1.0, np.clip(cosine, -1.0, 1.0))
        self.relative_l2.add(relative_l2, first)
        self.cosine_distance.add(1.0 - cosine, first)
        return not_finite

    def _add_equality(self, reference: np.ndarray, candidate: np.ndarray, first: int) -> None:
        different = (reference != candidate).reshape(len(reference), -1)
        unequal = different.sum(axis=1) / max(1, different.shape[1])
        self.compared += len(reference) if reference.size else 0
        self.by_input.append((unequal, np.ones(len(unequal))))
        if different.shape[1] == 1:
            self.scored_samples += len(reference)
            self.top1 += int(np.sum(~different))
        self.error += float(unequal.sum())
        self.energy += len(reference)
        self.max_abs_error = max(self.max_abs_error, float(unequal.max()))
        self.relative_l2.add(unequal, first)
        self.cosine_distance.add(unequal, first)

    def _add_scores(self, reference: np.ndarray, candidate: np.ndarray, not_finite: np.ndarray) -> None:
        rows = np.arange(len(reference))
        reference, candidate = (np.where(np.isnan(array), -np.inf, array) for array in (reference, candidate))
        best = candidate.argmax(axis=1)
        self.scored_samples += len(reference)
        self.top1 += int(np.sum((best == reference.argmax(axis=1)) & ~not_finite))
        if reference.shape[1] > 5:
            ahead = (reference > reference[rows, best][:, np.newaxis]).sum(axis=1)
            self.top5 = (self.top5 or 0) + int(np.sum((ahead < 5) & ~not_finite))

    def _explained_variance(self) -> float:
        """1 - error / variance of the reference over the inputs; where that is zero over the elements, and else its energy."""
        if not self.finite or not self.compared:
            return -math.inf
        over_inputs = self._over_inputs
        over_elements = sum(variance.over_elements for variance in self.variances.values())
        total = next((value for value in (over_inputs, over_elements) if value > self._least_variance), self.energy)
        if total == 0.0:
            return 1.0 if self.error == 0.0 else -math.inf
        return 1.0 - self.error / total

    def _interval(self, fidelity: float) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of the fidelity for other inputs of the same kind, None where it is not known."""
        unexplained = 1.0 - fidelity
        if not self.by_input or not 0.0 <= unexplained < math.inf:
            return None, None
        errors, deviations = (np.concatenate(each) for each in zip(*self.by_input, strict=True))
        holds = self.decisions.content(self.samples)
        is_share = holds in ("probabilities", SIGMOID)
        ends = ratio_interval(errors, deviations, unexplained, is_share=is_share, counted=holds == IDS)
        return (None, None) if ends is None else (1.0 - ends[1], 1.0 - ends[0])

    @property
    def _over_inputs(self) -> float:
        """The sum of the reference's squared deviations from its mean over the inputs."""
        return sum(variance.squares for variance in self.variances.values())

    @property
    def _least_variance(self) -> float:
        """Up to which the reference counts as constant."""
        share = max(_ROUNDING_UNITS * self.epsilon, min(_CONSTANT_UNITS * self.epsilon, _CONSTANT))
        return share**2 * self.energy

    @property
    def _is_constant(self) -> bool:
        """Whether the reference gave the same for all of several inputs."""
        varies = self._over_inputs > self._least_variance
        return self.samples > 1 and self.energy > 0.0 and bool(self.variances) and not varies

    def result(self) -> OutputFidelity:
        """The metrics so far; where nothing was compared the fidelity is minus infinity."""
        parts = [each.row_fidelities(shape) for shape, each in self.variances.items()]
        rows = np.concatenate(parts) if parts and self.finite else np.zeros(0)
        fidelity = self._explained_variance()
        errors, distances, quantiles = self.relative_l2.values, self.cosine_distance.values, self.relative_l2.quantiles
        if not self.relative_l2.by_batch:  # nothing was compared, which is not to be taken for equal
            errors, distances = np.array([np.inf]), np.ones(1)
        (low, high), decided = self._interval(fidelity), self.decisions.interval(self.samples, synthetic=self.synthetic)
        unexplained = 1.0 - fidelity
        # A batch of one hides that axis 0 is not the batch; the others show it.
        scored = 0 < self.scored_samples == self.samples and not self.decisions.are_features
        if self.decisions.holds == SIGMOID and self.compared + self.left_out == self.samples:
            scored = scored and self.decisions.are_decisions(self.samples)
        holds = self.decisions.content(self.samples)
        return OutputFidelity(
            name=self.name,
            fidelity=fidelity,
            sqnr_db=-10.0 * math.log10(unexplained) if unexplained > 0.0 else math.inf,
            relative_l2_mean=float(errors.mean()),
            relative_l2_worst=float(errors.max()),
            cosine_mean=1.0 - float(distances.mean()),
            cosine_worst=1.0 - float(distances.max()),
            max_abs_error=self.max_abs_error if self.finite else math.inf,
            worst_input=self.relative_l2.input_with(float(errors.max())),
            top1_agreement=self.top1 / self.samples if scored else None,
            top5_agreement=self.top5 / self.samples if scored and self.top5 is not None else None,
            finite=self.finite,
            compared=self.compared,
            left_out=self.left_out,
            fidelity_low=low,
            fidelity_high=high,
            is_constant=self._is_constant,
            changed_decisions=self.decisions.share(self.samples, synthetic=self.synthetic),
            changed_decisions_low=decided[0],
            changed_decisions_high=decided[1],
            holds=holds,
            neighbours_kept=self.neighbours.kept() if holds in ("", "features") else None,
            rows=len(rows),
            lost_rows=int(np.count_nonzero(rows < ROW_FIDELITY)),
            worst_row_fidelity=float(rows.min(initial=1.0)),
            variation=math.sqrt(self._over_inputs / self.energy) if self.variances and self.energy > 0.0 else 1.0,
            has_one_decision=self.decisions.are_all_the_same(self.samples),
            unmeasured=self.unmeasured or ("" if self.compared or self.left_out else NO_VALUES),
            median_input=self.relative_l2.input_with(quantiles[len(quantiles) // 2]) if quantiles else 0,
            relative_l2_quantiles=quantiles,
        )


def _divide(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    """numerator / denominator; by zero: 0 for 0 / 0, else `otherwise`."""
    zero = denominator == 0.0
    return np.where(zero, np.where(numerator == 0.0, 0.0, otherwise), numerator / np.where(zero, 1.0, denominator))
