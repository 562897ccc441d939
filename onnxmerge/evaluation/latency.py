"""Latency of two models, measured in turn in one process.

What was seen on identical models decides how it is done. Two sessions of the same model may differ by a third for as long as
they live (where their threads ended up), so sessions are opened afresh for many rounds, and the ratio is the median over the
rounds: a few unlucky sessions do not move it. Load comes in bursts, so runs are not independent: the interval resamples whole
rounds, not runs. And identical models still differ by one per cent, so it never claims to be finer than that.

Other programs interrupt calls, and long calls more often than short ones. Where half of the calls of the slower model are, the
ratio of the medians compares interrupted calls with whole ones; that of the lower quartiles stays what it was until nearly three
quarters are. Simulated with pauses of 4 ms, ratio 0.3, calls of 1 ms, 16 rounds: error, and how often the 95 % interval held the
truth, by the share of interrupted calls

    share            0            0.4           0.5           0.6           0.7
    median           0.7 %, 100   2.0 %, 98     17 %, 40      77 %, 5       123 %, 0
    lower quartile   0.8 %, 100   1.0 %, 98     1.3 %, 100    1.7 %, 100    6 %, 78
    pairs, median    0.7 %, 100   1.4 %, 100    3.0 %, 95     14 %, 62      41 %, 18
    minimum          0.8 %, 100   0.7 %, 100    0.6 %, 100    0.6 %, 100    0.7 %, 100

Where all calls of 10 ms are interrupted no quantile helps: beside two busy loops on two processors a VGG-16 without half of its
channels was 13 times as fast by medians and 12 times by lower quartiles. So calls on one thread of a CPU are timed by the
processor time of that thread, which stands still while other programs run: 3.8 times, busy or quiet.

Minima are not taken all the same: on a quiet machine that network is 3.7 to 3.8 times as fast by processor time and by lower
quartiles and 4.7 times by minima, another one 1.13, 1.14 and 1.16 times; the fastest calls are those whose weights were cached.
"""

import gc
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from onnxmerge.errors import ModelError, ProviderError
from onnxmerge.execution.batch_axes import Axes
from onnxmerge.execution.providers import CPU
from onnxmerge.execution.sessions import Session
from onnxmerge.execution.tensor_specs import Feeds, batch_size
from onnxmerge.results import LatencyComparison, LatencySummary

ROUNDS = 16  # of freshly opened sessions, by default
MIN_ROUNDS = 12  # unless opening so many sessions takes more than twice the time that was asked for
RESOLUTION = 0.01  # of the ratio: identical models were seen to differ by so much
LOWER_QUARTILE = 0.25  # of the calls of a round, which stand for the round
_RESAMPLES = 1000  # of the bootstrap
_PERCENTILES = (0.5, 99.5)  # 95 % for about ten clusters: Hesterberg 2015, expanded percentiles
_SIGN_TEST_LEVEL = 0.008  # probability that the sign test's interval does not hold the median
_WARM_UP_RUNS = (3, 50)  # least and most calls that do not count
_READINGS, _FINE_STEP = 1000, 1e-5  # readings of a clock, and the largest of its least steps, in seconds: calls last longer
_STABLE = 0.05  # relative difference of two medians of three calls below which warm-up ends

Sessions = tuple[Session, Session]
Done = TypeVar("Done")
Call = Callable[[], object]
Clock = Callable[[], float]
"""Seconds from any start, as `time.perf_counter` gives them."""


