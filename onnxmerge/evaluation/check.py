"""The check of a candidate: outputs compared without optimisation, then both models timed with it."""

from dataclasses import dataclass

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import BATCH
from onnxmerge.errors import VerificationError
from onnxmerge.evaluation.benchmark import TimingEffort, time_pair
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.evaluation.thresholds import missed_thresholds
from onnxmerge.execution.providers import Provider, provider_of
from onnxmerge.execution.sessions import ModelSource, open_pair
from onnxmerge.options import RuntimeOptions, Thresholds
from onnxmerge.results import Fidelity, LatencyComparison


@dataclass(frozen=True)
class CandidateCheck:
    """What was measured of a candidate, and what the user should know about it.

    Attributes
    ----------
    fidelity : Fidelity
        Of its outputs.
    latency : LatencyComparison or None
        Against the reference's; None where it was not measured.
    warnings : tuple of str
        Sentences.
    """

    fidelity: Fidelity
    latency: LatencyComparison | None
    warnings: tuple[str, ...]


def fidelity_of(
    reference: ModelSource, candidate: ModelSource, inputs: Inputs, provider: Provider, threads: int | None
) -> Fidelity:
    """Compare the outputs of two models that are opened without optimisation, as `compare` does."""
    pair = open_pair(reference, candidate, provider, optimise=False, threads=threads)
    return compare(*pair, inputs.batches(BATCH), inputs.description)


def check_candidate(
    reference: ModelSource,
    candidate: ModelSource,
    inputs: Inputs,
    runtime: RuntimeOptions,
    thresholds: Thresholds,
    *,
    bench: bool,
    effort: TimingEffort | None = None,
    seed: int = 0,
) -> CandidateCheck:
    """Compare outputs without optimisation, then with `bench` time both models with it.

    Raises
    ------
    VerificationError
        Where a threshold is missed.
    """
    provider = provider_of(runtime)
    fidelity = fidelity_of(reference, candidate, inputs, provider, runtime.threads)
    failures = missed_thresholds(fidelity, thresholds)
    if failures:
        raise VerificationError(f"{'; '.join(failures)} (nothing was written; `verify=False` keeps the result all the same)")
    latency = time_pair(reference, candidate, inputs, provider, runtime, effort=effort, seed=seed) if bench else None
    warnings = [] if latency is None or latency.latency_ratio_high < 1.0 else [_not_faster(latency)]
    return CandidateCheck(fidelity, latency, tuple(warnings))


def _not_faster(latency: LatencyComparison) -> str:
    return (
        f"the smaller model is not measurably faster here ({latency.provider}, batch {latency.batch_size}, "
        f"{latency.threads} threads): {1 / latency.latency_ratio_high:.2f}x to {1 / latency.latency_ratio_low:.2f}x"
    )
