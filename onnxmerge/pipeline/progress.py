"""How far the work is: shares of stages as shares of the whole, so that the time left can be told."""

from __future__ import annotations

from collections.abc import Mapping

from onnxmerge.options import Progress, silent

COMPRESSING = {
    "inputs": (0.0, 0.1),
    "statistics": (0.1, 0.2),
    "probes": (0.2, 0.3),
    "reconstruction": (0.3, 0.9),
    "checking": (0.9, 1.0),
}
MEASURING = {"inputs": (0.0, 0.2), "statistics": (0.2, 0.4), "probes": (0.4, 1.0)}
REPEATED = "reconstruction"  # nobody knows how often, so every run takes half of what is left


def overall(progress: Progress | None, stages: Mapping[str, tuple[float, float]]) -> Progress:
    """What is told of a stage, passed on as the share of the whole."""
    if progress is None:
        return silent
    before, left, reached = 0.0, 1.0, 0.0

    def tell(stage: str, share: float) -> None:
        nonlocal before, left, reached
        start, end = stages[stage]
        if stage == REPEATED:
            left *= 0.5 if share <= before else 1.0
            before = share
            share = 1.0 - left + 0.5 * left * share
        reached = max(reached, start + (end - start) * share)
        progress(stage, reached)

    return tell
