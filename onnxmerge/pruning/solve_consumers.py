"""The least squares of `reconstruct`, layer by layer in topological order.

Reference and compressed model are run side by side. At every consumer the inputs come from the compressed model, as far as it has
been solved, and the targets from the reference, so that every consumer makes good what was lost before it. On real inputs, where
one layer alone writes what one convolution reads, its channels are chosen once more there, by what this now has to make good.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
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
from onnxmerge.pruning.producer_update import updated_pairs
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
    replacements: dict[str, Replacement] = {}
    pairs = updated_pairs(context, statistics, removals, {*unsolved, *mixes})
    choices = {} if context.synthetic else _choices(removals, pairs)
    for removal in choices.values():
        kept[removal.group.channel_ids] = True  # they all count until they are chosen, also where a plan says which will be
    for key, path in pairs.items():
        for name in (path.producer.source, *path.gates):
            runs[1].hold(name, context.node_index[key])
    for number, layer in enumerate(layers):
        index = context.node_index[layer.key]
        runs[0].run_until(index + 1, keep=layer.key)
        runs[1].run_until(index)
        if layer.key in choices:
            choices[layer.key] = _chosen(observed, choices[layer.key], layer, kept, runs, given)
        replacement, mix = None, mixes.get(layer.key)
        if layer.key in statistics.layers and _is_updated(context, statistics, layer, kept):
            update = LayerUpdate(context, statistics, layer, kept, runs)
            pair = pairs.get(layer.key) if context.updates_producers else None
            before = None if pair is None else replacements.get(pair.producer.key)
            replacement = update.accept(unsolved[layer.key]) if layer.key in unsolved else update.solve(pair, before)
            if pair is not None and update.producer is not None:
                replacements[pair.producer.key] = update.producer
        if mix is not None:
            mixed = mix.applied(context.channels, replacement)
            replace_layer(runs[1], layer, mixed, bias_of(context.channels, layer))
            replacement = mixed if mix.blocks else replacement
        if replacement is not None:
            replacements[layer.key] = replacement
        context.progress("reconstruction", (number + 1) / len(layers))
    chosen = {removal.group.name: removal for removal in choices.values()}
    return [chosen.get(removal.group.name, removal) for removal in removals], replacements


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


def _chosen(
    observed: LayerStatistics, removal: Removal, layer: Layer, kept: np.ndarray, runs: Runs, given: Collection[str]
) -> Removal:
    """The removal with the channels that the consumer needs most, now that its inputs are known; `kept` is changed so."""
    group = removal.group
    if group.name not in given:
        update = LayerUpdate(observed.context, observed.reference, layer, kept, runs)
        metric = partial(observed.output_errors.factor, layer)
        channels = update.kept_channels(len(removal.kept), group.removable, metric)
        removal = removal if channels is None else replace(removal, kept=channels)
    kept[group.channel_ids] = False
    kept[group.channel_ids[removal.kept]] = True
    return removal


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
