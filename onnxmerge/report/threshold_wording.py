"""What is said of thresholds that are kept."""

from collections.abc import Callable, Iterable

from onnxmerge.report.wording import closeness, magnitude, percent
from onnxmerge.results import ThresholdCheck

_PER_CENT = ("top-1 agreement", "changed decisions", "parameters", "MACs")
_MEASURED: dict[str, Callable[[float], str]] = {
    "mean cosine": lambda value: f"mean cosine {closeness(value)}",
    "mean relative L2": lambda value: f"mean relative L2 {magnitude(value)}",
    "fidelity of the worst row": lambda value: f"fidelity of the worst row {closeness(value)}",
    "top-1 agreement": lambda value: f"same best class {percent(value)}",
    "parameters": lambda value: f"{percent(value)} of the parameters left",
    "MACs": lambda value: f"{percent(value)} of the MACs left",
}
"""Measure of a threshold, but fidelity and changed decisions, which every verdict tells -> what was measured, in words."""


def is_told(check: ThresholdCheck) -> bool:
    """Whether a verdict has the threshold: one that is kept, and one that is not but need not be."""
    return check.passes == check.is_required and check.value is not None


def held_texts(checks: Iterable[ThresholdCheck]) -> list[str]:
    """`mean cosine 0.9912 (at least 0.9)` for every threshold that is told of a measure that not every verdict has."""
    told = [(check, check.value) for check in checks if is_told(check) and check.measure in _MEASURED and check.value is not None]
    return [f"{_MEASURED[check.measure](value)} {limit_text(check)}" for check, value in told]


def missed_elsewhere(checks: Iterable[ThresholdCheck], output: str) -> list[str]:
    """`fidelity 0.9612 of 'boxes' (compress: at least 0.97 by default)` of outputs but that one which keep less."""
    others = [(check, check.value) for check in checks if check.measure == "fidelity" and check.output != output]
    missed = [(check, value) for check, value in others if not check.is_required and not check.passes and value is not None]
    return [f"fidelity {closeness(value)} of {check.output!r} {limit_text(check)}" for check, value in missed]


def limit_text(check: ThresholdCheck) -> str:
    """`(at least 0.9 by default)`, `(compress: at most 2% by default)` of what need not be kept."""
    limit = f"{100 * check.limit:g}%" if check.measure in _PER_CENT else f"{check.limit:g}"
    whose = "" if check.is_required else "compress: "
    return f"({whose}at {'least' if check.is_least else 'most'} {limit}{' by default' * check.is_default})"
