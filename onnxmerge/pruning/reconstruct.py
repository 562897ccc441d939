"""Method `reconstruct`: backward elimination chooses the channels, least squares solves the consumers (`solve_consumers.py`)."""

from onnxmerge.algorithms.criteria import CRITERIA
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.importance import kept_channels, planned_channels
from onnxmerge.pruning.layer_statistics import LayerStatistics


def reconstruct(
    channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
) -> Removal:
    """Keep the `count` channels of a group with which its consumers can be restored best. A `Method`.

    What replaces the others is solved afterwards for all groups together, since consumers make good what was lost before them.
    """
    if statistics is None:
        raise ValueError("`reconstruct` needs the statistics of the model's layers")
    is_ranked_elsewhere = options.criterion in CRITERIA or planned_channels(group, options) is not None
    elimination = None if is_ranked_elsewhere else statistics.elimination(group)
    return Removal(group, kept_channels(group, count, options, elimination), "reconstruct")
