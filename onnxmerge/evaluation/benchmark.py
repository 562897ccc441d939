"""`bench`: latency of two files, measured in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxmerge.data.inputs import Inputs, check_batch
from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import ModelError
from onnxmerge.evaluation.latency import compare_latency
from onnxmerge.execution.first_run import observed_shapes
from onnxmerge.execution.placement import execution_of
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.sessions import ModelSource, open_pair
from onnxmerge.graph.cost import total_macs
from onnxmerge.onnxio.model_files import as_file, load, model_name
from onnxmerge.options import InputOptions, RuntimeOptions
from onnxmerge.options.keywords import options_of, takes
from onnxmerge.results import Benchmark, LatencyComparison

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TimingEffort:
    """How long a latency is measured.

    Attributes
    ----------
    seconds : float
        Time of the calls.
    rounds : int
        Number of times that sessions are opened afresh.
    min_runs : int
        Least number of calls of each model.
    """

    seconds: float
    rounds: int
    min_runs: int


DEFAULT_EFFORT = TimingEffort(4.0, 16, 20)
TRIAL_EFFORT = TimingEffort(1.5, 16, 8)  # of the many models that a search for a latency times
# Of the model that is to meet a latency: three times the rounds, because sessions of one model differ more than calls do
CONFIRMING_EFFORT = TimingEffort(8.0, 48, 20)


@takes(InputOptions, RuntimeOptions)
def bench(reference: str | Path | ModelProto, candidate: str | Path | ModelProto, **options: Any) -> LatencyComparison:
    """Measure latency and throughput of two models, called in turn with `batch` inputs.

    Parameters
    ----------
    reference, candidate : str, Path or ModelProto
        Path of a model, or the model itself.
    **options
        Fields of `InputOptions` and `RuntimeOptions`, or such objects as `inputs` and `runtime`.

    Returns
    -------
    LatencyComparison
        The latency of both, their ratio and its interval.

    Raises
    ------
    ModelError, OptionError, InputError, ProviderError
        Where the user can act.

    Examples
    --------
    >>> import onnxmerge
    >>> latency = onnxmerge.bench("model.onnx", "model.onnx", provider="cpu", batch=4)
    >>> latency.batch_size, latency.provider
    (4, 'CPUExecutionProvider')
    >>> latency.latency_ratio_low <= latency.latency_ratio <= latency.latency_ratio_high
    True
    """
    return bench_batches(reference, candidate, (None,), **options).batches[0]


@takes(InputOptions, RuntimeOptions)
def bench_batches(
    reference: str | Path | ModelProto, candidate: str | Path | ModelProto, batches: Sequence[int | None], **options: Any
) -> Benchmark:
    """Measure latency and throughput of two models for several batch sizes.

    Parameters
    ----------
    reference, candidate : str, Path or ModelProto
        Path of a model, or the model itself.
    batches : Sequence[int | None]
        Inputs in one call; None stands for the option `batch`, and where it is not given for what `bench` takes.
    **options
        As for `bench`.

    Returns
    -------
    Benchmark
        A comparison for each batch size.
    """
    inputs, runtime = options_of(options, InputOptions, RuntimeOptions)
    with as_file(reference) as first, as_file(candidate) as second:
        result = benchmark(first, second, inputs, runtime, batches)
        return replace(result, reference=model_name(reference), candidate=model_name(candidate))


def benchmark(
    reference: Path, candidate: Path, options: InputOptions, runtime: RuntimeOptions, batches: Sequence[int | None]
) -> Benchmark:
    """`bench_batches` for files, with its options sorted. Raises InputError where the model takes another batch size."""
    batches = [batch or runtime.batch for batch in batches]
    provider = provider_of(runtime)
    shapes, candidate_shapes = (observed_shapes(model, runtime.max_memory) for model in (reference, candidate))
    session, _ = open_pair(reference, candidate, provider, optimise=False, threads=runtime.threads)
    inputs = inputs_for(session, shapes, options, count=max(2, *(batch or 1 for batch in batches)))
    for batch in batches:
        check_batch(reference, inputs.batch_size, batch, shapes)
    macs = _macs(reference, shapes), _macs(candidate, candidate_shapes)
    found = [time_pair(reference, candidate, inputs, runtime, batch, seed=options.seed) for batch in batches]
    return Benchmark(str(reference), str(candidate), tuple(with_macs(latency, *macs) for latency in found))


def _macs(model: Path, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one run of these shapes; None for a model that runs but cannot be analysed."""
    try:
        return total_macs(load(model), shapes)
    except ModelError:
        return None


def with_macs(latency: LatencyComparison, before: int | None, after: int | None) -> LatencyComparison:
    """The comparison with the ratio of the MACs, and the share of their saving that became a saving of time."""
    if not before or after is None:
        return latency
    ratio = after / before
    return replace(latency, macs_ratio=ratio, realised_saving=(1 - latency.latency_ratio) / (1 - ratio) if ratio < 1 else None)


def time_pair(
    reference: ModelSource,
    candidate: ModelSource,
    inputs: Inputs,
    runtime: RuntimeOptions,
    batch: int | None = None,
    effort: TimingEffort | None = None,
    seed: int = 0,
) -> LatencyComparison:
    """Latency of one call of `batch` inputs, by default of `runtime.batch` or 1, reference and candidate called in turn."""
    provider = provider_of(runtime)
    provider = replace(provider, settings=replace(provider.settings, cuda_graph=runtime.cuda_graph))
    pair = open_pair(reference, candidate, provider, optimise=True, threads=runtime.threads)
    feeds = inputs.repeated(batch or runtime.batch or 1)
    return replace(compare_latency(*pair, feeds, **asdict(effort or DEFAULT_EFFORT), seed=seed), execution=execution_of(*pair))
