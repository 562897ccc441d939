"""The fastest or smallest model whose outputs keep a fidelity, and their decisions, on the checking inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.options import DECIDED_FIDELITY, DEFAULT_FIDELITY, PruningOptions
from onnxmerge.pipeline.candidate_builder import QUICK_COST, CandidateBuilder
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.channel_multiples import multiple_for
from onnxmerge.pipeline.model_measurements import QUICK_INPUTS
from onnxmerge.pipeline.monotone_search import MonotoneSearch
from onnxmerge.pruning.budget import Allocation
from onnxmerge.results import OutputFidelity
from onnxmerge.results.fidelity import ROW_FIDELITY

QUICK_TRIALS, FULL_TRIALS, RESCUE_TRIALS = 6, 4, 4
"""Candidates that are built at most: quick ones to narrow the search down, then full ones, and more while none of them passes."""
GOAL, QUICK_CLOSE = 0.866, 0.75
"""Shares of the allowed loss: what is aimed at, so that a candidate that loses a little more than expected still passes, and
what a quick candidate must lose to be close enough. A full one that passes with as much as is aimed at ends the search."""
WORTH_A_TRIAL, WORTH_REMOVING, HOPELESS = 0.02, 0.005, 0.01
"""Least share of the predicted time, MACs or parameters that another candidate must be expected to save, and that a quick one, or
one while none passes, must; and the share of the allowed loss below which a prediction that fails by far ends the search. Some
networks lose more than is allowed by any removal, and would take candidate after candidate to find that out."""

FAR = 3.0
"""Multiple of the allowed loss from which on a candidate that fails is no near miss, but fails by far. Where of the least
removal worth having both the prediction and a quick candidate are as far off, no full one is built: a quick one of a classifier
with one group lost 8 times what is allowed, in 3 CPU seconds, where the full one took 18 to lose 7."""

WITHOUT_A_TRACE = 1e-6
"""Predicted loss that is aimed at where no decision may change: copies of channels have up to 5e-7. Quick candidates, solved on
few inputs, would lose more."""

MINIMIZED = {"latency": "predicted time", "macs": "MACs", "params": "parameters"}
"""What `minimize` spends least of, in words."""

WILL_FAIL = 1.5
"""Expected share of the allowed loss from which on nothing is built, where one candidate passes and others tell what to expect:
of a ResNet-56 two candidates in six, 14 of 47 CPU seconds."""


def loss_of(outputs: Sequence[OutputFidelity], pruning: PruningOptions) -> float:
    """What the worst output loses, as a multiple of what is allowed: 1 just passes.

    Unexplained variance grows with the square of the outputs' error and changed decisions with the error itself, so that their
    square is taken: both then follow the predicted loss. Where no fidelity is asked for, and an output holds no decisions,
    rows that vary little beside others, as scores do beside boxes, must not be lost for them.
    """

    def lost(output: OutputFidelity) -> float:
        most, changed = pruning.max_changed_decisions, output.changed_decisions
        decided = 0.0 if most is None or not changed else (changed / most) ** 2 if most else math.inf
        least = DEFAULT_FIDELITY if most is None or changed is None else DECIDED_FIDELITY
        rows = 0.0
        if pruning.fidelity is None and not output.has_decisions:
            rows = (1.0 - output.worst_row_fidelity) / (1.0 - ROW_FIDELITY)
        return max((1.0 - output.fidelity) / (1.0 - (pruning.fidelity or least)), decided, rows)

    return max(map(lost, outputs))


def smallest_with_fidelity(builder: CandidateBuilder) -> SearchResult:
    """The candidate that keeps what was asked for at the least predicted time, MACs or parameters, as `minimize` says.

    Parameters
    ----------
    builder : CandidateBuilder
        Builds and measures the candidates; its options say what the outputs must keep.

    Returns
    -------
    SearchResult
        The whole model where no candidate passes. Where a time limit cut the search, with a warning, and where none had passed by
        then, the closest one as `missed`.
    """
    may_change = builder.pruning.max_changed_decisions != 0.0
    allowed = 1.0 - (builder.pruning.fidelity or DEFAULT_FIDELITY) if may_change else WITHOUT_A_TRACE
    allocations = _allocations(builder, allowed)
    search, quick, full = _search(allocations, allowed), _Best(), _Best()
    is_cut = may_change and builder.quick_loss != 1.0 and _search_quickly(builder, search, allocations, quick)
    if not is_cut and not quick.is_hopeless:
        if quick.count:
            search.restart()
        is_cut = _search_in_full(builder, search, allocations, full, 0 if quick.count else QUICK_TRIALS)
    if not is_cut and full.passing is None:
        whole = {group.name: group.size for group in builder.groups}
        result = builder.candidate(allocations[-1].counts)  # without channels that nobody reads, or that seemed to be of no use
        if allocations[-1].counts != whole and loss_of(builder.outputs_of(result), builder.pruning) > 1.0:
            result = builder.pruned_candidate(whole)
        closest = full.closest or quick.closest
        asked = asked_of(builder.pruning, closest.outputs if closest else builder.outputs_of(result, quickly=True))
        none = (
            "beside channels of no use nothing was found that may go and" if result.groups else "no smaller model was found that"
        )
        found = f"{none} keeps {asked}"
        if closest is not None:
            quantity = MINIMIZED[builder.pruning.minimize or "latency"]
            saved = 1.0 - allocations[closest.index].share
            found += f": the closest, with {saved:.1%} less {quantity}, keeps {kept_by(closest.outputs)}"
        return SearchResult(result, (found,))
    best = full.passing or quick.passing or full.closest or quick.closest
    assert best is not None
    if not is_cut:
        return SearchResult(best.candidate)
    outputs = builder.outputs_of(best.candidate)  # on all inputs, which a quick candidate was not measured on
    asked = asked_of(builder.pruning, outputs)
    reached = f"the best of {quick.count + full.count} keeps {kept_by(outputs)}, and {asked} was asked for"
    told = builder.limit.warning(reached)
    if loss_of(outputs, builder.pruning) > 1.0:
        return SearchResult(best.candidate, missed=told)
    is_quick = best is quick.passing or best is quick.closest
    solved = f"; its layers are solved on {QUICK_INPUTS} inputs, and those of its plan on all" if is_quick else ""
    return SearchResult(best.candidate, (told + solved,))


@dataclass(frozen=True)
class _Measured:
    """A candidate, the index of its allocation, its outputs, and what they lose."""

    index: int
    candidate: Candidate
    outputs: tuple[OutputFidelity, ...]
    loss: float


@dataclass
class _Best:
    """Of `count` candidates the smallest that loses no more than is allowed, and the one that loses least.

    is_hopeless: whether no candidate is expected to pass.
    """

    count: int = 0
    passing: _Measured | None = None
    closest: _Measured | None = None
    is_hopeless: bool = False

    def measure(self, builder: CandidateBuilder, index: int, candidate: Candidate, quickly: bool = False) -> float:
        """The candidate's loss; quickly: on fewer inputs."""
        outputs = builder.outputs_of(candidate, quickly)
        found = _Measured(index, candidate, outputs, loss_of(outputs, builder.pruning))
        self.count += 1
        if self.closest is None or not found.loss >= self.closest.loss:
            self.closest = found
        if found.loss <= 1.0 and (self.passing is None or index < self.passing.index):
            self.passing = found
        return found.loss


