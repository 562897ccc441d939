"""Means over the channels of a residual stream, in a run that holds all of its channels: removed ones count as zero there."""

from collections.abc import Iterable
from copy import deepcopy

import numpy as np
from onnx import helper

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_groups import ChannelGroup, Channels


def means_over(channels: Channels, groups: Iterable[ChannelGroup]) -> list[str]:
    """Keys of the nodes that take means over the channels of these groups."""
    if not channels.means:
        return []
    own = np.concatenate([np.zeros(0, np.int64), *(group.channel_ids for group in groups)])
    sources = {
        key: node.inputs[0] for node in channels.model.graph.nodes for key in (node.outputs[0].name,) if key in channels.means
    }
    return [key for key, source in sources.items() if np.isin(channels.ids(source), own).any()]


def mean_masks(channels: Channels, kept: np.ndarray, means: Iterable[str]) -> dict[str, np.ndarray]:
    """By its name in a run that `mask_means` changed, 1 for each kept channel and 0 for others; kept: (number of ids,) bool."""
    nodes = {node.outputs[0].name: node for node in channels.model.graph.nodes}
    return {f"{key}//mask": kept[channels.ids(nodes[key].inputs[0])].astype(np.float32) for key in means}


def mask_means(run: LayerwiseRun, masks: dict[str, np.ndarray]) -> None:
    """Multiply what means read by their `mean_masks`, in a run that has not passed them yet."""
    for name, mask in masks.items():
        key = name.removesuffix("//mask")
        index = run.node_index[key]
        node = deepcopy(run.nodes[index][0])
        masked = helper.make_node("Mul", [node.input[0], name], [f"{key}//masked"])
        node.input[0] = masked.output[0]
        run.replace_node(index, [masked, node], {name: mask})