def compare_latency(
    reference: Session,
    candidate: Session,
    feeds: Feeds,
    *,
    axes: Axes = MappingProxyType({}),
    seconds: float = 5.0,
    min_runs: int = 20,
    rounds: int = ROUNDS,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> LatencyComparison:
    """Measure the latency of two models in pairs of calls, in random order, over rounds of freshly opened sessions.

    Takes up to three times `seconds` where opening sessions or `min_runs` need it, or fewer rounds. No run is left out.

    Parameters
    ----------
    reference, candidate, feeds : Session, Session, mapping
        Opened alike, and the inputs of one call.
    axes, seconds, min_runs : mapping of str to int, float, int
        The batch's axis by input, the time to measure for, and the least number of calls of each model.
    rounds, seed, clock : int, int, callable
        How often sessions are opened afresh; of the order of calls and of the bootstrap; the time in seconds.

    Returns
    -------
    LatencyComparison
        The ratio, candidate by reference, with its interval, and latencies in ms that are shifted to it.

    Raises
    ------
    ProviderError
        Where the sessions run on different execution providers or numbers of threads.
    """
    if (reference.provider.name, reference.threads) != (candidate.provider.name, candidate.threads):
        sides = " and ".join(f"{side.provider.name} with {side.threads} threads" for side in (reference, candidate))
        raise ProviderError(f"latencies on {sides} cannot be compared: open both sessions alike")
    generator = np.random.default_rng(seed)
    gc.collect()  # so that the collector, which stays on, has nothing left to do while calls are timed
    pair, timer = (reference, candidate), timer_for(reference, clock)
    measured, warm_up = _rounds(pair, feeds, seconds, min_runs, max(rounds, 1), generator, clock, timer)
    ratio, low, high = ratio_interval(measured, generator)
    times = shifted_to(ratio, np.concatenate(measured))
    before, after, batch = _summary(times[:, 0]), _summary(times[:, 1]), batch_size(feeds, axes)
    return LatencyComparison(
        reference=before,
        candidate=after,
        latency_ratio=ratio,
        latency_ratio_low=low,
        latency_ratio_high=high,
        batch_size=batch,
        provider=reference.provider.name,
        threads=reference.threads,
        warm_up_runs=warm_up,
        rounds=len(measured),
        is_processor_time=timer is not clock,
        reference_inputs_per_second=batch / before.median_ms * 1e3,
        candidate_inputs_per_second=batch / after.median_ms * 1e3,
    )


def timer_for(session: Session, clock: Clock) -> Clock:
    """What times a call: the processor time of this thread where the call is computed by it alone, else the clock.

    Processor time is not taken where it goes in steps of milliseconds, as on Windows, nor in place of a clock that was given.
    """
    if session.threads != 1 or session.provider.name != CPU.name or clock is not time.perf_counter:
        return clock
    readings = [time.thread_time() for _ in range(_READINGS)]
    step = min((later - now for now, later in pairwise(readings) if later > now), default=math.inf)
    return time.thread_time if step < _FINE_STEP else clock


def shifted_to(ratio: float, times: np.ndarray) -> np.ndarray:
    """(pairs, 2) times, those of each model scaled by one factor, so that the medians' ratio is `ratio` and their product stays.

    The median over all calls follows which sessions were slow, the median of the rounds' ratios does not.
    """
    before, after = np.median(times, axis=0)
    factor = math.sqrt(after / before / ratio)
    return times * (factor, 1.0 / factor)


def ratio_interval(rounds: list[np.ndarray], generator: np.random.Generator) -> tuple[float, float, float]:
    """Median over clusters of the ratio of their lower quartiles, and its 95 % interval.

    A cluster is a round, or a part of one where there are fewer than MIN_ROUNDS. The interval holds the bootstrap's over clusters
    and that of the sign test, which needs no more than that each side of a cluster is as likely to look slow; then it is widened
    by RESOLUTION, and more where there were few rounds to show how much sessions differ.

    Parameters
    ----------
    rounds : list of ndarray
        For each round (pairs, 2) seconds of reference and candidate.
    generator : numpy.random.Generator
        Of the bootstrap.

    Returns
    -------
    ratio, low, high : float
        Candidate by reference.
    """
    parts_per_round = math.ceil(MIN_ROUNDS / len(rounds))
    clusters = [part for times in rounds for part in np.array_split(times, parts_per_round) if len(part)]
    quartiles = np.array([np.quantile(times, LOWER_QUARTILE, axis=0) for times in clusters])
    logs = np.log(quartiles[:, 1] / quartiles[:, 0])
    draws = np.median(logs[generator.integers(len(logs), size=(_RESAMPLES, len(logs)))], axis=1)
    ends = [*np.percentile(draws, _PERCENTILES), *sign_test_interval(logs)]
    resolution = RESOLUTION * max(1.0, MIN_ROUNDS / len(rounds))
    return float(np.exp(np.median(logs))), math.exp(min(ends) - resolution), math.exp(max(ends) + resolution)


def sign_test_interval(values: np.ndarray) -> tuple[float, float]:
    """Order statistics that hold the median with probability 1 - _SIGN_TEST_LEVEL; lowest and highest of few values."""
    count, ordered = len(values), np.sort(values)
    outside = [2 * sum(math.comb(count, i) for i in range(k + 1)) / 2**count for k in range(count // 2)]
    cut = sum(probability <= _SIGN_TEST_LEVEL for probability in outside)
    position = max(cut - 1, 0)
    return float(ordered[position]), float(ordered[count - 1 - position])


def _rounds(
    sessions: Sessions,
    feeds: Feeds,
    seconds: float,
    min_runs: int,
    rounds: int,
    generator: np.random.Generator,
    clock: Clock,
    timer: Clock,
) -> tuple[list[np.ndarray], int]:
    """Times in seconds, one array (pairs, 2) a round, and the calls of warm-up of the side that needed more.

    The clock says how long it may take, the timer how long calls take.

    The number of rounds follows from what the first pair cost until it ran as later on: on CUDA the search for algorithms in the
    first call takes longer than opening a session.
    """
    started = clock()
    opened = _reopened(sessions, generator) if rounds > 1 else sessions
    if opened is None:
        opened, rounds = sessions, 1
    calls = [session.bind(feeds) for session in opened]
    elapsed = clock() - started
    pair = min(sum(_seconds(call, clock) for call in calls), elapsed)
    cost = max(elapsed - pair, 1e-9)
    affordable = int(max(1, seconds / 2 / cost))
    rounds = min(rounds, max(affordable, MIN_ROUNDS if MIN_ROUNDS * cost < 2.0 * seconds else 1))
    warming = pair * (1 + _WARM_UP_RUNS[0])  # a round begins with so many calls that do not count
    rounds = min(rounds, max(1, int(max(seconds, min_runs * pair) / max(warming, 1e-9))))
    seconds_per_round = max(seconds - rounds * cost, seconds / 2) / rounds
    measured, warm_up = [], 0
    for number in range(rounds):
        if number:
            del opened, calls  # frees the last pair before the next one opens
            opened = _reopened(sessions, generator) or sessions
            calls = [session.bind(feeds) for session in opened]
        warm_up += _warm_up(calls, seconds_per_round / 5, clock)
        measured.append(_pairs(calls, seconds_per_round, math.ceil(min_runs / rounds), generator, clock, timer))
    return measured, warm_up


def _reopened(sessions: Sessions, generator: np.random.Generator) -> Sessions | None:
    """Both sessions afresh, opened in random order; None where they do not fit into memory."""
    try:
        return _in_random_order((sessions[0].reopen, sessions[1].reopen), generator)
    except ModelError:
        return None


def _pairs(
    calls: list[Call], seconds: float, minimum: int, generator: np.random.Generator, clock: Clock, timer: Clock
) -> np.ndarray:
    timed = partial(_seconds, calls[0], timer), partial(_seconds, calls[1], timer)
    pairs: list[tuple[float, float]] = []
    end = clock() + seconds
    while len(pairs) < max(minimum, 1) or clock() < end:
        pairs.append(_in_random_order(timed, generator))
    return np.array(pairs)


def _seconds(call: Call, clock: Clock) -> float:
    """What one call takes."""
    start = clock()
    call()
    return clock() - start


def _in_random_order(actions: tuple[Callable[[], Done], Callable[[], Done]], generator: np.random.Generator) -> tuple[Done, Done]:
    """What two actions return."""
    first = int(generator.integers(2))
    done = {side: actions[side]() for side in (first, 1 - first)}
    return done[0], done[1]


def _warm_up(calls: list[Call], seconds: float, clock: Clock) -> int:
    """Until the last three runs of each agree with the three before, or the time or fifty runs are over; the most runs of one."""
    end, most = clock() + seconds, 0
    for call in calls:
        times: list[float] = []
        while len(times) < _WARM_UP_RUNS[0] or (len(times) < _WARM_UP_RUNS[1] and clock() < end):
            times.append(_seconds(call, clock))
            before, last = times[-6:-3], times[-3:]
            if len(times) >= 6 and abs(np.median(last) / np.median(before) - 1) < _STABLE:
                break
        most = max(most, len(times))
    return most


def _summary(times: np.ndarray) -> LatencySummary:
    quantiles = tuple(float(value) for value in np.percentile(times * 1e3, range(0, 101, 5)))
    return LatencySummary(quantiles[10], quantiles[19], len(times), quantiles)
