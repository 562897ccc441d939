"""How fast two models are; the result of `bench`."""

from dataclasses import dataclass

from onnxmerge.results.execution import Execution, InputShape


@dataclass(frozen=True)
class LatencySummary:
    """Latency of one call of a model.

    Attributes
    ----------
    median_ms : float
        Median in milliseconds.
    p95_ms : float
        95th percentile in milliseconds.
    runs : int
        Number of calls that were timed.
    quantiles_ms : list of float
        The 0th, 5th, 10th ... 100th percentile in milliseconds; empty where they were not kept.
    """

    median_ms: float
    p95_ms: float
    runs: int
    quantiles_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of reference and candidate, their calls interleaved in one process.

    Attributes
    ----------
    reference : LatencySummary
        Latency of the reference.
    candidate : LatencySummary
        Latency of the candidate.
    latency_ratio : float
        Lower quartile of the candidate's calls / that of the reference's: the median over the rounds of measurement. Below 1 the
        candidate is faster.
    latency_ratio_low : float
        Lower end of the 95 % bootstrap interval of `latency_ratio`.
    latency_ratio_high : float
        Upper end of that interval.
    batch_size : int
        Number of inputs in one call.
    provider : str
        Execution provider of both models.
    threads : int
        Number of threads of each model.
    warm_up_runs : int
        Calls of each model in warm-up; they are not counted in `runs`.
    rounds : int
        Number of times that new sessions of both models were created.
    is_processor_time : bool
        Whether calls were timed by the processor time of the one thread that computes them, which stands still while other
        programs run, and not by the time that passed.
    reference_inputs_per_second : float or None
        Throughput of the reference at its median latency.
    candidate_inputs_per_second : float or None
        Throughput of the candidate at its median latency.
    macs_ratio : float or None
        MACs of the candidate / MACs of the reference; None where they were not counted.
    realised_saving : float or None
        (1 - latency_ratio) / (1 - macs_ratio): time saved as a share of MACs saved; None where no MACs were saved.
    execution : Execution or None
        Where and how both models ran.
    processor : str
        Name of the processor, or of the GPU; empty where it is not known.
    likely_reasons : list of str
        Why the figures say little, or why the candidate is likely not faster, a line each; empty where nothing is known.
    failures : list of str
        Thresholds that were missed, a line each.
    min_speedup : float or None
        The least speed-up that was asked for; None for none.
    inputs : list of InputShape
        As in the result of `bench`; empty in results that say the sizes themselves.
    """

    reference: LatencySummary
    candidate: LatencySummary
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    batch_size: int
    provider: str
    threads: int
    warm_up_runs: int = 0
    rounds: int = 1
    is_processor_time: bool = False
    reference_inputs_per_second: float | None = None
    candidate_inputs_per_second: float | None = None
    macs_ratio: float | None = None
    realised_saving: float | None = None
    execution: Execution | None = None
    processor: str = ""
    likely_reasons: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    min_speedup: float | None = None
    inputs: tuple[InputShape, ...] = ()

    @property
    def speedup(self) -> float:
        """1 / latency_ratio: how many times as fast the candidate is."""
        return 1.0 / self.latency_ratio

    @property
    def speedup_interval(self) -> tuple[float, float]:
        """95 % interval of the speed-up, lower end first."""
        return 1 / self.latency_ratio_high, 1 / self.latency_ratio_low

    @property
    def verdict(self) -> str:
        """Whether the interval, rounded as it is shown, lies above 1 ("faster"), below 1 ("slower") or not ("not measurable")."""
        low, high = (round(end, 2) for end in self.speedup_interval)
        return "faster" if low > 1 else "slower" if high < 1 else "not measurable"


@dataclass(frozen=True)
class Benchmark:
    """Latency of two models for one or several batch sizes.

    Attributes
    ----------
    reference : str
        Path of the reference.
    candidate : str
        Path of the candidate.
    batches : list of LatencyComparison
        One entry for each batch size, in the order in which they were asked for.
    inputs : list of InputShape
        Sizes of the models' inputs, and where they come from; the number of inputs in one call is that of each entry.
    """

    reference: str
    candidate: str
    batches: tuple[LatencyComparison, ...]
    inputs: tuple[InputShape, ...] = ()
