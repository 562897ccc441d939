"""How a budget is spent: kept counts of all groups at once, with the least loss that a cost allows.

The loss of a group, as a function of the channels it keeps, is what the model's output loses with that group alone; losses
add. Parameters and MACs are bilinear in the counts, sum over layers of weight * rows(k) * columns(k), because a layer shrinks
with the group that it writes and with those that it reads. Minimise

    sum over groups of loss_g(k_g)  +  multiplier * cost(k)

by coordinate descent, each step exact over all counts of a group, for Lagrange multipliers between which bisection finds
the one that meets the budget (Everett, "Generalized Lagrange Multiplier Method", 1963).
What is left goes where a step saves most; pairs follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BISECTIONS = 50
SWEEPS = 50
TINY = 1e-12
EXCHANGES = 4_000  # counts times groups, up to which pairs of groups are tried as well: below a second

SATURATED = 0.5
"""A loss from which on an output is closer to noise than to what it was."""


@dataclass(frozen=True)
class Cost:
    """cost(k) = sum over t of weight[t] * (rows[t] . n) * (columns[t] . n), n the channels kept of each kind and a 1 behind.

    weight (t,), rows and columns (t, kinds + 1). kinds: by group (size + 1, own kinds), how many of each of its kinds stay when
    so many channels of it do; channels that stand in different layers are of different kinds. None: a group is a kind.
    """

    weight: Floats
    rows: Floats
    columns: Floats
    kinds: tuple[Floats, ...] | None = None

    def total(self, counts: ArrayLike) -> float:
        """Of kept counts (groups,)."""
        extended = self._extended(counts)
        return float(np.sum(self.weight * (self.rows @ extended) * (self.columns @ extended)))

    def along(self, counts: ArrayLike, group: int, candidates: ArrayLike) -> Floats:
        """(c,) cost of the terms that one group touches, with the others as in counts, for each of its candidate counts (c,)."""
        own, touching = self._places[group]
        extended = self._extended(counts)
        extended[own] = 0.0
        rows, columns, tried = self.rows[touching], self.columns[touching], self._kept(group, candidates)
        product = (rows @ extended + tried @ rows[:, own].T) * (columns @ extended + tried @ columns[:, own].T)
        return np.asarray(product @ self.weight[touching], np.float64)

    @cached_property
    def _places(self) -> list[tuple[slice, Integers]]:
        """By group: the places of its kinds, and the terms that they touch."""
        widths = [1] * (self.rows.shape[1] - 1) if self.kinds is None else [table.shape[1] for table in self.kinds]
        ends = np.cumsum(widths)
        own = [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]
        used = (self.rows != 0.0) | (self.columns != 0.0)
        return [(place, np.flatnonzero(used[:, place].any(1))) for place in own]

    def _kept(self, group: int, counts: ArrayLike) -> Floats:
        """(c, own kinds) of each kind for counts (c,) of a group."""
        counts = np.asarray(counts, np.int64)
        return counts[:, None].astype(np.float64) if self.kinds is None else self.kinds[group][counts]

    def _extended(self, counts: ArrayLike) -> Floats:
        kept = [self._kept(group, [count])[0] for group, count in enumerate(np.asarray(counts).tolist())]
        return np.concatenate([*kept, [1.0]])


@dataclass(frozen=True)
class Curve:
    """One group: counts (c,) that it may keep, ascending, and the loss (c,) of each, not rising."""

    counts: Integers
    loss: Floats


def loss_curve(errors: ArrayLike, measured_errors: ArrayLike, measured_losses: ArrayLike) -> Floats:
    """(c,) loss for errors (c,) of the elimination, through probes (p,) of both, ascending.

    Between probes the loss is a power of the error, elsewhere proportional to it. An output that is as bad as a constant cannot
    get much worse, which must not make further removals look free: behind the last probe that lost less than SATURATED the loss
    grows at least in proportion to the error.
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


def allocate(curves: Sequence[Curve], cost: Cost, budget: float) -> Integers:
    """(groups,) kept counts of least summed loss with cost at most `budget`; the smallest counts where nothing fits it."""
    least = np.array([curve.counts[0] for curve in curves], np.int64)
    most = np.array([curve.counts[-1] for curve in curves], np.int64)
    if cost.total(most) <= budget:
        return most
    if cost.total(least) > budget:
        return least
    low, high = 0.0, 1.0 / max(cost.total(most), TINY)
    fitting, above = _descended(curves, cost, high, most), most
    while cost.total(fitting) > budget:
        low, high = high, 4.0 * high
        if high > 1.0 / TINY:
            fitting = least
            break
        fitting = _descended(curves, cost, high, fitting)
    for _ in range(BISECTIONS):
        multiplier = np.sqrt(low * high) if low > 0.0 else 0.25 * high
        found = _descended(curves, cost, multiplier, most)
        if cost.total(found) <= budget:
            high, fitting = multiplier, found
        else:
            low, above = multiplier, found
    both = [_filled(curves, cost, budget, start) for start in (fitting, _lowered(curves, cost, budget, above))]
    best = min(both, key=lambda counts: total_loss(curves, counts))
    pairs = len(curves) * sum(len(curve.counts) for curve in curves)
    return best if pairs > EXCHANGES else _exchanged(curves, cost, budget, best)


