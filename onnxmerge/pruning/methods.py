"""The methods `prune` and `reconstruct`, all methods by name, and the choice between them; `merge` has a module of its own."""

from collections.abc import Callable
from dataclasses import replace

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.importance import are_given, kept_channels
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.merge import merge

Method = Callable[[Channels, ChannelGroup, int, PruningOptions, LayerStatistics | None], Removal | Refusal]
"""Decides which channels of a group stay, of which the number is given; a Refusal where the method is not valid for the group.
The statistics are None for methods that look at weights alone (`PruningOptions.uses_weights_only`)."""


def prune(
    channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
) -> Removal:
    """Keep the `count` channels of a group that matter most by their weights. Valid for every group: the baseline."""
    return Removal(group, kept_channels(group, count, options), "prune")


def reconstruct(
    channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
) -> Removal:
    """Keep the `count` channels of a group with which its consumers can be restored best. A `Method`.

    What replaces the others is solved afterwards for all groups together (`solve_consumers.py`), since consumers make good what
    was lost before them.
    """
    if statistics is None:
        raise ValueError("`reconstruct` needs the statistics of the model's layers")
    elimination = None if are_given(group, options) else statistics.elimination(group)
    return Removal(group, kept_channels(group, count, options, elimination), "reconstruct")


METHODS: dict[str, Method] = {"reconstruct": reconstruct, "prune": prune, "merge": merge}
"""What `method` may name, besides "auto"; of equal expected errors "auto" takes the first one."""


def best_removal(statistics: LayerStatistics, group: ChannelGroup, count: int, options: PruningOptions) -> Removal:
    """What is removed from a group by the method asked for, or for "auto" by that with the lowest expected error.

    Parameters
    ----------
    statistics : LayerStatistics
        Covariances of what the group's consumers read.
    group : ChannelGroup
        The channel group.
    count : int
        How many of its channels stay.
    options : PruningOptions
        Of these `method`, `plan`, `criterion`, and those of merging.

    Returns
    -------
    Removal
        With the expected errors of the methods that were compared, and that of `prune`. Consumers that share a weight are not
        solved, since each would get a weight of its own.
    """
    planned = options.planned.get(group.name)
    asked = planned.method if options.method == "auto" and planned is not None and planned.method else options.method
    keys = [consumer.key for consumer in group.consumers]
    too_wide = next((statistics.reference.too_wide[key] for key in keys if key in statistics.reference.too_wide), "")
    if too_wide:
        return Removal(group, kept_channels(group, count, options, statistics.elimination(group)), "prune", note=too_wide)
    is_shared = any(key in statistics.reference.shared_weight_keys for key in keys)
    is_repaired = not is_shared and statistics.can_repair(group)
    names = [name for name in METHODS if name != "reconstruct" or is_repaired]
    names = [asked, "prune"] if asked in names else names
    names = [name for name in names if count or name != "merge"]
    channels = statistics.context.channels
    outcomes = {name: METHODS[name](channels, group, count, options, statistics) for name in names}
    if asked in ("auto", "reconstruct") and not is_shared and not is_repaired:  # what is lost ranks them still
        outcomes["prune"] = replace(reconstruct(channels, group, count, options, statistics), method="prune")
    removals = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Removal)}
    errors = {name: statistics.expected_error(removal) for name, removal in removals.items()}
    chosen = removals[asked if asked in removals else min(errors, key=lambda name: errors[name])]
    return replace(chosen, expected_error=errors, note="its consumers share one weight" if is_shared else "")
