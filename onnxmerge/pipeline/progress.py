"""How far the work is: the share of a stage as a share of the whole, so that the remaining time can be estimated."""

from collections.abc import Mapping

from onnxmerge.options import Progress, silent

COMPRESS_STAGES = {
    "inputs": (0.0, 0.1),
    "statistics": (0.1, 0.2),
    "sensitivities": (0.2, 0.3),
    "reconstruction": (0.3, 0.9),
    "checking": (0.9, 1.0),
}
INSPECT_STAGES = {"inputs": (0.0, 0.2), "statistics": (0.2, 0.4), "sensitivities": (0.4, 1.0)}
"""Stage -> where it starts and ends, as shares of the whole: rough guesses, of which only the order matters."""
REPEATED_STAGE = "reconstruction"
"""A stage that is run once for each candidate. How often is not known, so every run takes half of what is left of its share."""


def overall(progress: Progress | None, stages: Mapping[str, tuple[float, float]]) -> Progress:
    """A `Progress` that takes the share of a stage and passes on the share of the whole, which never falls.

    Parameters
    ----------
    progress : Progress or None
        Told the share of the whole; None for nobody.
    stages : Mapping[str, tuple[float, float]]
        Stage -> where it starts and ends.
    """
    if progress is None:
        return silent
    before, left, reached = 0.0, 1.0, 0.0

    def tell(stage: str, share: float) -> None:
        nonlocal before, left, reached
        start, end = stages[stage]
        if stage == REPEATED_STAGE:
            left *= 0.5 if share <= before else 1.0
            before = share
            share = 1.0 - left + 0.5 * left * share
        reached = max(reached, start + (end - start) * share)
        progress(stage, reached)

    return tell