def _search_quickly(builder: CandidateBuilder, search: MonotoneSearch, allocations: list[Allocation], best: _Best) -> bool:
    """Narrow the search down. Whether the time limit ends it here: there is none left for a full candidate.

    After two candidates that are far off the one of the least removal worth having tells whether there is any.
    """
    loss, least = 0.0, _least_worth_removing(allocations)
    while best.count < QUICK_TRIALS and (index := _worth_building(search, allocations, WORTH_REMOVING)) is not None:
        if builder.limit.is_over() and best.count:
            return True
        if loss > FAR and best.count > 1 and search.passing > least:
            index = least
        loss = best.measure(builder, index, builder.quick_candidate(allocations[index].counts), True) / builder.quick_loss
        search.record(index, loss)
        if QUICK_CLOSE <= loss <= 1.0:
            break
    best.is_hopeless = search.failing >= least >= 0 and min(loss, search.predicted[search.failing]) > FAR
    return best.count > 0 and builder.limit.is_over(1.0 / QUICK_COST)


def _search_in_full(
    builder: CandidateBuilder, search: MonotoneSearch, allocations: list[Allocation], best: _Best, more_trials: int
) -> bool:
    """Build candidates on all inputs. Whether the time limit ended it."""
    trials = FULL_TRIALS + more_trials
    while best.count < trials + (best.passing is None) * RESCUE_TRIALS:
        index = _worth_building(search, allocations, WORTH_A_TRIAL, was_searched=not more_trials)
        if index is None:
            return False
        if builder.limit.is_over() and best.count:
            return True
        loss = best.measure(builder, index, builder.candidate(allocations[index].counts))
        search.record(index, loss)
        if GOAL <= loss <= 1.0:
            break
    return False


