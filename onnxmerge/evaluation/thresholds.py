"""The thresholds that a candidate must keep, and those that it fails by missing."""

from collections.abc import Callable
from dataclasses import replace

from onnxmerge.options import Thresholds
from onnxmerge.results import Fidelity, LatencyComparison, Size, ThresholdCheck

DEFAULT_COSINE = 0.9  # least mean cosine similarity that `verify` asks for where the user gave no threshold
# Largest mean relative L2 error of the outputs that rounding explains, by ONNX's name of the weights' type
ROUNDING = {"DOUBLE": 1e-10, "FLOAT": 1e-4, "FLOAT16": 1e-2, "BFLOAT16": 5e-2}


def output_checks(fidelity: Fidelity, thresholds: Thresholds) -> list[ThresholdCheck]:
    """Every threshold of the outputs beside what the worst output keeps."""
    rows: tuple[tuple[str, float | None, Callable[..., tuple[float, str]], str], ...] = (
        ("fidelity", thresholds.min_fidelity, min, "fidelity"),
        ("mean cosine", thresholds.min_cosine, min, "cosine_mean"),
        ("top-1 agreement", thresholds.min_top1_agreement, min, "top1_agreement"),
        ("mean relative L2", thresholds.max_relative_l2, max, "relative_l2_mean"),
    )
    checks = []
    for measure, limit, worst_of, name_of_field in rows:
        if limit is None:
            continue
        measured = [(getattr(output, name_of_field), output.name) for output in fidelity.outputs]
        value, name = worst_of([each for each in measured if each[0] is not None], default=(None, ""))
        checks.append(ThresholdCheck(measure, value, limit, is_least=worst_of is min, output=name))
    return checks


def size_checks(before: Size, after: Size, thresholds: Thresholds) -> list[ThresholdCheck]:
    """Every threshold of the parameters and MACs beside the share of them that is left."""
    shares = (
        ("parameters", thresholds.max_params, after.parameters, before.parameters),
        ("MACs", thresholds.max_macs, after.macs, before.macs),
    )
    return [
        ThresholdCheck(what, own / max(1, whole), limit, is_least=False)
        for what, limit, own, whole in shares
        if limit is not None
    ]


def missed_thresholds(fidelity: Fidelity, thresholds: Thresholds) -> list[str]:
    """A sentence for every threshold that the worst output misses; NaN or infinity, and nothing to compare, always fail."""
    failures = [f"input '{name}' holds NaN or infinity" for name in fidelity.inputs_not_finite]
    failures += [output.defect for output in fidelity.outputs if output.defect]
    for check in output_checks(fidelity, thresholds):
        if check.value is None:
            failures.append(f"{check.measure} cannot be checked: no output looks like class scores")
        elif not check.passes:
            side = "below" if check.is_least else "above"
            failures.append(f"output {check.output!r}: {check.measure} {check.value:.6g} is {side} {check.limit:g}")
    return failures


def missed_sizes(before: Size, after: Size, thresholds: Thresholds) -> list[str]:
    """A sentence for every threshold of the size that is missed."""
    missed = [
        f"{check.measure}: {check.value:.6g} of the original's are left, more than {check.limit:g}"
        for check in size_checks(before, after, thresholds)
        if not check.passes
    ]
    if thresholds.require_smaller and after.file_bytes >= before.file_bytes:
        missed.append(f"the file is not smaller: {after.file_bytes:,} bytes, and {before.file_bytes:,} before")
    return missed


def missed_speedup(latency: LatencyComparison, least: float | None) -> list[str]:
    """A sentence where the measured speed-up is below the least."""
    if least is None or latency.speedup >= least:
        return []
    low, high = latency.speedup_interval
    return [f"batch {latency.batch_size}: {latency.speedup:.4g}x as fast [{low:.3g}, {high:.3g}] is below {least:g}x"]


def asked_of_outputs(
    fidelity: Fidelity, thresholds: Thresholds, float_types: frozenset[str]
) -> tuple[list[ThresholdCheck], list[str]]:
    """What `verify` asks of the outputs, and what it fails for.

    Without thresholds of the user's, a model that lost channels needs `DEFAULT_COSINE`, and another one outputs that are equal
    but for rounding.

    Parameters
    ----------
    fidelity : Fidelity
        What was measured.
    thresholds : Thresholds
        The user's.
    float_types : frozenset of str
        ONNX's names of the types that the candidate's weights are stored in.
    """
    if thresholds.outputs_given:
        return output_checks(fidelity, thresholds), missed_thresholds(fidelity, thresholds)
    asked = replace(thresholds, min_cosine=DEFAULT_COSINE)
    if fidelity.same_channel_counts:
        coarsest = max((ROUNDING[kind] for kind in float_types & ROUNDING.keys()), default=ROUNDING["FLOAT"])
        asked = replace(thresholds, max_relative_l2=coarsest)
    checks = [replace(check, is_default=True) for check in output_checks(fidelity, asked)]
    why = "no channel was removed, so that only rounding may differ; a threshold of your own allows more"
    failures = missed_thresholds(fidelity, asked)
    return checks, [f"{each} ({why})" if "relative L2" in each else each for each in failures]
