"""Readers of one group solved as if only that group had shrunk, for probes: from one walk over the reference.

A reader is a linear map, so that the moments of its whole input hold those of every part of it: each level of each group is a
small least squares of its own, and nothing is run for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.channels import ChannelGroup
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.merging.moments import Moments
from onnxmerge.merging.reconstruction import fits_in_memory, solve
from onnxmerge.methods.by_weights import Decision
from onnxmerge.methods.installing import mixed_priors, old_bias, spread_out
from onnxmerge.methods.reference import Feeds, copy_of
from onnxmerge.methods.study import Study
from onnxmerge.runtime.sessions import batch_size
from onnxmerge.statistics.readers import Reader
from onnxmerge.statistics.sums import Samples, solve_moments
from onnxmerge.statistics.walk import Walk

SAMPLES_PER_UNKNOWN = 3
FEWEST_INPUTS, MOST_INPUTS, LARGEST_BATCH = 64, 1024, 64
AFFORDED = 1e11  # sum of unknowns^3 of all solves, some ten seconds on two cores

Key = tuple[str, int, str]  # group, channels kept, reader


@dataclass(frozen=True)
class Trial:
    """A group with what would be kept of it."""

    group: ChannelGroup
    decision: Decision

    def key(self, reader: str) -> Key:
        """Of one of its readers."""
        return self.group.name, len(self.decision.removal.kept), reader


def trial_solves(study: Study, trials: Sequence[Trial]) -> dict[Key, Replacement]:
    """What replaces the readers of each trial that can be solved; nothing where all of them together would take too long."""
    wanted: dict[str, list[Trial]] = {}
    for trial in trials:
        for link in trial.group.consumers:
            wanted.setdefault(link.key, []).append(trial)
    readers = [study.statistics.readers[key] for key in wanted]
    solvable = [each for each in readers if each.solvable and fits_in_memory(each.weight.shape[2] * each.weight.shape[3])]
    if sum(_unknowns(trial, reader) ** 3 for reader in solvable for trial in wanted[reader.key]) > AFFORDED:
        return {}
    walk = Walk(copy_of(study.statistics.matched), first_inputs(study, _enough(study, solvable)), study.engine.threads)
    found: dict[Key, Replacement] = {}
    for reader in sorted(solvable, key=lambda each: each.at):
        walk.advance(reader.at)
        moments = _moments(study, walk, reader)
        found |= {trial.key(reader.key): _solved(study, reader, trial, moments) for trial in wanted[reader.key]}
    return found


def _unknowns(trial: Trial, reader: Reader) -> float:
    return reader.weight.shape[2] * reader.weight.shape[3] * len(trial.decision.removal.kept) / trial.group.size


def first_inputs(study: Study, count: int) -> list[Feeds]:
    """Batches until there are `count` inputs, no more than that at a time."""
    found: list[Feeds] = []
    for feeds in study.inputs.batches(min(count, LARGEST_BATCH)):
        if sum(map(batch_size, found)) >= count:
            break
        found.append(feeds)
    return found


def _enough(study: Study, readers: Sequence[Reader]) -> int:
    """As few inputs as give every reader enough samples, and no more than are affordable."""
    shapes, needed = study.engine.channels.flow.shape, float(FEWEST_INPUTS)
    for reader in readers:
        shape = shapes(reader.weighted.node.outputs[0]) or ()
        samples = math.prod(shape[1:]) / max(1, reader.weighted.out_ids.size)
        needed = max(needed, SAMPLES_PER_UNKNOWN * reader.weight.shape[2] * reader.weight.shape[3] / max(samples, 1.0))
    return min(math.ceil(needed), MOST_INPUTS)


def _moments(study: Study, walk: Walk, reader: Reader) -> list[Moments]:
    """For each group of the reader, of all its inputs against its own outputs."""
    session = walk.session_for(reader.at)

    def outputs(number: int) -> np.ndarray:
        return np.asarray(next(iter(walk.run(session, number).values())))

    whole = np.ones((reader.groups, reader.weight.shape[2]), bool)
    return solve_moments(walk, reader, whole, outputs, None, Samples(), study.engine.threads)


def _solved(study: Study, reader: Reader, trial: Trial, moments: Sequence[Moments]) -> Replacement:
    flow, group = study.engine.channels.flow, trial.group
    stays = np.ones(len(flow.parents), bool)
    stays[group.units] = False
    stays[group.units[trial.decision.removal.kept]] = True
    kept = stays[reader.weighted.in_ids]
    priors = mixed_priors(reader, kept, study.statistics.moments[reader.key])
    _, out, inside, positions = reader.weight.shape
    weights, biases = [], []
    rows = reader.weighted.layout != "conv"
    for g, (whole, prior) in enumerate(zip(moments, priors, strict=True)):
        chosen = (np.arange(positions)[:, None] * inside + np.flatnonzero(kept[g])).reshape(-1)
        solved, bias, _ = solve(whole.of_inputs(chosen), prior.transpose(0, 2, 1).reshape(out, -1), repair=0.0, independent=rows)
        weights.append(solved.reshape(out, positions, -1).transpose(0, 2, 1))
        biases.append(bias)
    return spread_out(flow, reader, kept, weights, np.concatenate(biases) - old_bias(flow, reader))
