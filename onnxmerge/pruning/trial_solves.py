"""Readers of one group solved as if only that group had shrunk, for probes: from one walk over the reference.

A reader is a linear map, so that the moments of its whole input hold those of every part of it: each level of each group is a
small least squares of its own, and nothing is run for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.algorithms.least_squares import RIDGE, fits_in_memory
from onnxmerge.algorithms.moments import Moments
from onnxmerge.execution.layerwise import Walk
from onnxmerge.execution.sessions import batch_size
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.readers import Reader
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.pruning.consumer_update import mixed_priors, old_bias, spread_out
from onnxmerge.pruning.layer_statistics import Study
from onnxmerge.pruning.solve_consumers import least_squares
from onnxmerge.pruning.weight_methods import Decision
from onnxmerge.statistics import unfold as gram
from onnxmerge.statistics.moments import Samples, solve_moments
from onnxmerge.statistics.reference_run import Feeds, copy_of

SAMPLES_PER_UNKNOWN = 1.5
FEWEST_INPUTS, MOST_INPUTS = 64, 1024
MAC_BUDGET = 2e11  # of running the model on them
AFFORDED = 2e11  # multiply-accumulates of sums and solves, some ten seconds on two cores

Key = tuple[str, int, str]  # group, channels kept, reader


@dataclass(frozen=True)
class Trial:
    """A group with what would be kept of it."""

    group: ChannelGroup
    decision: Decision

    def key(self, reader: str) -> Key:
        """Of one of its readers."""
        return self.group.name, len(self.decision.removal.kept), reader

    def kept(self, study: Study, reader: Reader) -> np.ndarray:
        """(g, in/g) bool: the inputs of a reader that stay."""
        stays = np.ones(len(study.engine.channels.flow.parents), bool)
        stays[self.group.units] = False
        stays[self.group.units[self.decision.removal.kept]] = True
        return np.asarray(stays[reader.weighted.in_ids], bool)


def trial_solves(study: Study, trials: Sequence[Trial], macs: int, skipped: int) -> dict[Key, Replacement]:
    """What replaces the readers of each trial that can be solved; nothing where all of them together would take too long.

    macs: of one input. The first `skipped` inputs are left for measuring: on those it was fitted to, a reader with few samples
    loses nothing.
    """
    wanted: dict[str, list[Trial]] = {}
    for trial in trials:
        for link in trial.group.consumers:
            wanted.setdefault(link.key, []).append(trial)
    readers = [study.statistics.readers[key] for key in wanted]
    solvable = [each for each in readers if each.solvable and fits_in_memory(each.weight.shape[2] * each.weight.shape[3])]
    skipped += -skipped % (study.inputs.batch_size or 1)
    count = min(_enough(study, solvable), study.inputs.count - skipped)
    cost = sum(_cost(study, reader, wanted[reader.key], count) for reader in solvable)
    if not solvable or count < FEWEST_INPUTS or count * macs > MAC_BUDGET or cost > AFFORDED:
        return {}
    walk = Walk(copy_of(study.statistics.matched), _spread(study, skipped, count), study.engine.threads)
    found: dict[Key, Replacement] = {}
    for reader in sorted(solvable, key=lambda each: each.at):
        walk.advance(reader.at)
        moments = _moments(study, walk, reader)
        found |= {trial.key(reader.key): _solved(study, reader, trial, moments) for trial in wanted[reader.key]}
    return found


def _samples(study: Study, reader: Reader) -> float:
    """Of one input."""
    shape = study.engine.channels.flow.shape(reader.weighted.node.outputs[0]) or ()
    return max(1.0, math.prod(shape[1:]) / max(1, reader.weighted.out_ids.size))


def _cost(study: Study, reader: Reader, trials: Sequence[Trial], count: int) -> float:
    """Multiply-accumulates of a reader's sums, of samples as they are thinned out, and of its solves."""
    width = reader.weight.shape[2] * reader.weight.shape[3]
    samples = min(count * _samples(study, reader), max(gram.FEWEST_SAMPLES, gram.SAMPLES_PER_UNKNOWN * width))
    unknowns = [int(kept.sum()) * reader.weight.shape[3] for trial in trials for kept in trial.kept(study, reader)]
    return reader.groups * samples * float(width) ** 2 + sum(float(each) ** 3 for each in unknowns)


def _enough(study: Study, readers: Sequence[Reader]) -> int:
    """As few inputs as give every reader enough samples, and no more than are affordable."""
    unknowns = {reader.key: reader.weight.shape[2] * reader.weight.shape[3] for reader in readers}
    needed = [SAMPLES_PER_UNKNOWN * unknowns[reader.key] / _samples(study, reader) for reader in readers]
    return min(math.ceil(max([FEWEST_INPUTS, *needed])), MOST_INPUTS)


def _spread(study: Study, skipped: int, count: int) -> list[Feeds]:
    """About `count` inputs evenly out of those that are not skipped, in whole batches where the model takes only those."""
    step = study.inputs.batch_size or 1
    blocks = np.arange(skipped // step, study.inputs.count // step)
    chosen = blocks[np.linspace(0, len(blocks) - 1, max(1, min(len(blocks), count // step))).astype(np.int64)]
    positions = (chosen[:, None] * step + np.arange(step)).reshape(-1)
    size = batch_size(next(iter(study.engine.batches())))
    return list(study.inputs.chosen(positions, "spread").batches(size))


def _moments(study: Study, walk: Walk, reader: Reader) -> list[Moments]:
    """For each group of the reader, of all its inputs against its own outputs."""
    session = walk.session_for(reader.at)

    def outputs(number: int) -> np.ndarray:
        return np.asarray(next(iter(walk.run(session, number).values())))

    whole = np.ones((reader.groups, reader.weight.shape[2]), bool)
    return solve_moments(walk, reader, whole, outputs, None, Samples(), study.engine.threads)


def _solved(study: Study, reader: Reader, trial: Trial, moments: Sequence[Moments]) -> Replacement:
    flow, kept = study.engine.channels.flow, trial.kept(study, reader)
    priors = mixed_priors(reader, kept, study.statistics.moments[reader.key])
    inside, positions = reader.weight.shape[2:]
    places = [(np.arange(positions)[:, None] * inside + np.flatnonzero(own)).reshape(-1) for own in kept]
    parts = [whole.of_inputs(chosen) for whole, chosen in zip(moments, places, strict=True)]
    weights, bias = least_squares(reader, parts, priors, RIDGE, repair=0.0)
    return spread_out(flow, reader, kept, weights, bias - old_bias(flow, reader))
