"""Method `prune`: channels are dropped and nothing replaces them. Valid for every group: the baseline."""

from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.importance import kept_channels
from onnxmerge.pruning.layer_statistics import LayerStatistics


def prune(
    channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
) -> Removal:
    """Keep the `count` channels of a group that matter most by their weights. A `Method`; statistics are not read."""
    return Removal(group, kept_channels(group, count, options), "prune")
