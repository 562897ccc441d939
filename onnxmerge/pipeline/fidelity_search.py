"""The fastest or smallest model whose outputs keep a fidelity on the checking inputs."""

from dataclasses import dataclass

from onnxmerge.pipeline.candidate_builder import QUICK_COST, CandidateBuilder
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.channel_multiples import multiple_for
from onnxmerge.pipeline.monotone_search import MonotoneSearch
from onnxmerge.pruning.budget import Allocation

QUICK_TRIALS, FULL_TRIALS, RESCUE_TRIALS = 6, 4, 4
"""Candidates that are built at most: quick ones to narrow the search down, then full ones, and more while none of them passes."""
GOAL, QUICK_CLOSE = 0.866, 0.75
"""Shares of the allowed loss: what is aimed at, so that a candidate that loses a little more than expected still passes, and
what a quick candidate must lose to be close enough."""
WORTH_A_TRIAL, WORTH_REMOVING, HOPELESS = 0.02, 0.005, 0.01
"""Least share of the predicted time, MACs or parameters that another candidate must be expected to save, and that one must while
none passes; and the share of the allowed loss below which a prediction that fails ends the search. Some networks lose more than
is allowed by any removal, and would take candidate after candidate to find that out."""


def smallest_with_fidelity(builder: CandidateBuilder, fidelity: float) -> SearchResult:
    """The candidate that keeps a fidelity at the least predicted time, MACs or parameters, as `minimize` says.

    Parameters
    ----------
    builder : CandidateBuilder
        Builds and measures the candidates.
    fidelity : float
        Least fidelity of the worst output.

    Returns
    -------
    SearchResult
        With a warning where a time limit cut the search: then the closest candidate where none passes; elsewhere the whole model
        then.
    """
    allocations, allowed = _allocations(builder, fidelity), 1.0 - fidelity
    search, quick, full = _search(allocations, allowed), _Best(allowed), _Best(allowed)
    is_cut = builder.quick_loss != 1.0 and _search_quickly(builder, search, allocations, quick)
    is_cut = is_cut or _search_in_full(builder, search, allocations, full, 0 if quick.count else QUICK_TRIALS)
    if not is_cut and full.passing is None:
        whole = {group.name: group.size for group in builder.groups}
        result = builder.candidate(allocations[-1].counts)  # without channels that nobody reads, or that seemed to be of no use
        if allocations[-1].counts != whole and 1.0 - builder.fidelity_of(result) > allowed:
            result = builder.pruned_candidate(whole)
        return SearchResult(result, (f"no smaller model was found that keeps a fidelity of {fidelity:g}",))
    best = full.passing or quick.passing or full.closest or quick.closest
    assert best is not None
    reached = f"the best of {quick.count + full.count} keeps a fidelity of {1.0 - best.loss:.4f}, and {fidelity:g} was asked for"
    return SearchResult(best.candidate, (builder.limit.warning(reached),) if is_cut else ())


@dataclass(frozen=True)
class _Measured:
    """A candidate, the index of its allocation, and what its outputs lose."""

    index: int
    candidate: Candidate
    loss: float


@dataclass
class _Best:
    """Of `count` candidates the smallest that loses no more than is allowed, and the one that loses least."""

    allowed: float
    count: int = 0
    passing: _Measured | None = None
    closest: _Measured | None = None

    def measure(self, builder: CandidateBuilder, index: int, candidate: Candidate, quickly: bool = False) -> float:
        """The candidate's loss; quickly: on fewer inputs."""
        found = _Measured(index, candidate, 1.0 - builder.fidelity_of(candidate, quickly))
        self.count += 1
        if self.closest is None or not found.loss >= self.closest.loss:
            self.closest = found
        if found.loss <= self.allowed and (self.passing is None or index < self.passing.index):
            self.passing = found
        return found.loss


def _search_quickly(builder: CandidateBuilder, search: MonotoneSearch, allocations: list[Allocation], best: _Best) -> bool:
    """Narrow the search down. Whether the time limit ends it here: there is none left for a full candidate."""
    while best.count < QUICK_TRIALS and (index := _worth_building(search, allocations, best.allowed)) is not None:
        if builder.limit.is_over() and best.count:
            return True
        loss = best.measure(builder, index, builder.quick_candidate(allocations[index].counts), True) / builder.quick_loss
        search.record(index, loss)
        if QUICK_CLOSE * best.allowed <= loss <= best.allowed:
            break
    search.restart()
    return best.count > 0 and builder.limit.is_over(1.0 / QUICK_COST)


def _search_in_full(
    builder: CandidateBuilder, search: MonotoneSearch, allocations: list[Allocation], best: _Best, more_trials: int
) -> bool:
    """Build candidates on all inputs. Whether the time limit ended it."""
    trials = FULL_TRIALS + more_trials
    while best.count < trials + (best.passing is None) * RESCUE_TRIALS:
        index = _worth_building(search, allocations, best.allowed)
        if index is None:
            return False
        if builder.limit.is_over() and best.count:
            return True
        search.record(index, best.measure(builder, index, builder.candidate(allocations[index].counts)))
    return False


def _worth_building(search: MonotoneSearch, allocations: list[Allocation], allowed: float) -> int | None:
    """What is to be built next; None where it would hardly be smaller than what passes, or where it is hopeless."""
    index, none_passes = search.next(), search.passing == len(allocations) - 1
    if index is None or (none_passes and search.failing >= 0 and allocations[search.failing].loss <= HOPELESS * allowed):
        return None
    least = WORTH_REMOVING if none_passes else WORTH_A_TRIAL
    passing = allocations[search.passing].share
    return index if passing - allocations[index].share >= least * passing else None


def _allocations(builder: CandidateBuilder, fidelity: float) -> list[Allocation]:
    """The Pareto front of cost and predicted loss, the smallest model first, in multiples of channels.

    The multiples are those asked for; with "measured" those that are fastest at about the size that will come out.
    """
    quantity, share = builder.pruning.minimize or "latency", 1.0
    if builder.pruning.round_to == "measured":
        front = builder.budget.pareto_front(quantity)
        share = front[_search(front, 1.0 - fidelity).next() or 0].share
    return builder.budget.pareto_front(quantity, multiple_for(builder, quantity, share))


def _search(allocations: list[Allocation], allowed: float) -> MonotoneSearch:
    """Along a Pareto front but for its end, where nothing is removed."""
    losses = [each.loss for each in allocations[:-1]]
    return MonotoneSearch(losses, goal=GOAL * allowed, allowed=allowed)
