"""How much each group matters to the model's outputs: a few removals of each group are measured, the rest of the model as it is.

A measurement removes a share of one group's channels from the reference, updates the group's consumers by channel mixing, or as
the method says, and compares the outputs. What precedes the group's first consumer is run once for all of its measurements.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.execution.few_positions import id_inputs, position_steps
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
from onnxmerge.pruning.masked_means import mask_means, mean_masks, means_over
from onnxmerge.pruning.merge import absorbed
from onnxmerge.pruning.methods import best_removal
from onnxmerge.pruning.product_update import output_mixes

REMOVED_SHARES = (0.25, 0.5, 0.75)
"""Shares of a group's channels that are removed; between them the loss follows the error curve of the elimination."""

PASSES = 1.5
"""What all measurements cost, in passes over the inputs that are solved on, however many groups there are. Of two networks of 11
and 30 groups the counts allocated with a third of that lost as much, within noise."""

MAX_INPUTS, ENOUGH_INPUTS = 64, 16
"""Inputs of a measurement at most, and with how many all shares are measured; with fewer only the middle one is, on three times
as many: half of the channels on 16 inputs told as much as three shares on 35, and more than three on 8 (docs/cost.md)."""

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
    statistics: LayerStatistics, groups: Sequence[ChannelGroup], options: PruningOptions, *, all_shares: bool = False
) -> dict[str, tuple[Sensitivity, ...]]:
    """Measure what the outputs lose when a part of one group is removed.

    Parameters
    ----------
    statistics : LayerStatistics
        What was observed of the model.
    groups : Sequence[ChannelGroup]
        The groups to measure.
    options : PruningOptions
        How channels are chosen and what replaces them.
    all_shares : bool
        Whether all of `REMOVED_SHARES` are measured whatever they cost.

    Returns
    -------
    dict[str, tuple of Sensitivity]
        By name of the group, by ascending share removed; empty for groups that nothing reads.
    """
    context = statistics.context
    changed = {
        group.name: [*_changed_layers(group), *means_over(context.channels, [group])] for group in groups if _updated(group)
    }
    first = {name: min(map(context.node_index.__getitem__, keys)) for name, keys in changed.items()}
    read = sorted((group for group in groups if _updated(group)), key=lambda group: first[group.name])
    shares, count = _affordable(statistics, read, list(first.values()), all_shares)
    batches = _first_batches(statistics.inputs.batches(count), count)
    sizes = [batch_size(feeds, statistics.inputs.axes) for feeds in batches]
    run = context.new_run(statistics.reference.matched, batches)
    facts = context.channels.facts
    graph = facts.model.graph
    steps = position_steps(facts.shapes, id_inputs(graph), [tensor.name for tensor in graph.outputs], facts.model.opset)
    outputs = run.session_to_outputs({}, steps)
    expected = [run.run_session(outputs, batch) for batch in range(len(batches))]
    sensitivities: dict[str, tuple[Sensitivity, ...]] = {group.name: () for group in groups}
    for number, group in enumerate(read):
        run.run_until(first[group.name])
        rest = _RestOfModel(statistics, group, run, sizes, expected, steps)
        counts = _levels(group, shares, options)
        levels = [(share, kept, best_removal(statistics, group, kept, options)) for kept, share in counts.items()]
        sensitivities[group.name] = tuple(Sensitivity(share, kept, rest.loss(removal)) for share, kept, removal in levels)
        context.progress("sensitivities", (number + 1) / len(read))
    return sensitivities


def _changed_layers(group: ChannelGroup) -> list[str]:
    """Keys of the layers that compute something else without some channels of a group: updated ones, recurrent producers."""
    return [layer.key for layer in (*_updated(group), *(each.layer for each in group.producers if not each.layer.is_linear))]


def _updated(group: ChannelGroup) -> list[Layer]:
    """The layers whose weights change with a removal: the consumers; of queries and keys the producers."""
    links = (*group.consumers, *(each for each in group.producers if group.products and each.layer.is_linear))
    return list({link.key: link.layer for link in links}.values())


def _affordable(
    statistics: LayerStatistics, groups: Sequence[ChannelGroup], first: Sequence[int], all_shares: bool
) -> tuple[tuple[float, ...], int]:
    """Which shares are removed, and on how many inputs, for `PASSES`; first: by group the first node that is run.

    Branches are measured once more, without any channel.
    """
    at = np.array([statistics.context.node_index[layer.key] for layer in statistics.context.channels.layers])
    behind = sum(float(np.mean(at >= each)) for each in first)  # passes over as many inputs as a measurement takes
    inputs = PASSES * statistics.inputs.count / max(behind, 1.0)
    is_enough = all_shares or inputs >= len(REMOVED_SHARES) * ENOUGH_INPUTS
    shares = REMOVED_SHARES if is_enough else REMOVED_SHARES[1:2]
    measurements = len(shares) + sum(group.branch is not None for group in groups) / max(1, len(groups))
    return shares, int(np.clip(inputs / measurements, 1 + all_shares * (ENOUGH_INPUTS - 1), MAX_INPUTS))


