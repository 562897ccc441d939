"""What each channel group saves of a model: parameters, MACs and predicted time.

A layer between two groups costs in proportion to the channels of both, so that what it saves has to be shared. Each group gets
the mean of what it saves when it shrinks first, with all others whole, and when it shrinks last, with all others shrunk already
(the Shapley value of costs that are quadratic in the counts). The savings of all groups add up to that of the model.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from onnxmerge.algorithms.bilinear_cost import Cost, WeightedCost
from onnxmerge.execution.processor import channel_block
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, inner_groups
from onnxmerge.graph.cost_terms import cost_classes, mac_terms, parameter_terms, time_cost
from onnxmerge.graph.tensor_facts import Shapes


class Saving(NamedTuple):
    """What a group saves, as shares of the whole model."""

    parameters: float
    macs: float
    time: float


def savings_of(channels: Channels, shapes: Shapes, kept: Mapping[str, np.ndarray]) -> dict[str, Saving]:
    """What groups save.

    Parameters
    ----------
    channels : Channels
        The analysed model.
    shapes : Mapping[str, tuple of int]
        Concrete shape of every tensor by name.
    kept : Mapping[str, ndarray of int]
        Indices of the channels that stay, by name of the group; all other groups stay whole.

    Returns
    -------
    dict of str to Saving
        By name of the group. The time is that of one input in a call on the CPU.
    """
    groups = [group for group in channels.groups if group.name in kept]
    if not groups:
        return {}
    classes, sizes = cost_classes(channels, groups), [group.size for group in groups]
    counts = [len(kept[group.name]) for group in groups]
    tables = tuple(_by_class(own, kept[group.name]) for group, own in zip(groups, classes, strict=True))
    inner = inner_groups(groups)
    parameters, macs = (
        Cost(*terms(channels, groups, classes, shapes), tables, inner=inner) for terms in (parameter_terms, mac_terms)
    )
    time = time_cost(channels, groups, classes, shapes, tables, channel_block())
    shares = [_shares(cost, sizes, counts) for cost in (parameters, macs, time)]
    return {group.name: Saving(*each) for group, each in zip(groups, zip(*shares, strict=True), strict=True)}


def least_kept(group: ChannelGroup) -> np.ndarray:
    """Indices of the channels that stay where as many go as may: those that must stay, and one in each group of a convolution.

    None of a branch.
    """
    if group.branch is not None:
        return np.zeros(0, np.int64)
    _, firsts = np.unique(group.conv_groups, return_index=True)
    must_stay = np.flatnonzero(~group.removable)
    missing = ~np.isin(group.conv_groups[firsts], group.conv_groups[must_stay])
    return np.sort(np.concatenate([must_stay, firsts[missing]]))


def _by_class(classes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(size + 1, classes): channels of each class with all channels of a group, and with those that it keeps; zeros elsewhere."""
    table = np.zeros((len(classes) + 1, int(classes.max()) + 1))
    table[len(kept)] = np.bincount(classes[kept], minlength=table.shape[1])
    table[-1] = np.bincount(classes)
    return table


def _shares(cost: Cost | WeightedCost, sizes: list[int], counts: list[int]) -> list[float]:
    """What each group saves, as a share of what all cost with `sizes`, where they keep `counts`."""
    whole, left = cost.total(sizes), cost.total(counts)
    saved = []
    for index, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        alone, last = list(sizes), list(counts)
        alone[index], last[index] = count, size
        saved.append(0.5 * (whole - cost.total(alone) + cost.total(last) - left))
    scale = (whole - left) / sum(saved) if sum(saved) else 0.0  # time is filled up to blocks, so that its sum is not exact
    return [scale * each / whole if whole else 0.0 for each in saved]
