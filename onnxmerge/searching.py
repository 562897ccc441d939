"""From what was asked for to a candidate: a ratio, counts or a plan at once; a budget or a fidelity by trying a few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxmerge.candidates import Candidate, candidate_of, moved
from onnxmerge.graph.channels import ChannelGroup
from onnxmerge.methods.budgeting import Budget, Point, budget_of
from onnxmerge.methods.by_weights import BY_WEIGHTS
from onnxmerge.methods.planning import Plan, counts_of, decide, selected
from onnxmerge.methods.probing import Probe, probe
from onnxmerge.methods.study import Study, engine_of, study_of
from onnxmerge.options import Options, provider_of
from onnxmerge.proof import CHECK_INPUTS, fidelity_of, time_pair
from onnxmerge.results import Comparison
from onnxmerge.stages import Tell
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.understanding import Understanding, understand

Counts = Mapping[str, int]

MULTIPLES = (4, 8, 16, 32)  # what --round-to auto tries beside no rounding
LATENCY_TOLERANCE = 0.05  # of the ratio that was asked for
SIZE_TRIALS, SIZE_TOLERANCE = 4, 0.005
LATENCY_TRIALS = 8
DRAFTS, FINALS = 4, 3  # models solved for a fidelity
DRAFT_INPUTS = 128
TRIAL_SECONDS = 1.5
SMALLEST_SHARE = 0.02
CLOSE_ENOUGH, FINAL_CLOSE_ENOUGH = 0.75, 0.6  # of the loss that is allowed
TINY = 1e-9


@dataclass(frozen=True)
class Found:
    """A candidate, and what the user should know of how it was found."""

    candidate: Candidate
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """What every attempt needs; the understanding is that of the study and is never rewritten."""

    source: Path
    understood: Understanding
    options: Options
    solving: Inputs
    checking: Inputs
    tell: Tell

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """Those that may shrink."""
        return selected(self.understood, self.options)[0]

    @cached_property
    def study(self) -> Study:
        """One walk over the reference, when something is first decided from it."""
        return study_of(self.understood, self.solving, self.options, self.tell)

    @cached_property
    def probes(self) -> dict[str, tuple[Probe, ...]]:
        """What the outputs lose when a part of one group goes, by group."""
        return probe(self.study, self.groups, self.understood.size.macs, self.options)

    @cached_property
    def budget(self) -> Budget:
        """What each group's channels are worth."""
        return budget_of(self.study, self.understood, self.groups, self.probes, self.options)

    def draft(self, counts: Counts) -> Candidate:
        """The model with these counts, solved on fewer inputs: good enough to choose counts by."""
        few = self.solving.count <= DRAFT_INPUTS or self.options.method in BY_WEIGHTS
        return self.candidate(counts) if few else self._made(decide(self.understood, self.options, self._quick, counts))

    @cached_property
    def _quick(self) -> Study:
        step = self.solving.batch_size or 1
        some = self.solving.chosen(np.arange(-(-DRAFT_INPUTS // step) * step), "first")
        return replace(self.study, engine=engine_of(self.understood, some, self.options, self.tell))

    def candidate(self, counts: Counts) -> Candidate:
        """The model with these counts, or what pruning alone gives where that stays closer."""
        study = None if self.options.method in BY_WEIGHTS else self.study
        made = self._made(decide(self.understood, self.options, study, counts))
        planned = made.kept.keys() <= dict(self.options.methods).keys()
        return made if self.options.method != "auto" or planned else self._no_worse_than_pruned(made, counts)

    def time(self, counts: Counts, against: Counts | None = None) -> Comparison:
        """Latency of a model with these counts against the source, or other counts; what its weights hold does not matter."""
        reference = self.source if against is None else self._outline(against)
        provider = provider_of(self.options)
        return time_pair(reference, self._outline(counts), self.checking, provider, self.options, seconds=TRIAL_SECONDS)

    def left(self, candidate: Candidate, kind: str) -> float:
        """Share of the parameters or MACs that a candidate has."""
        before, after = self.understood.size, candidate.size
        pair = (after.parameters, before.parameters) if kind == "params" else (after.macs, before.macs)
        return pair[0] / max(1, pair[1])

    def fidelity(self, candidate: Candidate) -> float:
        """Of the worst output, on the check inputs."""
        return fidelity_of(self.source, candidate.content, self.checking, self.options).worst.fidelity

    def _outline(self, counts: Counts) -> bytes:
        return self._made(decide(self.understood, replace(self.options, method="prune", kept=()), None, counts)).content

    def _made(self, plan: Plan) -> Candidate:
        fresh = understand(self.source)
        return candidate_of(self.source, fresh, replace(plan, removals=moved(fresh, plan.removals)))

    def _no_worse_than_pruned(self, candidate: Candidate, counts: Counts) -> Candidate:
        """The candidate, or what pruning alone gives if the outputs are closer then, measured on inputs that were solved on.

        Synthetic inputs do not look like data to a network that keeps its BatchNormalization statistics (the solve matched
        them): there pruning must also be better than a constant output to be believed.
        """
        normalised = any(node.op == "BatchNormalization" for node in self.understood.model.graph.nodes)
        least = 0.0 if normalised and self.options.calibration is None else -np.inf
        pruned = self._made(decide(self.understood, replace(self.options, method="prune"), None, counts))
        inputs = self.solving
        some = inputs.chosen(np.arange(min(inputs.count, CHECK_INPUTS)), "first") if inputs.batch_size is None else inputs
        reached = [fidelity_of(self.source, each.content, some, self.options).worst.fidelity for each in (candidate, pruned)]
        if reached[1] <= max(reached[0], least):
            return candidate
        note = f"pruning alone stays closer: fidelity {reached[1]:.3f}, not {reached[0]:.3f}"
        return replace(pruned, alone=True, groups=tuple(replace(group, note=group.note or note) for group in pruned.groups))


def search(wanted: Search) -> Found:
    """The candidate that the options ask for."""
    options = wanted.options
    if options.target is not None:
        return _within(wanted, *options.target)
    if options.fidelity is not None:
        return _faithful(wanted, options.fidelity)
    return Found(wanted.candidate(_rounded(wanted, counts_of(wanted.groups, options))))


def _within(wanted: Search, kind: str, share: float) -> Found:
    """As close as possible at a size or a latency.

    Counts are predicted to fit; a candidate whose size is another (the method kept other channels than was assumed, or some could
    not go) moves the aim.
    """
    if kind == "latency":
        return _fast(wanted, share)
    best: tuple[float, Candidate] | None = None
    aim, tried = share, list[Counts]()
    for _ in range(SIZE_TRIALS):
        point = _allocated(wanted, kind, aim)
        if point.counts in tried:
            break
        tried.append(point.counts)
        found = wanted.candidate(point.counts)
        left = wanted.left(found, kind)
        if best is None or (left <= share and not left <= best[0] <= share) or share < left < best[0]:
            best = (left, found)
        off = left > share or (left < (1.0 - SIZE_TOLERANCE) * share and left < (1.0 - SIZE_TOLERANCE) * point.share)
        if not off or point.counts == wanted.budget.counts_for(kind, 0.0).counts:
            break
        aim = min(aim * share / left, point.share * (1.0 - TINY)) if left > share else aim * share / left
    assert best is not None
    left, found = best
    note = f"{kind}={share:g} cannot be reached: at least {left:.1%} must stay" if left > share else ""
    return Found(found, (note,) if note else ())


def _allocated(wanted: Search, kind: str, share: float) -> Point:
    """The best counts at a size, in the multiples that run fastest where these are to be found."""
    plain = wanted.budget.counts_for(kind, share, _multiple(wanted.options))
    if wanted.options.round_to != "auto":
        return plain
    return _fastest(wanted, plain, [wanted.budget.counts_for(kind, share, multiple) for multiple in MULTIPLES])


def _fastest(wanted: Search, plain: Point, rounded: list[Point]) -> Point:
    """The rounded counts that are measurably faster than plain ones, if any."""
    best, least = plain, 1.0
    tried = [plain.counts]
    for point in rounded:
        if point.counts in tried:
            continue
        tried.append(point.counts)
        measured = wanted.time(point.counts, plain.counts)
        if measured.ratio_high < 1.0 and measured.ratio < least:
            best, least = point, measured.ratio
    return best


def _multiple(options: Options) -> int:
    return options.round_to if isinstance(options.round_to, int) else 1


def _rounded(wanted: Search, counts: Counts) -> Counts:
    """Counts that were asked for, in multiples: the nearest, never none."""

    def nearest(multiple: int) -> dict[str, int]:
        sizes = {group.name: (group.size, len(np.unique(group.cells))) for group in wanted.groups}
        found = {}
        for name, count in counts.items():
            size, cells = sizes[name]
            step = multiple * cells // math.gcd(multiple, cells)
            found[name] = min(size, max(step, step * round(count / step))) if count < size else size
        return found

    if wanted.options.round_to is None:
        return counts
    if wanted.options.round_to != "auto":
        return nearest(_multiple(wanted.options))
    points = [Point(nearest(multiple), 0.0, 0.0) for multiple in MULTIPLES]
    return _fastest(wanted, Point(dict(counts), 0.0, 0.0), points).counts


def _fast(wanted: Search, share: float) -> Found:
    """The largest model whose measured latency is `share` of the reference's: bisection over MACs, on models that are timed only.

    The ratio that counts is the last one, taken of the candidate itself.
    """
    low, high = SMALLEST_SHARE, 1.0
    best: tuple[float, Point, float] | None = None
    aim = share
    for _ in range(LATENCY_TRIALS):
        point = _allocated(wanted, "macs", aim)
        ratio = wanted.time(point.counts).ratio
        off = abs(ratio / share - 1.0)
        if best is None or off < best[0]:
            best = (off, point, ratio)
        if off <= 0.5 * LATENCY_TOLERANCE:
            break
        low, high = (aim, high) if ratio < share else (low, aim)
        aim = 0.5 * (low + high)
    assert best is not None
    off, point, ratio = best
    found = wanted.candidate(point.counts)
    note = f"latency={share:g} was not reached within {LATENCY_TOLERANCE:.0%}: the best found takes {ratio:.2f} of the time"
    return Found(found, (note,) if off > LATENCY_TOLERANCE else ())


def _faithful(wanted: Search, fidelity: float) -> Found:
    """The smallest model whose outputs keep the fidelity on the check inputs.

    Points of the frontier are tried: first where the predicted damage is what may be lost, then where the losses measured so far
    say that it will be, between the largest loss that passed and the smallest that did not. Drafts narrow it down.
    """
    bracket = _Bracket(wanted.budget.points(_multiple(wanted.options)), 1.0 - fidelity)
    for _ in range(DRAFTS):
        at = bracket.next()
        if at is None or bracket.measured(at, 1.0 - wanted.fidelity(wanted.draft(bracket.points[at].counts))):
            break
    bracket.reopen()
    best: Candidate | None = None
    for _ in range(FINALS):
        at = bracket.next()
        if at is None:
            break
        candidate = wanted.candidate(_rounded(wanted, bracket.points[at].counts))
        enough = bracket.measured(at, 1.0 - wanted.fidelity(candidate))
        best = candidate if bracket.passing == at else best
        if enough:
            break
    if best is None:
        whole = bracket.points[-1].counts
        return Found(wanted.candidate(whole), (f"no smaller model was found that keeps a fidelity of {fidelity:g}",))
    return Found(best)


class _Bracket:
    """Where on a frontier the loss is what is allowed; the last point removes nothing and always passes."""

    def __init__(self, points: list[Point], allowed: float) -> None:
        self.points, self.allowed, self.close = points, allowed, CLOSE_ENOUGH
        self.passing, self.failing, self.scale = len(points) - 1, -1, 1.0
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
        return next((i for i in inside if self.points[i].damage * self.scale <= hoped), inside[-1])

    def measured(self, at: int, lost: float) -> bool:
        """Learn from a loss; whether it is close enough to what is allowed."""
        lost = max(lost, TINY)
        self.scale = lost / max(self.points[at].damage, TINY)
        if lost > self.allowed:
            self.failing = max(self.failing, at)
            return False
        self.passing = min(self.passing, at)
        return lost >= self.close * self.allowed

    def reopen(self) -> None:
        """Begin again where the drafts ended, with models solved in full, which lose less; what was learnt of the scale holds."""
        self.drafted = self.passing if self.passing < len(self.points) - 1 else None
        self.passing, self.failing, self.close = len(self.points) - 1, -1, FINAL_CLOSE_ENOUGH
