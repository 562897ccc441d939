"""Readers of one group solved as if only that group had shrunk, for probes: from one walk over the reference.

A reader is a linear map, so that the moments of its whole input hold those of every part of it: each level of each group is a
small least squares of its own, and nothing is run for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.algorithms import sample_counts
from onnxmerge.algorithms.least_squares import RIDGE, fits_in_memory
from onnxmerge.algorithms.moments import MomentSums
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.tensor_specs import batch_size
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.pruning.consumer_update import mixed_priors, old_bias, spread_out
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.solve_consumers import least_squares
from onnxmerge.pruning.weight_methods import Decision
from onnxmerge.statistics.consumer_moments import SampleCache, consumer_moment_sums
from onnxmerge.statistics.reference_run import Feeds, copy_of

FEWEST_INPUTS, MOST_INPUTS = 64, 1024
MAC_BUDGET = 2e11  # of running the model on them
AFFORDED = 2e11  # multiply-accumulates of sums and solves, some ten seconds on two cores

Key = tuple[str, int, str]  # group, channels kept, reader


@dataclass(frozen=True)
class Trial:
    """A group with what would be kept of it."""

    group: ChannelGroup
    decision: Decision

    def key(self, layer: str) -> Key:
        """Of one of its readers."""
        return self.group.name, len(self.decision.removal.kept), layer

    def kept(self, layer_statistics: LayerStatistics, layer: Layer) -> np.ndarray:
        """(g, in/g) bool: the inputs of a reader that stay."""
        stays = layer_statistics.context.channels.kept_mask([(self.group, self.decision.removal.kept)])
        return np.asarray(stays[layer.in_ids], bool)


def trial_solves(layer_statistics: LayerStatistics, trials: Sequence[Trial], macs: int, skipped: int) -> dict[Key, Replacement]:
    """What replaces the readers of each trial that can be solved; nothing where all of them together would take too long.

    macs: of one input. The first `skipped` inputs are left for measuring: on those it was fitted to, a reader with few samples
    loses nothing.
    """
    wanted: dict[str, list[Trial]] = {}
    for trial in trials:
        for link in trial.group.consumers:
            wanted.setdefault(link.key, []).append(trial)
    layers = [layer_statistics.reference.layers[key] for key in wanted]
    solvable = [each for each in layers if each.has_patches and fits_in_memory(each.weight.shape[2] * each.weight.shape[3])]
    skipped += -skipped % (layer_statistics.inputs.batch_size or 1)
    count = min(_enough(layer_statistics, solvable), layer_statistics.inputs.count - skipped)
    cost = sum(_cost(layer_statistics, layer, wanted[layer.key], count) for layer in solvable)
    if not solvable or count < FEWEST_INPUTS or count * macs > MAC_BUDGET or cost > AFFORDED:
        return {}
    context, batches = layer_statistics.context, _spread(layer_statistics, skipped, count)
    walk = LayerwiseRun(copy_of(layer_statistics.reference.matched), batches, context.threads, context.folder)
    found: dict[Key, Replacement] = {}
    for layer in sorted(solvable, key=lambda each: walk.node_index[each.key]):
        walk.run_until(walk.node_index[layer.key])
        moments = _moments(layer_statistics, walk, layer)
        found |= {trial.key(layer.key): _solved(layer_statistics, layer, trial, moments) for trial in wanted[layer.key]}
    return found


def _samples(layer_statistics: LayerStatistics, layer: Layer) -> float:
    """Of one input."""
    shape = layer_statistics.context.channels.shape(layer.node.outputs[0]) or ()
    return max(1.0, math.prod(shape[1:]) / max(1, layer.out_ids.size))


def _cost(layer_statistics: LayerStatistics, layer: Layer, trials: Sequence[Trial], count: int) -> float:
    """Multiply-accumulates of a reader's sums, of samples as they are thinned out, and of its solves."""
    width = layer.weight.shape[2] * layer.weight.shape[3]
    samples = min(count * _samples(layer_statistics, layer), max(sample_counts.AMPLE_AT_LEAST, sample_counts.AMPLE * width))
    unknowns = [int(kept.sum()) * layer.weight.shape[3] for trial in trials for kept in trial.kept(layer_statistics, layer)]
    return float(layer.groups * samples * float(width) ** 2 + sum(float(each) ** 3 for each in unknowns))


def _enough(layer_statistics: LayerStatistics, layers: Sequence[Layer]) -> int:
    """As few inputs as give every reader enough samples, and no more than are affordable."""
    unknowns = {layer.key: layer.weight.shape[2] * layer.weight.shape[3] for layer in layers}
    needed: list[float] = [sample_counts.TRIAL * unknowns[layer.key] / _samples(layer_statistics, layer) for layer in layers]
    return min(math.ceil(max([FEWEST_INPUTS, *needed])), MOST_INPUTS)


def _spread(layer_statistics: LayerStatistics, skipped: int, count: int) -> list[Feeds]:
    """About `count` inputs evenly out of those that are not skipped, in whole batches where the model takes only those."""
    step = layer_statistics.inputs.batch_size or 1
    blocks = np.arange(skipped // step, layer_statistics.inputs.count // step)
    chosen = blocks[np.linspace(0, len(blocks) - 1, max(1, min(len(blocks), count // step))).astype(np.int64)]
    positions = (chosen[:, None] * step + np.arange(step)).reshape(-1)
    size = batch_size(next(iter(layer_statistics.context.batches())))
    return list(layer_statistics.inputs.chosen(positions, "spread").batches(size))


def _moments(layer_statistics: LayerStatistics, walk: LayerwiseRun, layer: Layer) -> list[MomentSums]:
    """For each group of the reader, of all its inputs against its own outputs."""
    session = walk.session_of_node(walk.node_index[layer.key])

    def outputs(number: int) -> np.ndarray:
        return np.asarray(next(iter(walk.run_session(session, number).values())))

    whole = np.ones((layer.groups, layer.weight.shape[2]), bool)
    return consumer_moment_sums(walk, layer, whole, outputs, SampleCache(), layer_statistics.context.threads)


def _solved(layer_statistics: LayerStatistics, layer: Layer, trial: Trial, moments: Sequence[MomentSums]) -> Replacement:
    channels, kept = layer_statistics.context.channels, trial.kept(layer_statistics, layer)
    priors = mixed_priors(layer, kept, layer_statistics.reference.covariances[layer.key])
    inside, positions = layer.weight.shape[2:]
    places = [(np.arange(positions)[:, None] * inside + np.flatnonzero(own)).reshape(-1) for own in kept]
    parts = [whole.of_inputs(chosen) for whole, chosen in zip(moments, places, strict=True)]
    weights, bias = least_squares(layer, parts, priors, RIDGE, correction_exponent=0.0)
    return spread_out(channels, layer, kept, weights, bias - old_bias(channels, layer))
