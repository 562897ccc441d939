"""The thresholds that a candidate must keep, and those that it fails by missing."""

from collections.abc import Callable
from dataclasses import replace

from onnxmerge.options import DECIDED_FIDELITY, DEFAULT_CHANGED_DECISIONS, DEFAULT_FIDELITY, STREAM_FIDELITY, Thresholds
from onnxmerge.results import Fidelity, LatencyComparison, Size, ThresholdCheck
from onnxmerge.results.fidelity import ROW_FIDELITY

DEFAULT_COSINE = 0.9  # least mean cosine similarity that `verify` asks for where the user gave no threshold
# Largest mean relative L2 error of the outputs that rounding explains, by ONNX's name of the weights' type
ROUNDING = {"DOUBLE": 1e-10, "FLOAT": 1e-4, "FLOAT16": 1e-2, "BFLOAT16": 5e-2}
_WITHOUT = {
    "top-1 agreement": "no output looks like class scores",
    "changed decisions": "no output holds best classes for certain that differ between the inputs",
}
"""Measure -> why no output has it."""


def output_checks(
    fidelity: Fidelity, thresholds: Thresholds, most_changed: float | None = None, least_of_rows: float | None = None
) -> list[ThresholdCheck]:
    """Every threshold of the outputs beside what the worst output keeps.

    most_changed: greatest share of changed decisions; least_of_rows: least fidelity of a row.
    """
    rows: tuple[tuple[str, float | None, Callable[..., tuple[float, str]], str], ...] = (
        ("fidelity", thresholds.min_fidelity, min, "fidelity"),
        ("mean cosine", thresholds.min_cosine, min, "cosine_mean"),
        ("top-1 agreement", thresholds.min_top1_agreement, min, "top1_agreement"),
        ("mean relative L2", thresholds.max_relative_l2, max, "relative_l2_mean"),
        ("changed decisions", most_changed, max, "changed_decisions"),
        ("fidelity of the worst row", least_of_rows, min, "worst_row_fidelity"),
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


def missed_thresholds(fidelity: Fidelity, thresholds: Thresholds, most_changed: float | None = None) -> list[str]:
    """A sentence for every threshold that the worst output misses; NaN or infinity, and nothing to compare, always fail."""
    return [*_defects(fidelity), *_missed(output_checks(fidelity, thresholds, most_changed))]


def _defects(fidelity: Fidelity) -> list[str]:
    """What fails whatever the thresholds are."""
    inputs = [f"input '{name}' holds NaN or infinity" for name in fidelity.inputs_not_finite]
    return [*inputs, *(output.defect for output in fidelity.outputs if output.defect)]


def _missed(checks: list[ThresholdCheck]) -> list[str]:
    """A sentence for every check that does not pass."""
    failures = []
    for check in checks:
        if check.value is None:
            failures.append(f"{check.measure} cannot be checked: {_WITHOUT[check.measure]}")
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
    fidelity: Fidelity,
    thresholds: Thresholds,
    float_types: frozenset[str],
    most_changed: float | None = None,
    *,
    has_states: bool = False,
) -> tuple[list[ThresholdCheck], list[str]]:
    """What `verify` asks of the outputs, and what it fails for.

    Without thresholds of the user's, a model that lost channels needs `DEFAULT_COSINE`, and another one outputs that are equal
    but for rounding. The former is held beside what `compress` keeps by default too, which is no failure to miss: it may have
    been asked to be smaller.

    Parameters
    ----------
    fidelity : Fidelity
        What was measured.
    thresholds, most_changed : Thresholds, float or None
        The user's, and the greatest share of decisions that may change.
    float_types : frozenset of str
        ONNX's names of the types that the candidate's weights are stored in.
    has_states : bool
        Whether states of the model go from call to call.
    """
    if thresholds.outputs_given or most_changed is not None:
        return output_checks(fidelity, thresholds, most_changed), missed_thresholds(fidelity, thresholds, most_changed)
    if fidelity.same_channel_counts:
        coarsest = max((ROUNDING[kind] for kind in float_types & ROUNDING.keys()), default=ROUNDING["FLOAT"])
        checks = output_checks(fidelity, replace(thresholds, max_relative_l2=coarsest))
        why = "no channel was removed, so that only rounding may differ; a threshold of your own allows more"
        missed = [f"{each} ({why})" for each in _missed(checks)]
    else:
        required = output_checks(fidelity, replace(thresholds, min_cosine=DEFAULT_COSINE))
        beside = _kept_by_default(fidelity, has_states=has_states)
        checks, missed = [*required, *(replace(check, is_required=False) for check in beside)], _missed(required)
    return [replace(check, is_default=True) for check in checks], [*_defects(fidelity), *missed]


def _kept_by_default(fidelity: Fidelity, *, has_states: bool) -> list[ThresholdCheck]:
    """What the outputs of a model that `compress` searches without further options keep, beside what those here keep.

    Outputs that could not be compared, which fail anyway, are left out.
    """
    whole = [output for output in fidelity.outputs if not output.defect]
    decided = [output for output in whole if output.changed_decisions is not None]
    others = [output for output in whole if output.changed_decisions is None]
    rowed = [output for output in others if output.rows and not output.has_decisions and not has_states]
    asked = (
        (decided, STREAM_FIDELITY if has_states else DECIDED_FIDELITY, DEFAULT_CHANGED_DECISIONS, None),
        (others, STREAM_FIDELITY if has_states else DEFAULT_FIDELITY, None, None),
        (rowed, None, None, ROW_FIDELITY),
    )
    return [
        check
        for outputs, least, most_changed, least_of_rows in asked
        if outputs
        for check in output_checks(
            replace(fidelity, outputs=tuple(outputs)), Thresholds(min_fidelity=least), most_changed, least_of_rows
        )
    ]
