"""Latency: the interval holds 1 for identical models and excludes it for different ones."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxmerge.errors import ModelError, ProviderError
from onnxmerge.evaluation import latency as timing
from onnxmerge.evaluation.latency import RESOLUTION, compare_latency, ratio_interval, sign_test_interval, timer_for
from onnxmerge.execution.providers import CPU, Provider
from onnxmerge.execution.sessions import open_session
from onnxmerge.report.sentences import PROCESSOR_TIME, timing_lines


def repeated(products: int):
    """A model of so many matrix products in a row."""
    lines = "\n".join(f"v{number + 1} = MatMul(v{number}, w)" for number in range(products))
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,128] v0) => (float[N,128] v{products}) {{ {lines} }}'
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.full((128, 128), 0.01, np.float32), "w"))
    return open_session(model.SerializeToString(), optimise=True, threads=1, label="chain")


FEEDS = {"v0": np.ones((16, 128), np.float32)}


def test_identical_models_hold_one():
    found = compare_latency(repeated(4), repeated(4), FEEDS, seconds=1.0)
    assert found.latency_ratio_low <= 1.0 <= found.latency_ratio_high
    assert found.latency_ratio_low <= found.latency_ratio <= found.latency_ratio_high
    assert (found.batch_size, found.threads, found.provider) == (16, 1, "CPUExecutionProvider")
    assert found.reference.runs == found.candidate.runs >= 20
    assert found.warm_up_runs >= 6 * found.rounds
    assert found.reference_inputs_per_second == pytest.approx(16e3 / found.reference.median_ms)


def test_a_quarter_of_the_work_is_faster():
    found = compare_latency(repeated(16), repeated(4), FEEDS, seconds=0.4)
    assert found.latency_ratio_high < 1.0
    assert found.candidate.median_ms < found.reference.median_ms <= found.reference.p95_ms
    assert compare_latency(repeated(4), repeated(16), FEEDS, seconds=0.4).latency_ratio_low > 1.0


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_enough_runs_whatever_the_time(rounds):
    found = compare_latency(repeated(2), repeated(2), FEEDS, seconds=0.0, min_runs=12, rounds=rounds)
    assert found.reference.runs >= 12


class FakeClock:
    """A clock that only the sessions of a test move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1e-6
        return self.seconds


@dataclass(frozen=True)
class FakeSession:
    """A session whose binding and calls take what they are told, by the fake clock; one number a call."""

    clock: FakeClock
    binding: float
    calls: Iterator[float]
    provider: Provider = CPU
    threads: int = 1

    def reopen(self) -> FakeSession:
        return self

    def bind(self, feeds: object) -> Callable[[], None]:
        self.clock.seconds += self.binding
        self.call()  # as a session does, which makes one call when it binds
        return self.call

    def call(self) -> None:
        self.clock.seconds += next(self.calls)


def timed(seconds: float, *, binding: float = 0.0, calls: Iterable[float] = (), usual: float = 1e-3, **how: int) -> tuple:
    """The comparison of two equal fake sessions, and how long it took by their clock."""
    clock, each = FakeClock(), itertools.chain(calls, itertools.repeat(usual))
    pair = [FakeSession(clock, binding, each) for _ in range(2)]
    found = compare_latency(*pair, FEEDS, seconds=seconds, clock=clock, **how)
    return found, clock.seconds


def test_rounds_are_few_where_the_first_call_is_dear():
    """As on CUDA, where it searches for algorithms."""
    found, _ = timed(0.5, binding=0.6)
    assert found.rounds == 1


def test_rounds_are_few_where_calls_are_long():
    """Warming up the sessions of every round must not take more than the time asked for."""
    found, taken = timed(0.8, usual=0.02, rounds=48)
    assert 2 <= found.rounds <= 6
    assert taken < 3 * 0.8


def test_a_hiccup_while_the_cost_of_a_round_is_seen_costs_little():
    found, taken = timed(0.5, calls=[1e-3, 1e-3, 0.3])
    assert found.rounds > 1
    assert taken < 3 * 0.5


def test_the_collector_is_left_as_it_was():
    timed(0.1)
    assert gc.isenabled()


def test_sessions_that_differ_are_not_compared():
    one, two = (open_session(_identity(), optimise=True, threads=threads) for threads in (1, 2))
    with pytest.raises(ProviderError, match=r"with 1 threads and .* with 2 threads cannot be compared"):
        compare_latency(one, two, {"x": np.ones(1, np.float32)})


def test_a_failing_model_says_so():
    with pytest.raises(ModelError, match="chain does not run"):
        compare_latency(repeated(2), repeated(2), {"v0": np.ones((1, 3), np.float32)}, seconds=0.1)


def synthetic(generator, rounds, ratio, burst, session_effect):
    """Times with bursts of load that last, and a factor that each opened session keeps."""
    measured = []
    for _ in range(rounds):
        load = np.where(np.repeat(generator.random(10) < 0.3, 10)[:, None], burst, 1.0)
        kept = 1 + session_effect * generator.standard_normal(2)
        measured.append(load * kept * (1.0, ratio) * (1 + 0.05 * generator.random((100, 2))))
    return measured


NOISE = {
    "quiet": (10, 1.0, 0.0),
    "bursts": (10, 1.5, 0.0),
    "sessions": (10, 1.0, 0.05),
    "both": (10, 1.5, 0.05),
    "heavy tails": (16, 1.5, 0.3),
    "one round": (1, 1.5, 0.003),
}