def total_loss(curves: Sequence[Curve], counts: ArrayLike) -> float:
    """The summed loss of kept counts (groups,)."""
    chosen = zip(curves, np.asarray(counts), strict=True)
    return float(sum(curve.loss[int(np.searchsorted(curve.counts, count))] for curve, count in chosen))


def _descended(curves: Sequence[Curve], cost: Cost, multiplier: float, start: Integers) -> Integers:
    """Coordinate descent on loss + multiplier * cost."""
    counts = start.copy()
    for _ in range(SWEEPS):
        before = counts.copy()
        for group, curve in enumerate(curves):
            total = curve.loss + multiplier * cost.along(counts, group, curve.counts)
            counts[group] = curve.counts[int(np.argmin(total))]
        if (counts == before).all():
            break
    return counts


def _lowered(curves: Sequence[Curve], cost: Cost, budget: float, counts: Integers) -> Integers:
    """Fewer channels until the budget is met: again and again the smaller count that does least loss for what it saves."""
    counts = counts.copy()
    while cost.total(counts) > budget:
        best, step = np.inf, None
        for group, curve in enumerate(curves):
            here = int(np.searchsorted(curve.counts, counts[group]))
            if here == 0:
                continue
            multipliers = cost.along(counts, group, curve.counts)
            saved = np.maximum(multipliers[here] - multipliers[:here], TINY)
            increase = (curve.loss[:here] - curve.loss[here]) / saved
            at = here - 1 - int(np.argmin(increase[::-1]))
            if increase[at] < best:
                best, step = float(increase[at]), (group, curve.counts[at])
        if step is None:
            break
        counts[step[0]] = step[1]
    return counts


def _filled(curves: Sequence[Curve], cost: Cost, budget: float, counts: Integers) -> Integers:
    """Spend what is left: again and again the larger count that saves most loss for its cost and still fits."""
    counts = counts.copy()
    while True:
        left, best, step = budget - cost.total(counts), -1.0, None
        for group, curve in enumerate(curves):
            here = int(np.searchsorted(curve.counts, counts[group]))
            if here + 1 == len(curve.counts):
                continue
            multipliers = cost.along(counts, group, curve.counts)
            dearer = multipliers[here + 1 :] - multipliers[here]
            gain = (curve.loss[here] - curve.loss[here + 1 :]) / np.maximum(dearer, TINY)
            gain = np.where(dearer <= left, gain, -1.0)
            at = int(np.argmax(gain))
            if gain[at] > best:
                best, step = float(gain[at]), (group, curve.counts[here + 1 + at])
        if step is None:
            return counts
        counts[step[0]] = step[1]


def _exchanged(curves: Sequence[Curve], cost: Cost, budget: float, counts: Integers) -> Integers:
    """Every two groups at the best of all their counts that fit, again and again: where steps are few multipliers miss some."""
    counts = counts.copy()
    for _ in range(SWEEPS):
        before = total_loss(curves, counts)
        for one, other in permutations(range(len(curves)), 2):
            best, step = total_loss(curves, counts), counts
            for count in curves[one].counts:
                tried = counts.copy()
                tried[one] = count
                left = budget - cost.total(tried)
                multipliers = cost.along(tried, other, curves[other].counts)
                fitting = multipliers - multipliers[int(np.searchsorted(curves[other].counts, counts[other]))] <= left
                if fitting.any():  # loss does not rise with the count
                    tried[other] = curves[other].counts[np.flatnonzero(fitting)[-1]]
                    if (loss := total_loss(curves, tried)) < best:
                        best, step = loss, tried
            counts = step
        if total_loss(curves, counts) >= before:
            break
    return counts


def pareto_front(curves: Sequence[Curve], cost: Cost, multipliers: int = 160) -> list[Integers]:
    """Kept counts (groups,) for rising multipliers without repeats, the smallest cost first, all counts last: the lower hull."""
    most = np.array([curve.counts[-1] for curve in curves], np.int64)
    least = np.array([curve.counts[0] for curve in curves], np.int64)
    found = {tuple(counts.tolist()): counts for counts in (most, least)}
    scale = 1.0 / max(cost.total(most), TINY)
    counts = most
    for multiplier in scale * np.geomspace(1e-6, 1e4, multipliers):
        counts = _descended(curves, cost, multiplier, counts)
        found.setdefault(tuple(counts.tolist()), counts)
    best: list[Integers] = []
    least_loss = np.inf
    for counts in sorted(found.values(), key=lambda each: (cost.total(each), total_loss(curves, each))):
        loss = total_loss(curves, counts)
        if loss < least_loss or (counts == most).all():
            best.append(counts)
            least_loss = loss
    return best


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of several costs of the same groups."""
    return Cost(
        np.concatenate([cost.weight for cost in costs]) / len(costs),
        np.concatenate([cost.rows for cost in costs]),
        np.concatenate([cost.columns for cost in costs]),
        costs[0].kinds,
    )
