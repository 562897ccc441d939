"""How a budget is spent: kept counts of all groups at once, with the least loss that a cost allows.

The loss of a group, as a function of the channels it keeps, is what the model's output loses with that group alone; losses add.
Costs are those of `bilinear_cost`. From all counts, one group at a time is reduced, each time to the count that loses least for
what it saves (marginal analysis: Fox, "Discrete Optimization Via Marginal Analysis", 1966). The way down is the Pareto front.
At a budget, what is left over goes where a larger count gains most; where groups are few, pairs of them are then tried at all
of their counts.

On the curves of six networks (288 budgets), coordinate descent with a Lagrange multiplier found by bisection, in place of the way
down, changed the loss by 0.03 % on average, by 4 % at most, and took up to four times as long; on random ones both are equally
close to the optimum. Pairs are worth 1.2 % on average and up to 26 %.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.bilinear_cost import Cost, WeightedCost

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TINY = 1e-12
"""Least saving and least loss in ratios and logarithms: what is smaller is rounding."""

PAIRWISE_LIMIT = 4_000
"""Groups times all of their counts up to which pairs of groups are tried: below a second on one core."""

ROUNDS = 50
"""Rounds over all pairs at most; two or three are usual, the last of which changes nothing."""

FRONT_STEPS = 256
"""Steps of the Pareto front over the whole range of costs at most, 0.4 % of it each: as fine as sizes are searched."""

SATURATED = 0.5
"""A loss (1 - fidelity) from which on an output is closer to noise than to what it was."""


@dataclass(frozen=True)
class Curve:
    """The losses of one group.

    Attributes
    ----------
    counts : ndarray of shape (c,), int
        Channels that it may keep, ascending.
    loss : ndarray of shape (c,)
        What is lost with each of these counts, not rising.
    """

    counts: Integers
    loss: Floats


def loss_curve(errors: ArrayLike, measured_errors: ArrayLike, measured_losses: ArrayLike) -> Floats:
    """Losses of the output for errors of an elimination, through some of both that were measured.

    Between measurements the loss is a power of the error, elsewhere proportional to it. An output that is as bad as a constant
    cannot get much worse, which must not make further removals look free: behind the last measurement below `SATURATED` the loss
    grows at least in proportion to the error.

    Parameters
    ----------
    errors : array_like of shape (c,)
        Errors of the elimination, 0 or more.
    measured_errors, measured_losses : array_like of shape (p,)
        Errors and losses of the measurements, ascending; where there are none the loss is the error.

    Returns
    -------
    ndarray of shape (c,)

    Examples
    --------
    >>> loss_curve([0.0, 0.1, 0.2, 0.4, 0.8], [0.1, 0.4], [0.02, 0.32]).round(6).tolist()
    [0.0, 0.02, 0.08, 0.32, 0.64]
    """
    error = np.asarray(errors, np.float64)
    points = np.maximum(np.asarray(measured_errors, np.float64), TINY)
    values = np.maximum.accumulate(np.maximum(np.asarray(measured_losses, np.float64), TINY))
    if not len(points):
        return error.copy()
    x, px, py = np.log(np.maximum(error, TINY)), np.log(points), np.log(values)
    inside = np.interp(x, px, py)
    below, behind = py[0] + x - px[0], py[-1] + x - px[-1]
    result = np.where(x < px[0], below, np.where(x > px[-1], behind, inside))
    sound = max(int((values < SATURATED).sum()) - 1, 0)
    result = np.where(x > px[sound], np.maximum(result, py[sound] + x - px[sound]), result)
    return np.where(error > 0.0, np.exp(result), 0.0)


def allocate(
    curves: Sequence[Curve], cost: Cost | WeightedCost, budget: float, spent: Cost | WeightedCost | None = None
) -> Integers:
    """Kept counts of least total loss within a budget; see the module.

    Parameters
    ----------
    curves : sequence of Curve
        Losses of each group.
    cost : Cost
    budget : float
        Upper limit of the cost.
    spent : Cost, optional
        What loss is weighed against, by default the cost that the budget limits. With another one the loss is not the least, but
        little for what is saved of this one.

    Returns
    -------
    ndarray of shape (groups,)
        The smallest counts where nothing fits the budget.

    Examples
    --------
    Two groups of equal cost, of which the second one loses more:

    >>> curves = [Curve(np.arange(1, 4), np.array([0.2, 0.1, 0.0])), Curve(np.arange(1, 4), np.array([0.8, 0.4, 0.0]))]
    >>> allocate(curves, Cost(np.ones(2), np.eye(3)[:2], np.eye(3)[[2, 2]]), budget=4.0)
    array([1, 3])
    """
    reduced = _all_counts(curves)
    for reduced in _reductions(curves, spent or cost):
        if cost.total(reduced) <= budget:
            break
    else:
        return reduced
    filled = _filled(curves, cost, budget, reduced, spent or cost)
    pairs = len(curves) * sum(len(curve.counts) for curve in curves)
    return filled if spent is not None or pairs > PAIRWISE_LIMIT else _exchanged(curves, cost, budget, filled)


def pareto_front(curves: Sequence[Curve], cost: Cost | WeightedCost) -> list[Integers]:
    """Kept counts that no others found beat in both cost and loss, at most some `FRONT_STEPS` of them.

    Parameters
    ----------
    curves : sequence of Curve
        Losses of each group.
    cost : Cost

    Returns
    -------
    list of ndarray of shape (groups,)
        The smallest cost first, all counts last.

    Examples
    --------
    >>> curves = [Curve(np.arange(1, 3), np.array([0.2, 0.0])), Curve(np.arange(1, 3), np.array([0.4, 0.0]))]
    >>> [counts.tolist() for counts in pareto_front(curves, Cost(np.ones(2), np.eye(3)[:2], np.eye(3)[[2, 2]]))]
    [[1, 1], [1, 2], [2, 2]]
    """
    most, least = _all_counts(curves), np.array([curve.counts[0] for curve in curves], np.int64)
    spacing = (cost.total(most) - cost.total(least)) / FRONT_STEPS
    front = [(most, cost.total(most), total_loss(curves, most))]
    for counts in islice(_reductions(curves, cost), 1, None):
        size, loss = cost.total(counts), total_loss(curves, counts)
        while len(front) > 1 and loss <= front[-1][2]:
            front.pop()  # larger, for nothing
        if front[-1][1] - size >= spacing or (counts == least).all():
            front.append((counts, size, loss))
    return [counts for counts, _, _ in front[::-1]]


def total_loss(curves: Sequence[Curve], counts: ArrayLike) -> float:
    """The summed loss of kept counts (groups,), each of which its curve has."""
    chosen = zip(curves, np.asarray(counts), strict=True)
    return float(sum(curve.loss[int(np.searchsorted(curve.counts, count))] for curve, count in chosen))


def _all_counts(curves: Sequence[Curve]) -> Integers:
    return np.array([curve.counts[-1] for curve in curves], np.int64)


def _reductions(curves: Sequence[Curve], cost: Cost | WeightedCost) -> Iterator[Integers]:
    """All counts, then again and again one group reduced, to the count that loses least for what it saves."""
    counts = _all_counts(curves)
    steps: dict[int, tuple[float, np.int64]] = {}
    changed: Sequence[int] = range(len(curves))
    while True:
        yield counts.copy()
        for group in changed:
            steps.pop(group, None)
            curve, at = curves[group], int(np.searchsorted(curves[group].counts, counts[group]))
            if at > 0:
                costs = cost.along(counts, group, curve.counts[: at + 1])
                ratio = (curve.loss[:at] - curve.loss[at]) / np.maximum(costs[at] - costs[:at], TINY)
                best = at - 1 - int(np.argmin(ratio[::-1]))  # of equal ones the smallest step
                steps[group] = float(ratio[best]), curve.counts[best]
        if not steps:
            return
        group = min(steps, key=lambda each: steps[each][0])
        counts[group] = steps[group][1]
        changed = cost.neighbours[group]


def _filled(
    curves: Sequence[Curve], cost: Cost | WeightedCost, budget: float, counts: Integers, spent: Cost | WeightedCost
) -> Integers:
    """Again and again the larger count that saves most loss for what is spent and still fits the budget."""
    counts = counts.copy()
    while True:
        free, best, step = budget - cost.total(counts), -1.0, None
        for group, curve in enumerate(curves):
            at = int(np.searchsorted(curve.counts, counts[group]))
            if at + 1 == len(curve.counts):
                continue
            costs = [each.along(counts, group, curve.counts[at:]) for each in ((cost,) if spent is cost else (cost, spent))]
            dearer, weighed = costs[0][1:] - costs[0][0], costs[-1][1:] - costs[-1][0]
            gain = (curve.loss[at] - curve.loss[at + 1 :]) / np.maximum(weighed, TINY)
            gain = np.where(dearer <= free, gain, -1.0)
            largest = int(np.argmax(gain))
            if gain[largest] > best:
                best, step = float(gain[largest]), (group, curve.counts[at + 1 + largest])
        if step is None:
            return counts
        counts[step[0]] = step[1]


def _exchanged(curves: Sequence[Curve], cost: Cost | WeightedCost, budget: float, counts: Integers) -> Integers:
    """Every two groups at the best of all their counts that fit, again and again: where counts are few, steps miss some."""
    counts = counts.copy()
    places = [int(np.searchsorted(curve.counts, count)) for curve, count in zip(curves, counts, strict=True)]
    losses = [[float(loss) for loss in curve.loss] for curve in curves]
    for _ in range(ROUNDS):
        chosen = [own[place] for own, place in zip(losses, places, strict=True)]
        before = sum(chosen)
        for one, other in permutations(range(len(curves)), 2):
            best, step = sum(chosen), (places[one], places[other])
            tried, lost = counts.copy(), chosen.copy()
            for place, count in enumerate(curves[one].counts):
                tried[one] = count
                costs = cost.along(tried, other, curves[other].counts)
                fitting = np.flatnonzero(costs <= budget - cost.total(tried) + costs[places[other]])
                if len(fitting):  # of those the largest loses least
                    lost[one], lost[other] = losses[one][place], losses[other][fitting[-1]]
                    if (loss := sum(lost)) < best:
                        best, step = loss, (place, int(fitting[-1]))
            for group, place in zip((one, other), step, strict=True):
                places[group], counts[group], chosen[group] = place, curves[group].counts[place], losses[group][place]
        if sum(chosen) >= before:
            break
    return counts
