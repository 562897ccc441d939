"""Method `reconstruct`: backward elimination, then least squares consumer by consumer, on second moments of real runs.

The study has taken the moments of every consumer's input in the reference, from which all groups are decided; a second walk
runs reference and compressed prefix side by side, so that every consumer repairs what was lost before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxmerge.algorithms.criteria import CRITERIA
from onnxmerge.algorithms.elimination import kept_after
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.layer_statistics import LayerStatistics, expected_error
from onnxmerge.pruning.solve_consumers import solve_consumers
from onnxmerge.pruning.weight_methods import Decision, merge, prune, replacements, select


def reconstruct(
    layer_statistics: LayerStatistics, groups: Sequence[ChannelGroup], counts: Mapping[str, int], options: PruningOptions
) -> tuple[list[Removal], dict[str, Replacement]]:
    """Decide all groups from the study, then solve all consumers.

    With `method` auto, a group whose expected error is lower with merge or prune gets that instead.
    """
    context, statistics = layer_statistics.context, layer_statistics.reference
    decisions = [decision_of(layer_statistics, group, counts[group.name], options) for group in groups]
    by_weights = replacements(context.channels, [decision for decision in decisions if decision.removal.method != "reconstruct"])
    removals = [decision.removal for decision in decisions]
    solved = {link.key for removal in removals if removal.method == "reconstruct" for link in removal.group.consumers}
    fixed = {link.key for removal in removals for link in removal.group.consumers} - solved
    return removals, solve_consumers(context, statistics, removals, {key: by_weights.get(key) for key in fixed})


def decision_of(layer_statistics: LayerStatistics, group: ChannelGroup, count: int, options: PruningOptions) -> Decision:
    """The method with the lowest expected error, or what `method` asks for; weights that several nodes share stay shared."""
    channels, statistics = layer_statistics.context.channels, layer_statistics.reference
    candidates = [prune(channels, group, count, options), merge(channels, group, count, options)]
    by_weights = [candidate for candidate in candidates if isinstance(candidate, Decision)]
    expected = {each.removal.method: expected_error(statistics, group, each) for each in by_weights}
    least = min(by_weights, key=lambda each: expected[each.removal.method])
    if any(statistics.is_shared(link.key) for link in group.consumers):
        return replace(least, removal=replace(least.removal, expected_error=expected, note="its readers share one weight"))
    elimination = layer_statistics.elimination(group)
    kept = least.removal.kept if elimination is None else kept_after(elimination, group.size, count)
    planned = options.planned.get(group.name)
    if planned is not None and planned.channels is not None:
        kept = least.removal.kept
    elif options.criterion in CRITERIA:
        kept = select(channels, group, count, options.criterion)
    ours = Decision(Removal(group, kept, "reconstruct"))
    expected["reconstruct"] = expected_error(statistics, group, ours)
    chosen = ours if options.method == "reconstruct" or expected["reconstruct"] <= expected[least.removal.method] else least
    if options.method == "auto" and planned is not None and planned.method is not None:
        chosen = next((each for each in by_weights if each.removal.method == planned.method), ours)
    return replace(chosen, removal=replace(chosen.removal, expected_error=expected))
