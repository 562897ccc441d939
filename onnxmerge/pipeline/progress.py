"""How far the work is: a stage's share as a share of the whole, weighted by predicted work, so that the time left can be told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxmerge.options import EXPECTED, Progress, silent

LONG = 60.0
"""Predicted seconds from which on a user is told how long it takes."""
UNEXPECTED_RUN = 0.5
"""Runs of a repeated stage that are still expected where there have been as many as were expected: another one, or none."""


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes
    ----------
    name : str
        What is told of it.
    work : float
        Predicted seconds of one run of it.
    runs : float
        How often it is expected to be run, one time after the other.
    """

    name: str
    work: float
    runs: float = 1.0


def tell_expected(progress: Progress | None, stages: Sequence[Stage], *, can_end_early: bool) -> None:
    """Tell how long the work takes, where that is `LONG` or more, and where `can_end_early` how to end it before."""
    seconds = sum(stage.work * stage.runs for stage in stages)
    if progress is not None and seconds >= LONG:
        cure = "; `time_limit=2m` ends the search then, with the best model so far" if can_end_early else ""
        progress(f"{EXPECTED} {math.ceil(seconds / 60)} minutes on one core{cure}", 0.0)


def overall(progress: Progress | None, stages: Sequence[Stage]) -> Progress:
    """A `Progress` that takes the share of a stage and passes on the share of the whole, which never falls.

    Parameters
    ----------
    progress : Progress or None
        Told the share of the whole; None for nobody.
    stages : Sequence[Stage]
        In order; one that is left out counts no more, and of several of one name the next is meant once another was told of.
    """
    if progress is None:
        return silent
    at, runs, before, done, reached = 0, 0, 0.0, 0.0, 0.0

    def tell(stage: str, share: float) -> None:
        nonlocal at, runs, before, done, reached
        index = next((index for index in range(at, len(stages)) if stages[index].name == stage), None)
        if index is not None:
            if index > at or share < before or (before == share == 1.0 and stages[at].runs > 1.0):
                done, runs = done + before * stages[at].work, runs + 1 if index == at else 0
            at, before = index, share
            current, further = stages[at], max(stages[at].runs - runs - 1.0, UNEXPECTED_RUN * (stages[at].runs > 1.0))
            left = current.work * (1.0 - share + further) + sum(each.work * each.runs for each in stages[at + 1 :])
            finished = done + share * current.work
            reached = max(reached, finished / (finished + left) if finished + left else 1.0)
        progress(stage, reached)

    return tell
