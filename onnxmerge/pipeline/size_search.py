"""The closest model with a given share of the parameters or MACs."""

from onnxmerge.pipeline.candidate_builder import CandidateBuilder, ChannelCounts
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.channel_multiples import multiple_for
from onnxmerge.pruning.budget import Allocation
from onnxmerge.pruning.kept_counts import HARDWARE_MULTIPLE

SIZE_TRIALS = 4
"""Candidates that are built; one nearly always has the size that was predicted, and a second one mends what was not."""
SIZE_TOLERANCE = 0.005
"""Relative distance below the budget that is not worth another candidate."""
COARSE_TOLERANCE = 0.05
"""Relative distance below the budget at which multiples count as too coarse for it."""
SMALLER = (0.98, 0.95, 0.8, 0.5, 0.0)
"""What is tried of the share where the candidates so far were all too large."""
JUST_BELOW = 1.0 - 1e-12
"""Factor of a share that excludes the allocation which takes exactly that share."""


def largest_within_size(builder: CandidateBuilder, kind: str, share: float) -> SearchResult:
    """The candidate of least expected loss that has at most a share of the parameters or MACs.

    Counts are allocated so that their predicted size fits. A candidate of another size, since its method kept other channels than
    was assumed or some could not be removed, moves the share that is allocated for.

    Parameters
    ----------
    builder : CandidateBuilder
        Builds the candidates.
    kind : str
        "params" or "macs".
    share : float
        What may remain, as a share of the reference's.

    Returns
    -------
    SearchResult
        The smallest candidate, as `unreached`, where none has so little.
    """
    best: tuple[float, Candidate] | None = None
    cut = ""
    adjusted, tried = share, list[ChannelCounts]()
    multiple, allocation = _coarsest(builder, kind, share, multiple_for(builder, kind, share))
    smallest = builder.budget.counts_for(kind, 0.0, multiple).counts
    for _ in range(SIZE_TRIALS):
        if builder.limit.is_over() and best is not None:
            cut = builder.limit.warning(f"{best[0]:.1%} of the {kind} are left, and {kind}={share:g} was asked for")
            break
        tried.append(allocation.counts)
        candidate = builder.candidate(allocation.counts)
        reached = candidate.remaining_share(kind, builder.analysed.size)
        if best is None or (reached <= share and not reached <= best[0] <= share) or share < reached < best[0]:
            best = (reached, candidate)
        too_small = reached < (1.0 - SIZE_TOLERANCE) * min(share, allocation.share)
        if not (reached > share or too_small) or allocation.counts == smallest:
            break
        adjusted *= share / reached
        if reached > share:
            adjusted = min(adjusted, allocation.share * JUST_BELOW)
        allocation = builder.budget.counts_for(kind, adjusted, multiple)
        if allocation.counts in tried:
            break
    assert best is not None
    for factor in () if cut else SMALLER:
        if best[0] <= share:
            break
        counts = builder.budget.counts_for(kind, factor * adjusted, multiple).counts
        if counts not in tried:
            tried.append(counts)
            candidate = builder.candidate(counts)
            best = min(best, (candidate.remaining_share(kind, builder.analysed.size), candidate), key=lambda each: each[0])
    reached, candidate = best
    limit = f" in multiples of {multiple or HARDWARE_MULTIPLE}" if multiple != 1 else ""
    if reached > share:
        return SearchResult(
            candidate, unreached=cut or f"{kind}={share:g} cannot be reached{limit}: at least {reached:.1%} must stay"
        )
    return SearchResult(candidate, (cut,) if cut else ())


def _coarsest(builder: CandidateBuilder, kind: str, share: float, multiple: int | None) -> tuple[int | None, Allocation]:
    """The multiple asked for; with None that which runs fast, or the largest that comes close to the share from below."""
    multiples = (multiple,) if multiple is not None else (None, HARDWARE_MULTIPLE // 2, 1)
    for each in multiples:
        allocation = builder.budget.counts_for(kind, share, each)
        if (1.0 - COARSE_TOLERANCE) * share <= allocation.share <= share:
            break
    return each, allocation