def _least_worth_removing(allocations: Sequence[Allocation]) -> int:
    """Index of the last allocation that saves `WORTH_REMOVING`; -1 for none."""
    most = (1.0 - WORTH_REMOVING) * allocations[-1].share
    return sum(each.share <= most for each in allocations) - 1


def _worth_building(
    search: MonotoneSearch, allocations: list[Allocation], least: float, was_searched: bool = False
) -> int | None:
    """What is to be built next; None where it is not expected to save the least share of what passes, or where it is hopeless.

    was_searched: whether quick candidates have told what to expect.
    """
    index, none_passes = search.next(), search.passing == len(allocations) - 1
    failing, allowed = search.failing, search.allowed
    is_hopeless = failing >= 0 and search.predicted[failing] <= HOPELESS * allowed and search.expected(failing) > FAR * allowed
    if index is None or (none_passes and is_hopeless):
        return None
    if not none_passes and (was_searched or search.failing >= 0) and search.expected(index) > WILL_FAIL:
        return None
    least = WORTH_REMOVING if none_passes else least
    passing = allocations[search.passing].share
    return index if passing - allocations[index].share >= least * passing else None


def kept_by(outputs: Sequence[OutputFidelity]) -> str:
    """What outputs keep, in the words of `asked_of`; or why that is not known."""
    if defects := [output.defect for output in outputs if output.defect]:
        return f"no fidelity that can be measured ({defects[0]})"
    rows = [output.worst_row_fidelity for output in outputs if output.rows and not output.has_decisions]
    worst = f" ({min(rows):.4f} in the worst row)" if rows else ""
    changes = [output.changed_decisions for output in outputs if output.changed_decisions is not None]
    decided = f" and changes {max(changes):.1%} of the decisions" if changes else ""
    return f"a fidelity of {min(output.fidelity for output in outputs):.4f}{worst}{decided}"


def asked_of(pruning: PruningOptions, outputs: Sequence[OutputFidelity]) -> str:
    """What the outputs must keep, in words."""
    most, decided = pruning.max_changed_decisions, [output.changed_decisions is not None for output in outputs]
    least = pruning.fidelity or (DECIDED_FIDELITY if all(decided) else DEFAULT_FIDELITY)
    decisions = "all of the decisions" if most == 0.0 else f"all but {100.0 * (most or 0.0):g}% of the decisions"
    kept = "" if most is None or (decided and not any(decided)) else f" and {decisions}"
    are_judged = any(output.rows and not output.has_decisions for output in outputs)
    rows = f" ({ROW_FIDELITY:g} in every row)" if pruning.fidelity is None and are_judged else ""
    return f"a fidelity of {least:g}{rows}{kept}"


def _allocations(builder: CandidateBuilder, allowed: float) -> list[Allocation]:
    """The Pareto front of cost and predicted loss, the smallest model first, in multiples of channels.

    The multiples are those asked for; with "measured" those that are fastest at about the size that will come out.
    """
    quantity, share = builder.pruning.minimize or "latency", 1.0
    if builder.pruning.round_to == "measured":
        front = builder.budget.pareto_front(quantity)
        share = front[_search(front, allowed).next() or 0].share
    return builder.budget.pareto_front(quantity, multiple_for(builder, quantity, share))


def _search(allocations: list[Allocation], allowed: float) -> MonotoneSearch:
    """Along a Pareto front but for its end, where nothing is removed."""
    losses = [each.loss / allowed for each in allocations[:-1]]
    return MonotoneSearch(losses, goal=GOAL, allowed=1.0)
