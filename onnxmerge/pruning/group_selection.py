"""The channel groups that scope, include and exclude leave."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnxmerge.errors import OptionError, Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.options import PruningOptions


def chosen_groups(channels: Channels, options: PruningOptions) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that scope, include and exclude leave, and why the others are left out. OptionError for an idle pattern."""
    names = [link.name for group in channels.groups for link in group.producers]
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(
                f"no node that starts removable channels is named like {pattern!r}; `onnxmerge inspect MODEL` lists them"
            )
    chosen, refusals = [], []
    for group in channels.groups:
        reason = _left_out(group, options)
        if reason is not None:
            refusals += [refusal(name, reason, count=len(group.producers)) for name in group.layer_names]
        else:
            chosen.append(group)
    return chosen, refusals


def _left_out(group: ChannelGroup, options: PruningOptions) -> Reason | None:
    names = [link.name for link in group.producers]
    if options.scope == "chains" and len(names) > 1:
        return Reason.SCOPE
    if options.include and not _any_match(names, options.include):
        return Reason.NOT_INCLUDED
    return Reason.EXCLUDED if _any_match(names, options.exclude) else None


def _any_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
