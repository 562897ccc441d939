"""How many channels each group keeps, from `ratio` or `plan`."""

import math
from collections.abc import Sequence

import numpy as np

from onnxmerge.errors import OptionError
from onnxmerge.execution.processor import SMALLEST_BLOCK
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.options import PlannedGroup, PruningOptions

HARDWARE_MULTIPLE = SMALLEST_BLOCK
"""Channels that most hardware computes at once: ONNX Runtime's blocks on a CPU are of 8 or 16 channels, and tensor cores need
multiples of 8."""


def fast_multiple(size: int, conv_groups: int = 1, positions: int = 1) -> int:
    """The number of which a group keeps multiples, so that convolutions run fast: `HARDWARE_MULTIPLE`, less in small groups.

    Of a group that holds it less than twice it is half of it, a quarter ..., the first that fits twice; conv_groups: how many
    groups of a convolution must keep equally many channels; positions: that each channel has at least (a whole head: its width).
    """
    multiple = max(1, HARDWARE_MULTIPLE // positions)
    while multiple > 1 and 2 * math.lcm(multiple, conv_groups) > size:
        multiple //= 2
    return multiple


def smallest_count(group: ChannelGroup) -> int:
    """The fewest channels that a group can keep: those that must stay, at least one, equally many in each convolution group.

    Where a group has a branch, it can keep none at all.
    """
    sizes = np.bincount(group.conv_groups)
    pinned = np.bincount(group.conv_groups[~group.removable], minlength=len(sizes))
    return max(1, int(pinned.max())) * len(sizes)


def kept_count(group: ChannelGroup, ratio: float) -> int:
    """How many of n channels stay when the share `ratio` is removed.

    max(1, round(n (1 - ratio))) in each group of a grouped convolution, and never fewer than `smallest_count`.
    """
    sizes = np.bincount(group.conv_groups)
    return max(round(int(sizes[0]) * (1.0 - ratio)) * len(sizes), smallest_count(group))


def kept_counts(groups: Sequence[ChannelGroup], options: PruningOptions) -> dict[str, int]:
    """How many channels every group keeps by `plan`, else by `ratio`, else all.

    Parameters
    ----------
    groups : Sequence[ChannelGroup]
        The groups that may shrink.
    options : PruningOptions
        Of these `plan` and `ratio`.

    Returns
    -------
    dict[str, int]
        Name of the group -> number of channels, rounded as in `kept_count`.

    Raises
    ------
    OptionError
        The plan names a group that is not among these, or channels or a count that the group cannot keep.
    """
    unknown = sorted(options.planned.keys() - {group.name for group in groups})
    if unknown:
        raise OptionError(f"no channel group is named {unknown[0]!r}; `onnxmerge inspect` lists them")
    for group in groups:
        if group.name in options.planned:
            _check_planned(group, options.planned[group.name])
    return {
        group.name: options.planned[group.name].kept if group.name in options.planned else kept_count(group, options.ratio or 0.0)
        for group in groups
    }


def _check_planned(group: ChannelGroup, planned: PlannedGroup) -> None:
    """OptionError where a group cannot keep what is planned."""
    least, step = smallest_count(group), group.conv_group_count
    if planned.kept == 0 and group.branch is not None:
        return
    if not least <= planned.kept <= group.size or planned.kept % step:
        equal = f" and a multiple of {step}, equally many in each group of its convolution" if step > 1 else ""
        needed = f"needed is a number from {least} to {group.size}{equal}"
        raise OptionError(f"{group.name!r} cannot keep {planned.kept} of its {group.size} channels: {needed}")
    if planned.kept_channels is not None:
        _check_channels(group, planned.kept_channels)


def _check_channels(group: ChannelGroup, channels: Sequence[int]) -> None:
    """OptionError where these channels cannot be the ones that are kept."""
    if channels and channels[-1] >= group.size:
        raise OptionError(f"{group.name!r} has channels 0 to {group.size - 1}, and none {channels[-1]}")
    kept = np.zeros(group.size, bool)
    kept[list(channels)] = True
    missing = np.flatnonzero(~kept & ~group.removable)
    if len(missing):
        why = "a layer or a tensor would be left without channels" if group.refusal is None else group.refusal.text
        raise OptionError(f"channel {missing[0]} of {group.name!r} must stay: {why}")
    if len(np.unique(np.bincount(group.conv_groups[kept], minlength=group.conv_group_count))) > 1:
        raise OptionError(
            f"the channels of {group.name!r} that stay must be equally many in each group of its convolution, or head"
        )
