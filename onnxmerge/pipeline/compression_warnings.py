"""What a user should know of a compressed model before deploying it."""

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import MIN_CHECK_INPUTS
from onnxmerge.evaluation.check import CandidateCheck
from onnxmerge.execution.providers import CPU
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.channel_multiples import HARDWARE_MULTIPLE
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.latency_search import LATENCY_TOLERANCE
from onnxmerge.results import LatencyComparison

DOUBTFUL_FIDELITY = 0.5
"""Fidelity below which less than half of the variance of an output is explained, so that few models are still of use."""
SHORT_CALL_MS = 0.2
"""Latency below which a call is mostly the overhead of entering ONNX Runtime and of starting its operators."""


def warnings_of(found: SearchResult, check: CandidateCheck | None, checking: Inputs, options: CompressOptions) -> tuple[str, ...]:
    """All warnings of a compression.

    Parameters
    ----------
    found : SearchResult
        The result, with the warnings of the search.
    check : CandidateCheck or None
        What was measured of it, None with `verify=False`.
    checking : Inputs
        Inputs it was measured on.
    options : CompressOptions
        What was asked for.
    """
    return (
        *found.warnings,
        *([] if found.candidate.groups else ["nothing was removed: the output is the model as it was; the reasons are listed"]),
        *_missed_latency(found, check, options),
        *_few_inputs(checking, options),
        *([] if check is None else _not_faster(check, found.candidate, options)),
        *([] if check is None else _low_fidelity(check, options)),
    )


def _missed_latency(found: SearchResult, check: CandidateCheck | None, options: CompressOptions) -> list[str]:
    kind, share = options.pruning.target or ("", 0.0)
    ratio = found.latency_ratio if check is None or check.latency is None else check.latency.latency_ratio
    if kind != "latency" or ratio is None or abs(ratio / share - 1.0) <= LATENCY_TOLERANCE:
        return []
    return [f"latency={share:g} was not reached within {LATENCY_TOLERANCE:.0%}: it takes {ratio:.2f} of the time"]


def _few_inputs(checking: Inputs, options: CompressOptions) -> list[str]:
    if options.pruning.fidelity is None or checking.count >= MIN_CHECK_INPUTS:
        return []
    return [
        f"the fidelity rests on {checking.description}: give at least {2 * MIN_CHECK_INPUTS} calibration inputs to rely on it"
    ]


def _not_faster(check: CandidateCheck, candidate: Candidate, options: CompressOptions) -> list[str]:
    """With the likely reasons, unless a latency was asked for: then the reason is that it was not reached."""
    reasons = [] if options.pruning.is_latency_target else _likely_reasons(check.latency, candidate)
    return ["; ".join([warning, *reasons]) for warning in check.warnings]


def _likely_reasons(latency: LatencyComparison | None, candidate: Candidate) -> list[str]:
    """Why a smaller model may not be faster."""
    reasons = []
    odd = sum(group.kept % HARDWARE_MULTIPLE != 0 for group in candidate.groups)
    if odd:
        groups = f"{odd} of {len(candidate.groups)} groups"
        reasons.append(f"{groups} keep a count that is no multiple of {HARDWARE_MULTIPLE}: try `round_to=auto`")
    if latency is None or latency.batch_size != 1:
        return reasons
    if latency.provider != CPU.name:
        reasons.append("with one input a call a GPU mostly waits: time the batch that you serve with `batch`")
    elif latency.reference.median_ms < SHORT_CALL_MS:
        reasons.append("calls this short are mostly overhead: time larger batches with `batch`")
    return reasons


def _low_fidelity(check: CandidateCheck, options: CompressOptions) -> list[str]:
    worst = check.fidelity.worst
    if worst.fidelity >= DOUBTFUL_FIDELITY:
        return []
    less = "a lower `ratio`" if options.pruning.ratio is not None else "a larger model"
    remedy = less if options.inputs.calibration is not None else f"{less}, or `calibration` with real inputs"
    return [f"output {worst.name} keeps only {max(0.0, worst.fidelity):.0%} of the reference's variance; try {remedy}"]
