"""`bench`: latency of two files, measured in turn."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxmerge.data.batching import check_batch
from onnxmerge.data.first_layers import properties_of_file
from onnxmerge.data.given_shapes import first_runs_of_pair
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import OptionError
from onnxmerge.evaluation.latency import compare_latency
from onnxmerge.evaluation.node_views import graph_view
from onnxmerge.evaluation.thresholds import missed_speedup
from onnxmerge.execution.placement import execution_of
from onnxmerge.execution.processor import SMALLEST_BLOCK, processor_name
from onnxmerge.execution.providers import CPU, provider_of
from onnxmerge.execution.sessions import ModelSource, open_pair
from onnxmerge.graph.analysed_model import shapes_of, size_of_file
from onnxmerge.onnxio.model_files import as_file, model_name
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.options import InputOptions, RuntimeOptions, Thresholds
from onnxmerge.options.keywords import options_of, takes
from onnxmerge.options.unused import refuse_unread
from onnxmerge.results import Benchmark, LatencyComparison


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
SHORT_CALL_MS = 0.2
"""Latency below which a call is mostly the overhead of entering ONNX Runtime and of starting its operators."""
WIDE_INTERVAL, WIDE_QUARTILES = 1.5, 1.5
"""Ratios of the ends of a speed-up's interval, and of the quartiles of a model's calls, above which a machine is busy. With two
programs a core more than half of the calls of 2 ms were interrupted, and a fifth of those of 0.7 ms: the quartiles of the former
differed 2.9 times, and a model 3.3 times as fast counted as 7.7 times by medians, as 3.1 by lower quartiles. Those of two other
models differed 1.04 to 1.13 times."""
LEAST_SAVING = 0.005
"""Share of the MACs below which nothing was saved that could become time."""


@takes(InputOptions, RuntimeOptions, Thresholds)
def bench(reference: str | Path | ModelProto, candidate: str | Path | ModelProto, **options: Any) -> LatencyComparison:
    """Measure latency and throughput of two models, called in turn with `batch` inputs.

    Parameters
    ----------
    reference, candidate : str, Path or ModelProto
        Path of a model, or the model itself.
    **options
        Fields of `InputOptions` and `RuntimeOptions`, or such objects as `inputs` and `runtime`, and `min_speedup`.

    Returns
    -------
    LatencyComparison
        The latency of both, their ratio and its interval; a `min_speedup` that is missed is one of its `failures`.

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


@takes(InputOptions, RuntimeOptions, Thresholds)
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
    inputs, runtime, limits = options_of(options, InputOptions, RuntimeOptions, Thresholds)
    if limits.outputs_given or limits.sizes_given:
        raise OptionError("`bench` measures time only: of the thresholds it takes `min_speedup`, and `verify` the others")
    refuse_unread(inputs)
    with as_file(reference) as first, as_file(candidate) as second:
        result = benchmark(first, second, inputs, runtime, batches)
        least = limits.min_speedup
        held = tuple(replace(each, failures=tuple(missed_speedup(each, least)), min_speedup=least) for each in result.batches)
        return replace(result, reference=model_name(reference), candidate=model_name(candidate), batches=held)


def benchmark(
    reference: Path, candidate: Path, options: InputOptions, runtime: RuntimeOptions, batches: Sequence[int | None]
) -> Benchmark:
    """`bench_batches` for files, with its options sorted. Raises InputError where the model takes another batch size."""
    batches = [batch or runtime.batch for batch in batches]
    provider = provider_of(runtime)
    files = reference, candidate
    protos = [read_checked(file) for file in files]
    pair_of_runs = first_runs_of_pair(*files, protos, options, runtime.max_memory)
    runs = pair_of_runs[0]
    shapes = shapes_of(runs.first)
    session, _ = open_pair(reference, candidate, provider, optimise=False, threads=runtime.threads)
    count = max(2, *(batch or 1 for batch in batches))
    inputs = inputs_for(session.called(runs.call), shapes, options, count, properties_of_file(reference, protos[0]), fresh=True)
    for batch in batches:
        check_batch(reference, inputs.batch_size, batch, shapes)
    sizes = [size_of_file(*each, runtime.max_memory) for each in zip(files, protos, pair_of_runs, strict=True)]
    before, after = (None if each is None else each.macs for each in sizes)
    odd_widths = _odd_widths(*protos)
    del protos  # two models, beside those that are timed
    found = [time_pair(reference, candidate, inputs, runtime, batch, seed=options.seed) for batch in batches]
    timed = tuple(replace(explained(each, before, after, odd_widths), inputs=runs.inputs) for each in found)
    return Benchmark(str(reference), str(candidate), timed, runs.inputs)


