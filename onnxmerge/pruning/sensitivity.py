"""How much each group matters to the model's outputs: a few removals of each group are measured, the rest of the model as it is.

A measurement removes a share of one group's channels from the reference, updates the group's consumers by channel mixing, or as
the method says, and compares the outputs. What precedes the group's first consumer is run once for all of its measurements.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.tensor_specs import Feeds, batch_size
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.consumer_update import (
    bias_of,
    full_replacement,
    kept_weights,
    mixed_replacement,
    remove_states,
    replace_layer,
    replacement_nodes,
    state_weights,
)
from onnxmerge.pruning.kept_counts import kept_count
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.merge import absorbed
from onnxmerge.pruning.methods import best_removal

REMOVED_SHARES = (0.25, 0.5, 0.75)
"""Shares of a group's channels that are removed; between them the loss follows the error curve of the elimination."""

MAX_INPUTS, MIN_INPUTS = 64, 8
"""Inputs that a measurement runs on, as many as `MAC_BUDGET` allows. A choice: losses are compared between groups, on the same
inputs, so that a few are enough."""

MAC_BUDGET = 4e11
"""Multiply-accumulates of all measurements together, about ten seconds on two cores: larger models get fewer inputs."""

LARGEST_LOSS = 1e3
"""The most that a removal counts for, in units of the outputs' variance: losses stay finite where outputs overflow."""


@dataclass(frozen=True)
class Sensitivity:
    """What one removal costs.

    Attributes
    ----------
    removed : float
        Share of the group's channels that was asked to be removed.
    kept : int
        Number of channels that were kept.
    loss : float
        1 - fidelity of the output that suffers most, 0 to `LARGEST_LOSS`.
    """

    removed: float
    kept: int
    loss: float


def measure_sensitivities(
    statistics: LayerStatistics, groups: Sequence[ChannelGroup], macs: int, options: PruningOptions
) -> dict[str, tuple[Sensitivity, ...]]:
    """Measure what the outputs lose when a part of one group is removed.

    Parameters
    ----------
    statistics : LayerStatistics
        What was observed of the model.
    groups : Sequence[ChannelGroup]
        The groups to measure.
    macs : int
        Multiply-accumulates of the model for one input, which decide how many inputs are affordable.
    options : PruningOptions
        How channels are chosen and what replaces them.

    Returns
    -------
    dict[str, tuple of Sensitivity]
        By name of the group, by ascending share removed; empty for groups that nothing reads.
    """
    context = statistics.context
    count = int(np.clip(MAC_BUDGET / max(1, macs * len(groups) * len(REMOVED_SHARES)), MIN_INPUTS, MAX_INPUTS))
    batches = _first_batches(statistics.inputs.batches(count), count)
    run = LayerwiseRun(deepcopy(statistics.reference.matched), batches, context.threads, context.folder)
    first = {group.name: min((context.node_index[key] for key in _changed_layers(group)), default=-1) for group in groups}
    read = sorted((group for group in groups if group.consumers), key=lambda group: first[group.name])
    sensitivities: dict[str, tuple[Sensitivity, ...]] = {group.name: () for group in groups}
    for number, group in enumerate(read):
        run.run_until(first[group.name])
        rest = _RestOfModel(statistics, group, run, [batch_size(feeds) for feeds in batches])
        levels = [(share, kept, best_removal(statistics, group, kept, options)) for kept, share in _levels(group).items()]
        sensitivities[group.name] = tuple(Sensitivity(share, kept, rest.loss(removal)) for share, kept, removal in levels)
        context.progress("sensitivities", (number + 1) / len(read))
    return sensitivities


def _changed_layers(group: ChannelGroup) -> list[str]:
    """Keys of the layers that compute something else without some channels of a group: consumers, and recurrent producers."""
    return [each.key for each in (*group.consumers, *group.producers) if each in group.consumers or not each.layer.is_linear]


def _levels(group: ChannelGroup) -> dict[int, float]:
    """Kept count -> share asked to be removed; where rounding makes counts of several shares equal, the smallest of these."""
    levels: dict[int, float] = {}
    for share in REMOVED_SHARES:
        levels.setdefault(kept_count(group, share), share)
    levels.pop(group.size, None)
    return levels


def _first_batches(batches: Iterable[Feeds], count: int) -> list[Feeds]:
    """Batches until there are `count` inputs."""
    taken: list[Feeds] = []
    for feeds in batches:
        taken.append(feeds)
        if sum(map(batch_size, taken)) >= count:
            break
    return taken


class _RestOfModel:
    """The model from a group's first consumer on, with the constants of the group's consumers as inputs.

    Parameters
    ----------
    statistics : LayerStatistics
        What was observed of the model.
    group : ChannelGroup
        The channel group.
    run : LayerwiseRun
        A run of the reference that stands at the first consumer; its nodes of the consumers are replaced.
    sizes : sequence of int
        Number of inputs in each of its batches.
    """

    def __init__(self, statistics: LayerStatistics, group: ChannelGroup, run: LayerwiseRun, sizes: Sequence[int]) -> None:
        self.channels, self.covariances = statistics.context.channels, statistics.reference.covariances
        self.run, self.sizes = run, sizes
        self.layers = [consumer.layer for consumer in group.consumers]
        self.own_bias = {layer.key: bias_of(self.channels, layer) for layer in self.layers}
        self.states = [producer.layer for producer in group.producers if not producer.layer.is_linear]
        remove_states(run, self.channels, self.channels.kept_mask([]), self.states)
        constants = self._state_constants(self.channels.kept_mask([]))
        for layer in self.layers:
            all_inputs = np.ones(layer.in_ids.shape, bool)
            same = full_replacement(layer, all_inputs, kept_weights(layer, all_inputs), np.zeros(1))
            replace_layer(run, layer, same, self.own_bias[layer.key])
            constants |= self._constants(layer, same)
        self.session = run.session_to_outputs(constants)
        self.expected = [run.run_session(self.session, batch, constants) for batch in range(run.batch_count)]

    def loss(self, removal: Removal) -> float:
        """1 - fidelity of the output that suffers most from a removal."""
        kept, merged = self.channels.kept_mask([(removal.group, removal.kept)]), absorbed([removal])
        constants = self._state_constants(kept)
        for layer in self.layers:
            kept_inputs = kept[layer.in_ids]
            if removal.method == "reconstruct":
                replacement = mixed_replacement(layer, kept_inputs, self.covariances[layer.key])
            else:
                weight = merged[layer.key].weight if layer.key in merged else None
                replacement = full_replacement(layer, kept_inputs, kept_weights(layer, kept_inputs, weight), np.zeros(1))
            constants |= self._constants(layer, replacement)
        batches = range(self.run.batch_count)
        runs = ((self.sizes[n], self.expected[n], self.run.run_session(self.session, n, constants)) for n in batches)
        outputs, _ = compare_outputs(runs, self.session.output_names)
        return max(float(np.clip(1.0 - output.fidelity, 0.0, LARGEST_LOSS)) for output in outputs)

    def _state_constants(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value for layer in self.states for name, value in state_weights(self.channels, layer, kept).items()}

    def _constants(self, layer: Layer, replacement: Replacement) -> dict[str, np.ndarray]:
        """The constants of a replaced layer by the names that they have in the run."""
        node = self.run.nodes[self.run.node_index[layer.key]][0]
        return replacement_nodes(node, layer, replacement, self.own_bias[layer.key])[1]
