"""From what was asked for to a candidate: a ratio, counts or a plan at once; a budget or a fidelity by trying a few."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxmerge.pipeline.builder import Counts, Found, Search
from onnxmerge.pipeline.candidates import Candidate
from onnxmerge.pipeline.search_latency import FRIENDLY, multiple_for, rounded, within_latency
from onnxmerge.pruning.budget import BOTH, Allocation
from onnxmerge.pruning.plan import counts_of

SIZE_TRIALS, SIZE_TOLERANCE = 4, 0.005
DRAFTS, FINALS, RESCUES = 4, 3, 4  # models solved for a fidelity; rescues while none has kept it
CLOSE_ENOUGH, FINAL_CLOSE_ENOUGH = 0.75, 0.6  # of the loss that is allowed
LEAST_POWER = 0.05
TINY, RUIN = 1e-12, 1e6  # the least and the greatest loss, where outputs are not finite any more


def search(wanted: Search) -> Found:
    """The candidate that the options ask for."""
    options = wanted.pruning
    if not wanted.groups:
        pruned = replace(wanted.options, pruning=replace(options, method="prune"))
        return Found(replace(wanted, options=pruned).candidate({}))
    if options.target is not None:
        return _within(wanted, *options.target)
    if options.fidelity is not None:
        return _faithful(wanted, options.fidelity)
    return Found(wanted.candidate(rounded(wanted, counts_of(wanted.groups, options))))


def _within(wanted: Search, kind: str, share: float) -> Found:
    """As close as possible at a size or a latency.

    Counts are predicted to fit; a candidate whose size is another (the method kept other channels than was assumed, or some could
    not go) moves the aim.
    """
    if kind == "latency":
        return within_latency(wanted, share)
    best: tuple[float, Candidate] | None = None
    aim, multiple, tried = share, multiple_for(wanted, kind, share), list[Counts]()
    for _ in range(SIZE_TRIALS):
        point = wanted.budget.counts_for(kind, aim, multiple)
        if point.counts in tried:
            break
        tried.append(point.counts)
        found = wanted.candidate(point.counts)
        left = wanted.left(found, kind)
        if best is None or (left <= share and not left <= best[0] <= share) or share < left < best[0]:
            best = (left, found)
        off = left > share or (left < (1.0 - SIZE_TOLERANCE) * share and left < (1.0 - SIZE_TOLERANCE) * point.share)
        if not off or point.counts == wanted.budget.counts_for(kind, 0.0, multiple).counts:
            break
        aim = min(aim * share / left, point.share * (1.0 - TINY)) if left > share else aim * share / left
    assert best is not None
    left, found = best
    note = f"{kind}={share:g} cannot be reached: at least {left:.1%} must stay" if left > share else ""
    return Found(found, (note,) if note else ())


def _faithful(wanted: Search, fidelity: float) -> Found:
    """The smallest model whose outputs keep the fidelity on the check inputs.

    Allocations of the Pareto front are tried: first where the predicted loss is the allowed loss, then where the losses
    measured so far say that it will be, between the largest loss that passed and the smallest that did not.
    Drafts narrow it down.
    """
    bracket = _Bracket(_ways(wanted, fidelity), 1.0 - fidelity)
    for _ in range(DRAFTS):
        at = bracket.next()
        if at is None or bracket.measured(at, 1.0 - wanted.fidelity(wanted.draft(bracket.points[at].counts))):
            break
    bracket.reopen()
    best: Candidate | None = None
    for number in range(FINALS + RESCUES):
        at = bracket.next()
        if at is None or (number >= FINALS and best is not None):
            break
        candidate = wanted.candidate(bracket.points[at].counts)
        enough = bracket.measured(at, 1.0 - wanted.fidelity(candidate))
        best = candidate if bracket.passing == at else best
        if enough:
            break
    if best is None:
        whole = bracket.points[-1].counts
        return Found(wanted.candidate(whole), (f"no smaller model was found that keeps a fidelity of {fidelity:g}",))
    return Found(best)


def _ways(wanted: Search, fidelity: float) -> list[Allocation]:
    """The Pareto front, in multiples: those asked for, the fastest at about this size, or what most hardware likes."""
    if wanted.pruning.round_to is None:
        return wanted.budget.pareto_front(FRIENDLY, softly=True)
    plain = wanted.budget.pareto_front()
    hoped = plain[_Bracket(plain, 1.0 - fidelity).next() or 0]
    return wanted.budget.pareto_front(multiple_for(wanted, BOTH, hoped.share))


class _Bracket:
    """Where on a Pareto front the loss is what is allowed; the last point removes nothing and always passes.

    Losses are expected to follow a power of the predicted loss, through the nearest that were measured.
    """

    def __init__(self, points: list[Allocation], allowed: float) -> None:
        self.points, self.allowed, self.close = points, allowed, CLOSE_ENOUGH
        self.passing, self.failing = len(points) - 1, -1
        self.losses: dict[int, float] = {}
        self.drafted: int | None = None

    def next(self) -> int | None:
        """The point to try: the smallest whose loss is expected just below what is allowed; None where nothing is left."""
        if self.drafted is not None:
            at, self.drafted = self.drafted, None
            return at
        inside = range(self.failing + 1, self.passing)
        if not inside:
            return None
        hoped = CLOSE_ENOUGH**0.5 * self.allowed
        return next((i for i in inside if self._expected(i) <= hoped), inside[-1])

    def _expected(self, at: int) -> float:
        loss = [math.log(max(point.loss, TINY)) for point in self.points]
        near = sorted(self.losses, key=lambda known: (abs(known - at), known))[:2]
        if not near:
            return max(self.points[at].loss, TINY)
        power, first = 1.0, near[0]
        if len(near) == 2 and abs(loss[first] - loss[near[1]]) > TINY:
            rise = math.log(self.losses[first] / self.losses[near[1]])
            power = min(max(rise / (loss[first] - loss[near[1]]), LEAST_POWER), 1.0)
        return self.losses[first] * math.exp(power * (loss[at] - loss[first]))

    def measured(self, at: int, lost: float) -> bool:
        """Learn from a loss; whether it is close enough to what is allowed."""
        lost = min(max(lost, TINY), RUIN) if lost == lost else RUIN
        self.losses[at] = lost
        if lost > self.allowed:
            self.failing = max(self.failing, at)
            return False
        self.passing = min(self.passing, at)
        return lost >= self.close * self.allowed

    def reopen(self) -> None:
        """Begin again where the drafts ended, with models solved in full, which lose less; known losses still tell of others."""
        self.drafted = self.passing if self.passing < len(self.points) - 1 else None
        self.passing, self.failing, self.close = len(self.points) - 1, -1, FINAL_CLOSE_ENOUGH