@pytest.mark.parametrize(("rounds", "burst", "effect"), NOISE.values(), ids=NOISE.keys())
@pytest.mark.parametrize("true", [1.0, 0.7])
def test_the_interval_covers_the_true_ratio(rounds, burst, effect, true):
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(12):
        _, low, high = ratio_interval(synthetic(generator, rounds, true, burst, effect), generator)
        held += low <= true <= high
    assert held >= 11


def interrupted(generator: np.random.Generator, ratio: float, share: float) -> list[np.ndarray]:
    """Calls of which some are interrupted by pauses four times as long: of the reference's the share, of shorter ones fewer."""
    rate, rounds = -math.log(1.0 - share), []
    for _ in range(16):
        times = (1.0, ratio) * np.exp(0.02 * generator.standard_normal(2) + 0.03 * generator.random((100, 2)))
        pauses = generator.poisson(rate * times)
        rounds.append(times + 4.0 * np.vectorize(generator.standard_gamma)(pauses + 1e-12))
    return rounds


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.6])
def test_interrupted_calls_do_not_move_the_ratio(share: float) -> None:
    """That of the medians is off by a sixth where half of the calls are interrupted, and by a half at 60 %."""
    generator = np.random.default_rng(0)
    found = [ratio_interval(interrupted(generator, 0.3, share), generator) for _ in range(12)]
    assert sum(low <= 0.3 <= high for _, low, high in found) >= 11
    assert np.mean([abs(math.log(ratio / 0.3)) for ratio, _, _ in found]) < 0.025
    assert np.mean([math.log(high / low) for _, low, high in found]) < 0.12


@dataclass(frozen=True)
class WorkingSession:
    """A session that computes for so long and then waits, as a call that another program interrupts."""

    computes: float
    waits: float
    provider: Provider = CPU
    threads: int = 1

    def reopen(self) -> WorkingSession:
        return self

    def bind(self, feeds: object) -> Callable[[], None]:
        return self.call

    def call(self) -> None:
        end = time.thread_time() + self.computes
        while time.thread_time() < end:
            pass
        time.sleep(self.waits)


def test_one_thread_is_timed_by_its_processor_time():
    if timer_for(WorkingSession(0.0, 0.0), time.perf_counter) is time.perf_counter:
        pytest.skip("the processor time goes in large steps here")
    found = compare_latency(WorkingSession(2e-3, 5e-3), WorkingSession(1e-3, 0.0), FEEDS, seconds=0.3, rounds=2)
    assert found.latency_ratio == pytest.approx(0.5, rel=0.1)
    assert found.is_processor_time
    assert PROCESSOR_TIME in timing_lines(found)


def test_what_times_a_call(monkeypatch):
    other = FakeClock()
    one, several = WorkingSession(0.0, 0.0), WorkingSession(0.0, 0.0, threads=2)
    elsewhere = WorkingSession(0.0, 0.0, provider=Provider("CUDAExecutionProvider", "cuda"))
    assert [timer_for(each, time.perf_counter) for each in (several, elsewhere)] == [time.perf_counter] * 2
    assert timer_for(one, other) is other
    for reading in (lambda: 0.0, itertools.count(0.0, 0.01).__next__):  # stands still; goes in steps of 10 ms
        monkeypatch.setattr(timing.time, "thread_time", reading)
        assert timer_for(one, time.perf_counter) is time.perf_counter


def test_the_interval_narrows_to_the_resolution():
    generator = np.random.default_rng(0)
    ratio, low, high = ratio_interval(synthetic(generator, 10, 0.8, 1.0, 0.0), generator)
    assert ratio == pytest.approx(0.8, rel=0.005)
    assert RESOLUTION <= math.log(high / ratio) < 2 * RESOLUTION
    assert RESOLUTION <= math.log(ratio / low) < 2 * RESOLUTION


def test_a_few_unlucky_sessions_do_not_move_the_ratio():
    """Two rounds of sixteen in which the candidate had no processor to itself."""
    generator = np.random.default_rng(0)
    rounds = synthetic(generator, 16, 0.8, 1.0, 0.0)
    for unlucky in rounds[:2]:
        unlucky[:, 1] *= 2.0
    ratio, low, high = ratio_interval(rounds, generator)
    assert ratio == pytest.approx(0.8, rel=0.01)
    assert 0.78 < low < 0.8 < high < 0.83


def test_the_interval_holds_what_the_sign_test_needs():
    """Of twelve rounds all but the outermost hold the median beyond doubt, whatever resampling says."""
    ratios = [0.6, 0.7, 0.98, 0.98, 0.99, 1.0, 1.0, 1.01, 1.02, 1.02, 1.3, 1.9]
    _, low, high = ratio_interval([np.full((20, 2), (1.0, ratio)) for ratio in ratios], np.random.default_rng(0))
    assert low == pytest.approx(0.7 * math.exp(-RESOLUTION))
    assert high == pytest.approx(1.3 * math.exp(RESOLUTION))


@pytest.mark.parametrize(("count", "position"), [(4, 0), (8, 0), (10, 0), (12, 1), (16, 2), (20, 3)])
def test_the_sign_test_leaves_out_few_order_statistics(count, position):
    values = np.random.default_rng(0).permutation(count).astype(float)
    assert sign_test_interval(values) == (position, count - 1 - position)
    tail = 2 * sum(math.comb(count, k) for k in range(position + 1)) / 2**count
    assert count < 8 or tail <= 0.008


def test_same_seed_same_interval():
    times = synthetic(np.random.default_rng(0), 10, 0.8, 1.5, 0.01)
    assert ratio_interval(times, np.random.default_rng(3)) == ratio_interval(times, np.random.default_rng(3))


def _identity() -> bytes:
    text = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N] x) => (float[N] y) { y = Identity(x) }'
    return parser.parse_model(text).SerializeToString()
