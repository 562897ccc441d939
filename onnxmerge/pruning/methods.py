"""The methods by name, and the choice between them."""

from dataclasses import replace
from typing import Protocol

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.merge import merge
from onnxmerge.pruning.prune import prune
from onnxmerge.pruning.reconstruct import reconstruct


class Method(Protocol):
    """Decides which `count` channels of a group stay; a Refusal where the method is not valid for the group.

    statistics are None for methods that look at weights alone (`PruningOptions.uses_weights_only`).
    """

    def __call__(
        self, channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
    ) -> Removal | Refusal: ...


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
    is_shared = any(consumer.key in statistics.reference.shared_weight_keys for consumer in group.consumers)
    names = [name for name in METHODS if name != "reconstruct" or not is_shared]
    names = [asked, "prune"] if asked in names else names
    channels = statistics.context.channels
    outcomes = {name: METHODS[name](channels, group, count, options, statistics) for name in names}
    removals = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Removal)}
    errors = {name: statistics.expected_error(removal) for name, removal in removals.items()}
    chosen = removals[asked if asked in removals else min(errors, key=lambda name: errors[name])]
    return replace(chosen, expected_error=errors, note="its consumers share one weight" if is_shared else "")
