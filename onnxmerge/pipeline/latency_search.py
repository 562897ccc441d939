"""The model whose measured latency is a given share of the reference's."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.evaluation.benchmark import CONFIRMING_EFFORT
from onnxmerge.pipeline.candidate_builder import CandidateBuilder, ChannelCounts
from onnxmerge.pipeline.candidates import SearchResult
from onnxmerge.pipeline.channel_multiples import MEASURED_MULTIPLES, fastest_multiple
from onnxmerge.pipeline.monotone_search import MonotoneSearch
from onnxmerge.pruning.kept_counts import HARDWARE_MULTIPLE

LATENCY_TOLERANCE = 0.05
"""Relative distance from the latency ratio that was asked for at which it counts as reached."""
CLOSE_ENOUGH, WORTH_REPEATING = 0.4 * LATENCY_TOLERANCE, 0.5 * LATENCY_TOLERANCE
"""Relative distances at which a search ends, and below which a measurement is repeated for longer before it is believed: at most
half of the tolerance, so that the latency is still within it when the result is timed once more."""
LATENCY_TRIALS = 8
"""Models that are timed for one multiple: as many as bisection would need for all of `TIME_SHARES`."""
TIME_SHARES = tuple(0.99**step for step in range(390))
"""What models are allocated for, as shares of the predicted time that removals can save: down to 2 %, in steps below the
tolerance."""


@dataclass(frozen=True)
class _TimedCounts:
    """Channel counts that were timed.

    Attributes
    ----------
    counts : ChannelCounts
        Kept channels by group.
    ratio : float
        Latency over that of the reference.
    distance : float
        Of the ratio from the one asked for, as a share of it.
    reliable : bool
        Whether it was measured for long enough to be reported.
    """

    counts: ChannelCounts
    ratio: float
    distance: float
    reliable: bool


def closest_to_latency(builder: CandidateBuilder, share: float) -> SearchResult:
    """The candidate whose latency is closest to a share of the reference's.

    Counts are multiples that run fast where none are asked for. Multiples may step over the latency: then smaller ones are tried,
    at last single channels. Models are only timed meanwhile; the chosen one is built in full.

    Parameters
    ----------
    builder : CandidateBuilder
        Builds and times the candidates.
    share : float
        Latency asked for, as a share of the reference's.

    Returns
    -------
    SearchResult
        With the latency ratio; the caller compares it with the share.
    """
    round_to = builder.pruning.round_to
    multiples: list[int | None] = [round_to] if isinstance(round_to, int) else [None, 4, 1]
    if round_to == "measured":
        multiples = _descending(fastest_multiple(builder, "latency", share))
    best: _TimedCounts | None = None
    for multiple in multiples:
        found = _closest_in_multiples(builder, share, multiple)
        best = found if best is None or found.distance < best.distance else best
        if best.distance <= LATENCY_TOLERANCE or builder.limit.is_over():
            break
    assert best is not None
    timed_again = builder.options.verify and builder.options.bench
    ratio = best.ratio if best.reliable or timed_again else _timed(builder, best.counts, share, reliable=True).ratio
    is_cut = best.distance > LATENCY_TOLERANCE and builder.limit.is_over(0.0)
    cut = (builder.limit.warning(f"the closest model found takes {ratio:.2f} of the time"),) if is_cut else ()
    return SearchResult(builder.candidate(best.counts), cut, latency_ratio=ratio)


def _descending(fastest: int) -> list[int | None]:
    """From the fastest multiple on: 32 -> 32, 16, 8, 1; 4 -> 4, 8, 1."""
    smaller = [multiple for multiple in reversed(MEASURED_MULTIPLES) if HARDWARE_MULTIPLE <= multiple < fastest]
    return list(dict.fromkeys((fastest, *smaller, HARDWARE_MULTIPLE, 1)))


def _closest_in_multiples(builder: CandidateBuilder, share: float, multiple: int | None) -> _TimedCounts:
    """The counts in multiples whose latency comes closest to the share."""
    least = builder.budget.counts_for("latency", 0.0, multiple).share
    shares = [least + (1.0 - least) * share for share in TIME_SHARES]
    search = MonotoneSearch(shares, goal=share, allowed=(1.0 + CLOSE_ENOUGH) * share, known={0: 1.0})
    timed: list[_TimedCounts] = []
    while len(timed) < LATENCY_TRIALS and (index := search.next()) is not None:
        allocation = builder.budget.counts_for("latency", shares[index], multiple)
        known = next((each for each in timed if each.counts == allocation.counts), None)
        found = known or _timed(builder, allocation.counts, share)
        timed += [] if known else [found]
        search.record(index, found.ratio, _last_with(shares, allocation.share, index))
        if found.distance <= CLOSE_ENOUGH or builder.limit.is_over():
            break
    return min(timed, key=lambda each: each.distance)


def _last_with(shares: Sequence[float], share: float, index: int) -> int:
    """The last of the shares with the same allocation as the one at an index, which took a share of the predicted time."""
    last = bisect_right(shares, -share, key=lambda each: -each) - 1
    return last if last >= index else len(shares) - 1  # more than was allocated for: there is no smaller allocation


def _timed(builder: CandidateBuilder, counts: ChannelCounts, share: float, reliable: bool = False) -> _TimedCounts:
    ratio = builder.measure_latency(counts, effort=CONFIRMING_EFFORT if reliable else None).latency_ratio
    distance = abs(ratio / share - 1.0)
    if not reliable and distance <= WORTH_REPEATING:
        return _timed(builder, counts, share, reliable=True)
    return _TimedCounts(counts, ratio, distance, reliable)
