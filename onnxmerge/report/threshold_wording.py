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


def held_texts(checks: Iterable[ThresholdCheck]) -> list[str]:
    """`mean cosine 0.9912 (at least 0.9)` for every threshold that is kept and that not every verdict tells."""
    kept = [(check, check.value) for check in checks if check.passes and check.measure in _MEASURED and check.value is not None]
    return [f"{_MEASURED[check.measure](value)} {limit_text(check)}" for check, value in kept]


def limit_text(check: ThresholdCheck) -> str:
    """`(at least 0.94 by default)`."""
    limit = f"{100 * check.limit:g}%" if check.measure in _PER_CENT else f"{check.limit:g}"
    return f"(at {'least' if check.is_least else 'most'} {limit}{' by default' * check.is_default})"
