"""Which channel groups may shrink: those that `scope`, `include` and `exclude` leave."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from onnxmerge.errors import OptionError, Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.importance import planned_channels


def prunable_groups(channels: Channels, options: PruningOptions) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups to remove channels from, as `selected_groups`, and why the others are left out.

    The strongest channel of each of a group's pieces must stay, by the norm of its weights, so that no layer and no tensor is
    left without channels; where a plan names the channels that stay, the strongest of these.
    """
    groups, refusals = selected_groups(channels, options)
    return [_with_a_channel_in_every_piece(group, options) for group in groups], refusals


def selected_groups(
    channels: Channels, options: PruningOptions, entered_only: bool = True
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that the options name.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    options : PruningOptions
        Of these `scope`, `include`, `exclude` and `plan`.
    entered_only : bool
        Whether groups in bodies that no input leads into are left out, unless `include` or a plan is given.

    Returns
    -------
    groups : list of ChannelGroup
        Those that are left, in topological order.
    refusals : list of Refusal
        For each layer of the others, why it is left out.

    Raises
    ------
    OptionError
        A pattern of `include` or `exclude` fits no producer of any group.
    """
    names = [producer.name for group in channels.groups for producer in group.producers]
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            what = f"no node that starts removable channels is named like {pattern!r}"
            raise OptionError(f"{what}, which is a pattern of whole names; `onnxmerge inspect MODEL` lists them")
    selected, refusals = [], []
    for group in channels.groups:
        reason = _reason_against(group, options)
        if reason is None and entered_only and not (group.is_entered or options.include or options.plan):
            reason = Reason.NOT_ENTERED
        if reason is None:
            selected.append(group)
        else:
            refusals += [refusal(name, reason, count=len(group.producers)) for name in group.layer_names]
    return selected, refusals


def _reason_against(group: ChannelGroup, options: PruningOptions) -> Reason | None:
    names = [producer.name for producer in group.producers]
    if options.scope == "chains" and len(names) > 1:
        return Reason.SCOPE
    if options.include and not _any_match(names, options.include):
        return Reason.NOT_INCLUDED
    return Reason.EXCLUDED if _any_match(names, options.exclude) else None


def _any_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _with_a_channel_in_every_piece(group: ChannelGroup, options: PruningOptions) -> ChannelGroup:
    removable = group.removable.copy()
    strength: np.ndarray | None = None
    for piece in group.pieces:
        if piece.all() or not removable[piece].all():
            continue
        if strength is None:
            strength = np.sum([np.square(producer.rows()).sum(1) for producer in group.producers], axis=0)
            planned = planned_channels(group, options)
            strength += strength.max() * np.isin(np.arange(group.size), () if planned is None else planned)
        removable[np.argmax(np.where(piece, strength, -1.0))] = False
    return replace(group, removable=removable)