def explained(latency: LatencyComparison, before: int | None, after: int | None, odd_widths: str = "") -> LatencyComparison:
    """The comparison with the ratio of the MACs, the share of their saving that became time, and why it is not faster.

    Parameters
    ----------
    latency : LatencyComparison
        What was measured.
    before, after : int or None
        MACs of reference and candidate.
    odd_widths : str
        Which layers have widths that are slow to compute, as a clause; "" where none has.
    """
    if before and after is not None:
        ratio = after / before
        saved = 1 - ratio
        realised = (1 - latency.latency_ratio) / saved if saved >= LEAST_SAVING else None
        latency = replace(latency, macs_ratio=ratio, realised_saving=realised)
    busy = _busy_machine(latency)
    others = () if latency.verdict == "faster" else (odd_widths, *_reasons_of_the_call(latency))
    return replace(latency, likely_reasons=tuple(filter(None, (busy, *others))))


def _busy_machine(latency: LatencyComparison) -> str:
    """Where calls of one model differ so much that little can be told: long calls are interrupted more often than short ones."""
    low, high = latency.speedup_interval
    quantiles = [each.quantiles_ms for each in (latency.reference, latency.candidate) if each.quantiles_ms]
    is_spread = any(each[15] > WIDE_QUARTILES * each[5] for each in quantiles)
    if not is_spread and (latency.verdict != "not measurable" or high <= WIDE_INTERVAL * low):
        return ""
    return "calls of one and the same model took times too different to tell: let nothing else run, and time again"


def _reasons_of_the_call(latency: LatencyComparison) -> list[str]:
    if latency.macs_ratio is not None and 1 - latency.macs_ratio < LEAST_SAVING:
        return ["no MACs were saved"]
    if latency.batch_size != 1:
        return []
    if latency.provider != CPU.name:
        return ["with one input a call a GPU mostly waits: time the batch that you serve with `batch`"]
    is_short = latency.reference.median_ms < SHORT_CALL_MS
    return ["calls this short are mostly overhead: time larger batches with `batch`"] if is_short else []


def _odd_widths(reference: ModelProto, candidate: ModelProto) -> str:
    """Convolutions that lost channels and write a number of them that is no multiple of their processor's smallest block."""
    widths = (_widths(model) for model in (reference, candidate))
    shrunk = [after for before, after in zip(*widths, strict=False) if after < before]
    odd = sum(width % SMALLEST_BLOCK != 0 for width in shrunk)
    return f"{odd} of {len(shrunk)} convolutions that shrank write no multiple of {SMALLEST_BLOCK} channels" if odd else ""


def _widths(model: ModelProto) -> list[int]:
    """Output channels of every convolution whose weight is stored as it is read."""
    layers = graph_view(model, None).layers
    return [shapes[0][0] for operator, shapes in layers if operator == "Conv" and shapes and shapes[0]]


def time_pair(
    reference: ModelSource,
    candidate: ModelSource,
    inputs: Inputs,
    runtime: RuntimeOptions,
    batch: int | None = None,
    effort: TimingEffort | None = None,
    seed: int = 0,
) -> LatencyComparison:
    """Latency of one call of `batch` inputs, `runtime.batch` or `inputs.call_size`, reference and candidate called in turn."""
    provider = provider_of(runtime)
    provider = replace(provider, settings=replace(provider.settings, cuda_graph=runtime.cuda_graph))
    pair = open_pair(reference, candidate, provider, optimise=True, threads=runtime.threads)
    feeds = inputs.repeated(batch or runtime.batch or inputs.call_size)
    found = compare_latency(*pair, feeds, axes=inputs.axes, **asdict(effort or DEFAULT_EFFORT), seed=seed)
    return replace(found, execution=execution_of(*pair), processor=processor_name(gpu=provider.name != CPU.name))
