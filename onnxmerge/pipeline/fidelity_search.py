"""The fastest or smallest model whose outputs keep a fidelity on the checking inputs."""

from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.channel_multiples import multiple_for
from onnxmerge.pipeline.monotone_search import MonotoneSearch
from onnxmerge.pruning.budget import Allocation

QUICK_TRIALS, FULL_TRIALS, RESCUE_TRIALS = 6, 4, 4
"""Candidates that are built at most: quick ones to narrow the search down, then full ones, and more of these while none passes."""
GOAL, QUICK_CLOSE = 0.866, 0.75
"""Shares of the allowed loss: what is aimed at, so that a candidate that loses a little more than expected still passes, and
what a quick candidate must lose to be close enough."""
WORTH_A_TRIAL = 0.02
"""Least share of the predicted time, MACs or parameters that another candidate must be expected to save."""


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
        The whole model, with a warning, where no smaller one was found.
    """
    allocations, allowed = _allocations(builder, fidelity), 1.0 - fidelity
    search = _search(allocations, allowed)
    quick_trials, full_trials = (0, FULL_TRIALS + QUICK_TRIALS) if builder.quick_loss == 1.0 else (QUICK_TRIALS, FULL_TRIALS)
    for _ in range(quick_trials):
        index = _worth_building(search, allocations)
        if index is None:
            break
        loss = _loss(builder, builder.quick_candidate(allocations[index].counts)) / builder.quick_loss
        search.record(index, loss)
        if QUICK_CLOSE * allowed <= loss <= allowed:
            break
    if quick_trials:
        search.restart()
    best: Candidate | None = None
    for trial in range(full_trials + RESCUE_TRIALS):
        index = _worth_building(search, allocations)
        if index is None or (trial >= full_trials and best is not None):
            break
        candidate = builder.candidate(allocations[index].counts)
        search.record(index, _loss(builder, candidate))
        best = candidate if search.passing == index else best
    if best is not None:
        return SearchResult(best)
    whole = builder.candidate(allocations[-1].counts)
    return SearchResult(whole, (f"no smaller model was found that keeps a fidelity of {fidelity:g}",))


def _worth_building(search: MonotoneSearch, allocations: list[Allocation]) -> int | None:
    """What is to be built next; None where a candidate passes and the next one would hardly be smaller."""
    index = search.next()
    if index is None or search.passing == len(allocations) - 1:
        return index
    passing = allocations[search.passing].share
    return index if passing - allocations[index].share >= WORTH_A_TRIAL * passing else None


def _loss(builder: CandidateBuilder, candidate: Candidate) -> float:
    return 1.0 - builder.fidelity_on(builder.checking, candidate)


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
