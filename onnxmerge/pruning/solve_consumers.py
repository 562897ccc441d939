"""The least squares of `reconstruct`, layer by layer in topological order.

Reference and compressed model are run side by side. At every consumer the inputs come from the compressed model, as far as it has
been solved, and the targets from the reference, so that every consumer makes good what was lost before it. On real inputs, where
one layer alone writes what one convolution reads, its channels are chosen once more there, by what this now has to make good.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_paths import ChannelPath
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Removal, Replacement, gone_nodes
from onnxmerge.onnxio.traversal import tensors_read
from onnxmerge.pruning.consumer_update import bias_of, remove_states, replace_layer
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.layer_update import LayerUpdate, Runs, is_cheap_to_choose
from onnxmerge.pruning.masked_means import mask_means, mean_masks, means_over
from onnxmerge.pruning.producer_update import read_between, updated_pairs
from onnxmerge.pruning.product_update import OutputMix, output_mixes
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext


def solve_consumers(
    observed: LayerStatistics, removals: Sequence[Removal], unsolved: Mapping[str, Replacement | None], given: Collection[str]
) -> tuple[list[Removal], dict[str, Replacement]]:
    """New weights and biases of all layers from the first one that loses inputs on.

    Layers that lose none are fitted to what the compressed model now gives them; on synthetic inputs not the last ones, since
    these inputs say little about the outputs that follow.

    Parameters
    ----------
    observed : LayerStatistics
        The exported model, the inputs to solve on, and covariances of what each layer reads, for channel mixing.
    removals : Sequence[Removal]
        What is removed from each group.
    unsolved : Mapping[str, Replacement or None]
        By key, consumers that are not to be solved and what replaces them; None: they only lose their inputs.
    given : collection of str
        Names of the groups of which the channels that stay are given.

    Returns
    -------
    removals : list of Removal
        As they came; of other channels, as many, where a pair of layers misses less with them.
    replacements : dict[str, Replacement]
        By key of the layer.

    Notes
    -----
    Targets from the reference, inputs from the compressed model: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep
    Neural Networks", 2017. A second solve for what passes a ReLU: Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional
    Networks for Classification and Detection", 2015.
    """
    context, statistics = observed.context, observed.reference
    kept = context.channels.kept_mask((removal.group, removal.kept) for removal in removals)
    mixes = output_mixes(context.channels, removals, statistics.products)
    layers = _layers_to_update(context, statistics, removals, kept, mixes)
    if not layers:
        return list(removals), {}
    runs = context.new_run(statistics.matched), _compressed_run(context, statistics, removals, kept)
    pairs = updated_pairs(context, statistics, removals, {*unsolved, *mixes})
    choices = {} if context.synthetic else _choices(removals, pairs)
    for removal in choices.values():
        kept[removal.group.channel_ids] = True  # they all count until they are chosen, also where a plan says which will be
    for key, path in pairs.items():
        for name in (*path.gates, *read_between(context, path)):
            runs[1].hold(name, context.node_index[key])
    walk = _Walk(observed, kept, runs, pairs, mixes, choices, unsolved, given)
    for number, layer in enumerate(layers):
        walk.solve(layer)
        context.progress("reconstruction", (number + 1) / len(layers))
    chosen = {removal.group.name: removal for removal in choices.values()}
    return [chosen.get(removal.group.name, removal) for removal in removals], walk.replacements


@dataclass(frozen=True)
class _Walk:
    """The layers solved one after the other; `kept`, `choices` and `replacements` change on the way.

    Attributes
    ----------
    kept : ndarray of shape (number of ids,), bool
        The channels that stay, those of groups that are still to be chosen from all count.
    runs : Runs
        Reference and compressed model.
    pairs, mixes, choices : Mapping
        By key of the layer, the path from the producer that may change too, how its outputs mix, and the removal of which the
        channels are chosen there.
    observed, unsolved, given
        As `solve_consumers` gets them.
    """

    observed: LayerStatistics
    kept: np.ndarray
    runs: Runs
    pairs: Mapping[str, ChannelPath]
    mixes: Mapping[str, OutputMix]
    choices: dict[str, Removal]
    unsolved: Mapping[str, Replacement | None]
    given: Collection[str]
    replacements: dict[str, Replacement] = field(default_factory=dict)

    def solve(self, layer: Layer) -> None:
        """Run both models up to a layer, and replace what is to be replaced there."""
        context, statistics = self.observed.context, self.observed.reference
        index = context.node_index[layer.key]
        self.runs[0].run_until(index + 1, keep=layer.key)
        self.runs[1].run_until(index)
        if layer.key in self.choices:
            self._choose(layer)
        replacement, mix = None, self.mixes.get(layer.key)
        if layer.key in statistics.layers and _is_updated(context, statistics, layer, self.kept):
            replacement = self._updated(layer)
        if mix is not None:
            mixed = mix.applied(context.channels, replacement)
            replace_layer(self.runs[1], layer, mixed, bias_of(context.channels, layer))
            replacement = mixed if mix.blocks else replacement
        if replacement is not None:
            self.replacements[layer.key] = replacement

    def _updated(self, layer: Layer) -> Replacement | None:
        """The layer as solved, with the rows of its producer where these change, or as it was decided without."""
        update = LayerUpdate(self.observed.context, self.observed.reference, layer, self.kept, self.runs)
        if layer.key in self.unsolved:
            return update.accept(self.unsolved[layer.key])
        pair = self.pairs.get(layer.key)
        replacement = update.solve(pair, None if pair is None else self.replacements.get(pair.producer.key))
        if pair is not None and update.producer is not None:
            self.replacements[pair.producer.key] = update.producer
        return replacement

    def _choose(self, layer: Layer) -> None:
        """Keep the channels that the consumer needs most, now that its inputs are known; those that are given where they are."""
        removal, observed = self.choices[layer.key], self.observed
        group = removal.group
        if group.name not in self.given:
            update = LayerUpdate(observed.context, observed.reference, layer, self.kept, self.runs)
            channels = update.kept_channels(len(removal.kept), group.removable, partial(observed.output_errors.factor, layer))
            removal = removal if channels is None else _of_channels(observed, removal, channels)
        self.kept[group.channel_ids] = False
        self.kept[group.channel_ids[removal.kept]] = True
        self.choices[layer.key] = removal


def _choices(removals: Sequence[Removal], pairs: Mapping[str, ChannelPath]) -> dict[str, Removal]:
    """By key of the consumer, the removals of `pairs` of which any channels may be chosen: each has one place there."""
    found = {}
    for removal in removals:
        group = removal.group
        consumer = next((pairs[each.key].consumer for each in group.consumers if each.key in pairs), None)
        if (
            consumer is None
            or len(group.consumers) > 1
            or not is_cheap_to_choose(consumer)
            or not np.array_equal(consumer.in_ids[0], group.channel_ids)
        ):
            continue
        if (group.merge_classes == group.merge_classes[0]).all():
            found[consumer.key] = removal
    return found


def _of_channels(observed: LayerStatistics, removal: Removal, kept: np.ndarray) -> Removal:
    """A removal of as many other channels, with what these are expected to cost by the method that is taken."""
    changed = replace(removal, kept=kept)
    return replace(changed, expected_error={**removal.expected_error, removal.method: observed.expected_error(changed)})


def _layers_to_update(
    context: RunContext,
    statistics: ReferenceStatistics,
    removals: Sequence[Removal],
    kept: np.ndarray,
    mixes: Mapping[str, OutputMix],
) -> list[Layer]:
    """In the order of the graph, those that lose inputs, mix their outputs, or read what has changed."""
    known = {**statistics.layers, **{key: mix.layer for key, mix in mixes.items()}}
    layers = sorted(known.values(), key=lambda layer: context.node_index[layer.key])
    first = next((at for at, layer in enumerate(layers) if layer.key in mixes or not kept[layer.in_ids].all()), len(layers))
    layers = [layer for layer in layers[first:] if layer.key in mixes or _is_updated(context, statistics, layer, kept)]
    changed = {layer.key for layer in layers if layer.key in mixes or not kept[layer.in_ids].all()}
    affected = _affected(context, statistics, changed) - gone_nodes(removals)
    return [layer for layer in layers if layer.key in affected]


def _compressed_run(
    context: RunContext, statistics: ReferenceStatistics, removals: Sequence[Removal], kept: np.ndarray
) -> LayerwiseRun:
    """The model before its first node, without states of removed channels, and with means over kept channels alone."""
    run = context.new_run(statistics.matched)
    remove_states(run, context.channels, kept, [layer for layer in context.channels.layers if not kept[layer.out_ids].all()])
    masked = means_over(context.channels, (removal.group for removal in removals))
    mask_means(run, mean_masks(context.channels, kept, masked))
    return run


def _is_updated(context: RunContext, statistics: ReferenceStatistics, layer: Layer, kept: np.ndarray) -> bool:
    """Whether a layer behind the first removal loses inputs or is refitted."""
    is_refitted = not context.synthetic or statistics.downstream[layer.key].is_followed
    return not kept[layer.in_ids].all() or (is_refitted and layer.is_linear and layer.key not in statistics.shared_weight_keys)


def _affected(context: RunContext, statistics: ReferenceStatistics, changed: set[str]) -> set[str]:
    """Keys of changed layers, and of those that read what depends on them, or to whose outputs that is added."""
    names = set(changed)
    for node in context.model.graph.node:
        if not names.isdisjoint(tensors_read(node)):
            names.update(node.output)
    following = statistics.downstream.items()
    return changed | {key for key, each in following if names & {statistics.layers[key].source, each.added}}