def _levels(group: ChannelGroup, shares: Sequence[float], options: PruningOptions) -> dict[int, float]:
    """Kept count -> share asked to be removed; where rounding makes counts of several shares equal, the smallest of these.

    All of it for a branch, for which merging alone has nothing that could take its place.
    """
    levels: dict[int, float] = {}
    for share in shares:
        levels.setdefault(kept_count(group, share), share)
    levels.pop(group.size, None)
    return levels | ({0: 1.0} if group.branch and options.method != "merge" else {})


def _first_batches(batches: Iterable[Feeds], count: int) -> list[Feeds]:
    """Batches until there are `count` inputs."""
    taken: list[Feeds] = []
    for feeds in batches:
        taken.append(feeds)
        if sum(map(batch_size, taken)) >= count:
            break
    return taken


class _RestOfModel:
    """The model from the first layer on that changes with a group, with the constants of these layers as inputs.

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
    expected : sequence of mapping of str to ndarray
        For each of them the outputs of the whole model.
    steps : mapping of str to int
        Which outputs these have at every so many-th position only, see `position_steps`.
    """

    def __init__(
        self,
        statistics: LayerStatistics,
        group: ChannelGroup,
        run: LayerwiseRun,
        sizes: Sequence[int],
        expected: Sequence[Mapping[str, Any]],
        steps: Mapping[str, int],
    ) -> None:
        self.channels, self.reference = statistics.context.channels, statistics.reference
        self.run, self.sizes, self.expected, self.axes = run, sizes, expected, statistics.inputs.output_axes
        self.layers, self.consumers = _updated(group), {consumer.key for consumer in group.consumers}
        self.own_bias = {layer.key: bias_of(self.channels, layer) for layer in self.layers}
        self.states = [producer.layer for producer in group.producers if not producer.layer.is_linear]
        remove_states(run, self.channels, self.channels.kept_mask([]), self.states)
        self.means = means_over(self.channels, [group])
        constants = self._state_constants(self.channels.kept_mask([])) | self._mean_masks(self.channels.kept_mask([]))
        mask_means(run, self._mean_masks(self.channels.kept_mask([])))
        for layer in self.layers:
            all_inputs = np.ones(layer.in_ids.shape, bool)
            same = full_replacement(layer, all_inputs, kept_weights(layer, all_inputs), np.zeros(1))
            replace_layer(run, layer, same, self.own_bias[layer.key])
            constants |= self._constants(layer, same)
        self.session = run.session_to_outputs(constants, steps)

    def loss(self, removal: Removal) -> float:
        """1 - fidelity of the output that suffers most from a removal."""
        kept, merged = self.channels.kept_mask([(removal.group, removal.kept)]), absorbed([removal])
        constants = self._state_constants(kept) | self._mean_masks(kept)
        mixes = output_mixes(self.channels, [removal], self.reference.products)
        for layer in self.layers:
            kept_inputs = kept[layer.in_ids]
            if removal.method == "reconstruct" and layer.key in self.consumers:
                replacement = mixed_replacement(layer, kept_inputs, self.reference.covariances[layer.key])
            else:
                weight = merged[layer.key].weight if layer.key in merged else None
                replacement = full_replacement(layer, kept_inputs, kept_weights(layer, kept_inputs, weight), np.zeros(1))
            if layer.key in mixes:
                replacement = mixes[layer.key].applied(self.channels, replacement)
            constants |= self._constants(layer, replacement)
        batches = range(self.run.batch_count)
        runs = ((self.sizes[n], self.expected[n], self.run.run_session(self.session, n, constants)) for n in batches)
        outputs, _ = compare_outputs(runs, self.session.output_names, self.axes)
        return max(float(np.clip(1.0 - output.fidelity, 0.0, LARGEST_LOSS)) for output in outputs)

    def _state_constants(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value for layer in self.states for name, value in state_weights(self.channels, layer, kept).items()}

    def _mean_masks(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        return mean_masks(self.channels, kept, self.means)

    def _constants(self, layer: Layer, replacement: Replacement) -> dict[str, np.ndarray]:
        """The constants of a replaced layer by the names that they have in the run."""
        node = self.run.nodes[self.run.node_index[layer.key]][0]
        return replacement_nodes(node, layer, replacement, self.own_bias[layer.key])[1]
