"""Multiples of channels that `round_to` asks for: a number, those that run fast in general, or the fastest when timed."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.pipeline.candidate_builder import CandidateBuilder, ChannelCounts
from onnxmerge.pruning.kept_counts import fast_multiple

MEASURED_MULTIPLES = (4, 8, 16, 32)
"""What `round_to` measured tries beside no rounding: up to four blocks, beyond which counts are too coarse to allocate."""
CLEARLY_FASTER = 0.95
"""Latency ratio below which a larger multiple is taken in the place of a smaller one, which fits a budget better."""


def multiple_for(builder: CandidateBuilder, kind: str, share: float) -> int | None:
    """The multiple that `round_to` asks for, None for auto; with "measured" the fastest one at about a share of a quantity."""
    round_to = builder.pruning.round_to
    if round_to == "measured":
        return fastest_multiple(builder, kind, share)
    return round_to if isinstance(round_to, int) else None


def fastest_multiple(builder: CandidateBuilder, kind: str, share: float) -> int:
    """The multiple whose counts, allocated for the same budget, are measurably faster than plain ones; 1 where none is."""
    rounded = {multiple: builder.budget.counts_for(kind, share, multiple).counts for multiple in MEASURED_MULTIPLES}
    return _fastest(builder, builder.budget.counts_for(kind, share).counts, rounded)


def rounded_counts(builder: CandidateBuilder, counts: ChannelCounts) -> ChannelCounts:
    """Counts of a ratio in the multiples that `round_to` asks for: the nearest, with "measured" never fewer channels."""
    round_to = builder.pruning.round_to
    if builder.pruning.plan is not None:
        return counts
    if round_to != "measured":
        fixed = round_to if isinstance(round_to, int) else None
        steps = [fixed or fast_multiple(group.size, group.conv_group_count, group.positions) for group in builder.groups]
        pairs = zip(builder.groups, steps, strict=True)
        return {group.name: _rounded(group, counts[group.name], step, round) for group, step in pairs}
    tried = {
        multiple: {group.name: _rounded(group, counts[group.name], multiple, math.ceil) for group in builder.groups}
        for multiple in MEASURED_MULTIPLES
    }
    return {1: counts, **tried}[_fastest(builder, counts, tried)]


def _fastest(builder: CandidateBuilder, plain: ChannelCounts, rounded: Mapping[int, ChannelCounts]) -> int:
    """The multiple of the fastest rounded counts, timed against plain ones; 1 where none is clearly faster."""
    best, least = 1, 1.0
    timed, reference = [dict(plain)], builder.model_to_time(plain)
    for multiple, counts in rounded.items():
        if dict(counts) in timed:
            continue
        timed.append(dict(counts))
        latency = builder.measure_latency(counts, reference)
        if latency.latency_ratio_high < 1.0 and latency.latency_ratio < CLEARLY_FASTER * least:
            best, least = multiple, latency.latency_ratio
    return best


def _rounded(group: ChannelGroup, count: int, multiple: int, to_whole: Callable[[float], int]) -> int:
    """A group's count as a multiple, also of its convolution's groups, with room for the channels that must stay."""
    if count >= group.size:
        return group.size
    conv_groups = group.conv_group_count
    step = math.lcm(multiple, conv_groups)
    must_stay = conv_groups * int(np.bincount(group.conv_groups[~group.removable], minlength=conv_groups).max())
    return min(group.size, step * max(1, to_whole(count / step), math.ceil(must_stay / step)))
