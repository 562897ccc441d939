"""Counts that run fast: in multiples that the provider likes, and as many as a latency allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxmerge.evaluation.benchmark import SURE
from onnxmerge.pipeline.builder import Counts, Found, Search
from onnxmerge.pruning.budget import Allocation

FRIENDLY = 8  # ONNX Runtime computes blocks of 8 or 16 channels on a CPU, tensor cores multiples of 8
MULTIPLES = (4, 8, 16, 32)  # what `round_to` auto tries beside no rounding
LATENCY_TOLERANCE = 0.05  # of the ratio that was asked for
LATENCY_TRIALS, LATENCY_STEPS = 8, 24  # models timed; attempts, those included that gave the same counts again
STEP = 0.9
CLEARLY = 0.95  # faster than the next smaller multiple
SMALLEST_SHARE = 0.02


def multiple_for(wanted: Search, kind: str, share: float) -> int:
    """The multiple of `round_to`; with auto the one that runs fastest at about this size."""
    asked = wanted.pruning.round_to
    return asked if isinstance(asked, int) else best_multiple(wanted, kind, share) if asked == "auto" else 1


def best_multiple(wanted: Search, kind: str, share: float) -> int:
    """The multiple whose counts, allocated for the same budget, are measurably faster than plain ones; 1 where none is."""
    tried = {multiple: wanted.budget.counts_for(kind, share, multiple).counts for multiple in MULTIPLES}
    return _fastest(wanted, wanted.budget.counts_for(kind, share).counts, tried)


def rounded(wanted: Search, counts: Counts) -> Counts:
    """Counts that were asked for, in multiples: the nearest, never none."""
    asked = wanted.pruning.round_to
    if asked is None:
        return counts
    if isinstance(asked, int):
        return _nearest(wanted, counts, asked)
    tried = {multiple: _nearest(wanted, counts, multiple, up=True) for multiple in MULTIPLES}
    return {1: counts, **tried}[_fastest(wanted, counts, tried)]


def _fastest(wanted: Search, plain: Counts, tried: Mapping[int, Counts]) -> int:
    best, least = 1, 1.0
    seen, reference = [dict(plain)], wanted.outline(plain)
    for multiple, counts in tried.items():
        if dict(counts) in seen:
            continue
        seen.append(dict(counts))
        measured = wanted.time(counts, reference)
        if measured.latency_ratio_high < 1.0 and measured.latency_ratio < CLEARLY * least:
            best, least = multiple, measured.latency_ratio
    return best


def _nearest(wanted: Search, counts: Counts, multiple: int, up: bool = False) -> Counts:
    """up: never fewer channels, so that what is faster is not just smaller."""
    found = {}
    for group in wanted.groups:
        count, conv_groups = counts[group.name], np.bincount(group.conv_groups)
        step = multiple * len(conv_groups) // math.gcd(multiple, len(conv_groups))
        least = len(conv_groups) * int(np.bincount(group.conv_groups[~group.removable], minlength=len(conv_groups)).max())
        steps = max(1, math.ceil(count / step) if up else round(count / step), math.ceil(least / step))
        found[group.name] = min(group.size, step * steps) if count < group.size else group.size
    return found


def within_latency(wanted: Search, share: float) -> Found:
    """The largest model whose measured latency is `share` of the reference's, in multiples that run fast where none are given.

    Multiples may step over the latency: then smaller ones are tried, at last to the channel. All of it on models that are timed
    only.
    """
    asked = wanted.pruning.round_to
    multiples = (asked,) if isinstance(asked, int) else _downwards(best_multiple(wanted, "macs", share))
    found: _Timed | None = None
    for multiple in multiples:
        timed = _by_latency(wanted, share, multiple)
        found = timed if found is None or timed.off < found.off else found
        if found.off <= LATENCY_TOLERANCE:
            break
    assert found is not None
    told = found.sure or (wanted.options.verify and wanted.options.bench)  # the proof times it again
    ratio = found.ratio if told else wanted.time(found.point.counts, effort=SURE).latency_ratio
    return Found(wanted.candidate(found.point.counts), ratio=ratio)


def _downwards(best: int) -> list[int]:
    """From the fastest multiple on: 32 -> 32, 16, 8, 1; 4 -> 4, 8, 1."""
    smaller = [multiple for multiple in reversed(MULTIPLES) if FRIENDLY <= multiple < best]
    return list(dict.fromkeys((best, *smaller, FRIENDLY, 1)))


@dataclass(frozen=True)
class _Timed:
    """Counts, the ratio of their latency to the reference's, how far that is off the one asked for, as a share of it.

    sure: measured for long enough to be told.
    """

    point: Allocation
    ratio: float
    off: float
    sure: bool


def _by_latency(wanted: Search, share: float, multiple: int) -> _Timed:
    """Regula falsi over the MACs: between the nearest measured ratios on both sides, or in proportion below all of them."""
    timed: list[_Timed] = []
    aim, stuck = share, 0
    for _ in range(LATENCY_STEPS):
        if len(timed) == LATENCY_TRIALS or aim < SMALLEST_SHARE:
            break
        point = wanted.budget.counts_for("macs", aim, multiple)
        if any(point.counts == each.point.counts for each in timed):
            stuck += 1
            aim *= STEP if all(each.ratio > share for each in timed) else 1.0 - 0.02 * (-1) ** stuck * stuck
            continue
        ratio, sure = wanted.time(point.counts).latency_ratio, False
        if abs(ratio / share - 1.0) <= 0.5 * LATENCY_TOLERANCE:  # near enough to be believed only when measured for longer
            ratio, sure = wanted.time(point.counts, effort=SURE).latency_ratio, True
        timed.append(_Timed(point, ratio, abs(ratio / share - 1.0), sure))
        if timed[-1].off <= 0.4 * LATENCY_TOLERANCE:
            break
        known = sorted([(each.point.share, each.ratio) for each in timed] + [(1.0, 1.0)])
        below = [each for each in known if each[1] <= share]
        above = [each for each in known if each[1] > share and (not below or each[0] > below[-1][0])]
        if below and above:
            (low, at_low), (high, at_high) = below[-1], above[0]
            aim = low + (high - low) * (share - at_low) / (at_high - at_low)
        elif above:
            aim = STEP * above[0][0] * share / above[0][1]
        else:
            break
    return min(timed, key=lambda each: each.off)
