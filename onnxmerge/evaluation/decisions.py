"""The share of a model's decisions that a candidate is expected to change: best classes, and sequences of them.

A count of the inputs whose best class changes moves in steps of 3 points on 32 inputs, and counts a change between two classes
that the reference itself could not tell apart like the loss of a sure one. For an input with the reference's probabilities p, the
candidate's q, and p1 >= p2 the two largest of p, what is measured instead is

    changed = (p1 - p2) * 1/2 sum_c |p_c - q_c|

The second factor, the total variation, is the least probability with which decisions drawn from p and from q differ (Levin and
Peres, Markov Chains and Mixing Times, proposition 4.7). The first is what it costs of the accuracy, if the reference's
probabilities are right, to take its second class for its best. Of a sequence its largest step counts: one
changed step changes the whole, and errors of the steps go together. (Of the words of a reader 0.20 were expected to change by the
largest, 0.43 with independent steps, and 0.18 did.) Heat maps (N, keypoints, positions) are no sequences of decisions: their
second best place lies beside the best one, where classes are in no order. Neither are the classes of anchors or pixels, of which
one changes hardly anything, nor boxes, positions and other numbers that are never negative.

One sigmoid p for each input is the probability of one of two classes, decided at 0.5, so that p1 - p2 = |2 p - 1| and the total
variation is |p - q|. The same operator gives shares and scores between 0 and 1, of which the middle is as likely as the ends:
only a network that is sure of most inputs is taken for a classifier.

On synthetic inputs a network's probabilities say nothing of how sure it is on data, and there are enough of them to count: of the
best classes, of inputs or steps, that change there, `SYNTHETIC_SHARE` is expected to.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxmerge.data.balance import looks_like_scores
from onnxmerge.evaluation.output_kinds import FEATURES, IDS, SIGMOID
from onnxmerge.evaluation.ratio_interval import ratio_interval

UNIT_TOLERANCE = 1e-3
"""How far a length may be from 1."""
SUM_TOLERANCE = 0.01
"""How far probabilities may sum up from 1: that of float16, and of exporters that add a small number before a logarithm."""
SYNTHETIC_SHARE = 0.25
"""Changed decisions on data for each best class that changes on synthetic inputs: where eight networks had lost a point of
accuracy, 7 to 14 % of the latter had changed, and 1.5 to 4 % of the former. The latter rank 117 variants of these networks by the
accuracy that they lose with a correlation of 0.85, the fidelity with 0.78."""
LEAST_LEAD = 0.1
"""Mean p1 - p2 below which scores before a softmax count as something else, such as features: ten classifiers have 0.46 and more,
on synthetic inputs 0.22."""
ROUNDED_SHARE = 1e-5
"""Share of changed decisions below which it is 0: rounding in float32 moves probabilities by up to 1e-6, and no decision."""
LEAST_SIGMOID_LEAD = 0.6
"""Mean |2 p - 1| below which single sigmoids are no decisions but numbers: uniform ones have 0.5, the tenths from 0 to 1 0.55;
eight classifiers that tell five of their classes from the others have 0.58 to 0.98."""
MOST_STEPS = 1600
"""Steps of a sequence above which they are anchors or pixels: half a minute of speech has 1,500, the smallest SSD 1,917."""
PLACES, BESIDE = 16, 1 / 3
"""Steps of at least so many values are places, not classes, where in more than this share of them the second largest value is
beside the largest: by chance it is in at most an eighth, on a smooth peak in a half or more."""


@dataclass
class ChangedDecisions:
    """Running sums over the inputs for one output.

    Attributes
    ----------
    samples : int
        Inputs with decisions.
    changed : list of ndarray
        `changed` of each of these, batch by batch.
    flipped, leads, beside : float
        Sums over these of the share of the steps whose best class changes, of their mean p1 - p2, and of the share
        of the steps of a sequence that look like `PLACES`.
    has_probabilities : bool
        Whether the output holds probabilities for all of them, and not scores before a softmax.
    has_negative : bool
        Whether a number is below 0, as scores before a softmax are for some class of some input, and sizes and positions are not.
    have_unit_length : bool
        Whether all vectors have the length 1, as features for a search by cosine do.
    best : set
        The reference's best classes.
    holds : str
        What the graph tells of it, see `output_kinds`.
    """

    samples: int = 0
    changed: list[np.ndarray] = field(default_factory=list)
    flipped: float = 0.0
    leads: float = 0.0
    beside: float = 0.0
    has_probabilities: bool = True
    has_negative: bool = False
    have_unit_length: bool = True
    best: set[Any] = field(default_factory=set)
    holds: str = ""

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add arrays (samples, ...) of one shape; those that hold no classes are left out, and then `share` is None."""
        if self.holds == IDS:
            self._add_ids(reference, candidate)
        elif self.holds == SIGMOID:
            if is_single(reference):
                self._add_scores(as_two_classes(reference), as_two_classes(candidate))
        elif self.holds != FEATURES:
            self._add_scores(reference, candidate)

    def _add_ids(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Classes, one for each input."""
        if reference[:1].size == 1:
            different = (reference != candidate).astype(np.float64).ravel()
            self.samples += len(reference)
            self.changed.append(different)
            self.flipped += float(different.sum())
            self.best.update(np.unique(reference).tolist())

    def _add_scores(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        has_probabilities = _are_probabilities(reference)
        if not len(reference) or not (has_probabilities or looks_like_scores(reference)) or not np.isfinite(reference).all():
            return
        if reference.ndim == 3 and reference.shape[1] > MOST_STEPS:
            return
        steps = (len(reference), -1, reference.shape[-1]) if reference.ndim == 3 else (len(reference), 1, reference.shape[1])
        p, q = (array.astype(np.float64).reshape(steps) for array in (reference, candidate))
        usable = np.asarray(np.isfinite(q).all(axis=2))
        q = np.where(usable[..., np.newaxis], q, 0.0)
        self.have_unit_length &= bool((np.abs(np.linalg.norm(p, axis=2) - 1.0) <= UNIT_TOLERANCE).all())
        if not has_probabilities:
            p, q = _softmax(p), _softmax(q)
        order = np.argpartition(p, -2, axis=2)[..., -2:]
        second, first = np.moveaxis(np.take_along_axis(p, order, axis=2), 2, 0)
        if reference.ndim == 3 and p.shape[2] >= PLACES:
            self.beside += float(np.sum((np.abs(order[..., 1] - order[..., 0]) == 1).mean(axis=1)))
        variation = np.where(usable, np.minimum(0.5 * np.abs(p - q).sum(axis=2), 1.0), 1.0)
        self.samples += len(p)
        self.changed.append(((first - second) * variation).max(axis=1))
        self.flipped += float(np.sum(((p.argmax(axis=2) != q.argmax(axis=2)) | ~usable).mean(axis=1)))
        self.leads += float(np.sum((first - second).mean(axis=1)))
        self.has_probabilities &= has_probabilities
        self.has_negative |= bool((reference < 0).any())
        self.best.update(np.unique(p.argmax(axis=2)).tolist())

    def share(self, samples: int, *, synthetic: bool) -> float | None:
        """The share of so many inputs, on data; None where not all of them had decisions, or where they were all the same."""
        share = self._share(samples, synthetic=synthetic)
        return share if share is None or share >= ROUNDED_SHARE else 0.0

    def _share(self, samples: int, *, synthetic: bool) -> float | None:
        """`share`, not rounded."""
        if not self.are_decisions(samples) or len(self.best) < 2:
            return None
        return (SYNTHETIC_SHARE * self.flipped if synthetic else float(sum(map(np.sum, self.changed)))) / samples

    def interval(self, samples: int, *, synthetic: bool) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of `share` for other inputs of the same kind; None of synthetic ones, whose kind is what is unsure."""
        share = self._share(samples, synthetic=synthetic)
        if share is None or synthetic:
            return None, None
        ends = ratio_interval(np.concatenate(self.changed), np.ones(samples), share, is_share=True, counted=self.holds == IDS)
        return (None, None) if ends is None else ends

    def are_all_the_same(self, samples: int) -> bool:
        """Whether so many inputs, several of them, had decisions, and all of them the same one."""
        return samples > 1 and self.are_decisions(samples) and len(self.best) == 1

    @property
    def are_features(self) -> bool:
        """Whether they are no classes for certain, as the graph says or vectors of length 1 that are no probabilities."""
        return self.holds == FEATURES or (self.samples > 0 and self.have_unit_length and not self.has_probabilities)

    def content(self, samples: int) -> str:
        """What `OutputFidelity.holds` says of so many inputs."""
        if self.holds == IDS or self.are_features:
            return self.holds or FEATURES
        kind = self.holds or ("probabilities" if self.has_probabilities else "scores")
        return kind if self.are_decisions(samples) else ""

    def are_decisions(self, samples: int) -> bool:
        """Whether so many inputs all had decisions."""
        if self.holds == SIGMOID:
            return 0 < samples == self.samples and self.leads >= LEAST_SIGMOID_LEAD * samples
        are_scores = self.has_negative and not self.are_features and self.leads >= LEAST_LEAD * self.samples
        is_sure = self.has_probabilities or are_scores
        return 0 < samples == self.samples and is_sure and self.beside <= BESIDE * samples


def is_single(array: np.ndarray) -> bool:
    """Whether an array of floats (N, ...) holds one for each of N inputs."""
    return bool(np.issubdtype(array.dtype, np.floating) and array.size == len(array))


def as_two_classes(array: np.ndarray) -> np.ndarray:
    """The probabilities (N, 2) of both classes from that of the second for each of N inputs."""
    second = array.astype(np.float64).reshape(-1, 1)
    return np.hstack([1.0 - second, second])


def _are_probabilities(array: np.ndarray) -> bool:
    """Whether floats (N, K), (N, K, 1, 1) or (N, T, K), of at least two classes, are not negative and sum up to 1."""
    if not np.issubdtype(array.dtype, np.floating) or not array.size:
        return False
    if array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim not in (2, 3) or array.shape[-1] < 2:
        return False
    return bool((array >= 0.0).all() and (np.abs(array.sum(axis=-1, dtype=np.float64) - 1.0) <= SUM_TOLERANCE).all())


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
