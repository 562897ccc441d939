"""From options to a plan: how many channels of which groups stay, which ones, and what replaces the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxmerge.errors import OptionError, Reason, Refusal, refusal
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.group_selection import chosen_groups
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.reconstruct import reconstruct
from onnxmerge.pruning.weight_methods import BY_WEIGHTS, Decision, replacements


@dataclass(frozen=True)
class Plan:
    """Decided, and nothing done yet: what leaves, what replaces it (by key of the consumer), what stays and why."""

    removals: tuple[Removal, ...]
    replacements: dict[str, Replacement]
    refusals: tuple[Refusal, ...]


def selected(analysed: AnalysedModel, options: PruningOptions) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that may shrink, none of whose readers can end without inputs, and why the others may not."""
    groups, refusals = chosen_groups(analysed.channels, options)
    return [_feeding(analysed.channels, group) for group in groups], refusals


def decide(
    analysed: AnalysedModel,
    options: PruningOptions,
    layer_statistics: LayerStatistics | None,
    counts: Mapping[str, int] | None = None,
) -> Plan:
    """What to keep of every chosen group; groups that the method refuses stay whole, with the reason.

    study: what was observed of the model; only `reconstruct` and `auto` need it. counts: kept channels by name of the group, in
    place of what the options say.
    """
    groups, refusals = selected(analysed, options)
    counts = counts_of(groups, options) if counts is None else counts
    shrinking = [group for group in groups if counts[group.name] < group.size]
    whole = refusal("", Reason.ALL_KEPT)
    if options.ratio is not None:
        whole = refusal("", Reason.RATIO_TOO_SMALL, ratio=options.ratio)
    for group in [group for group in groups if counts[group.name] == group.size]:
        invalid = pre_activations(analysed.channels, group) if options.method == "merge" else None
        why = invalid if isinstance(invalid, Refusal) else whole
        refusals += [replace(why, where=name) for name in group.layer_names]
    if options.method in BY_WEIGHTS:
        method = BY_WEIGHTS[options.method]
        outcomes = [method(analysed.channels, group, counts[group.name], options) for group in shrinking]
        refused = [(group, each) for group, each in zip(shrinking, outcomes, strict=True) if isinstance(each, Refusal)]
        refusals += [replace(outcome, where=name) for group, outcome in refused for name in group.layer_names]
        decisions = [outcome for outcome in outcomes if isinstance(outcome, Decision)]
        return Plan(tuple(d.removal for d in decisions), replacements(analysed.channels, decisions), tuple(refusals))
    assert layer_statistics is not None
    removals, replaced = reconstruct(layer_statistics, shrinking, counts, options)
    return Plan(tuple(removals), replaced, tuple(refusals))


def _feeding(channels: Channels, group: ChannelGroup) -> ChannelGroup:
    """The group with the strongest unit pinned of every consumer that reads only a part of it, so that none is left empty."""
    removable = group.removable.copy()
    for link in group.consumers:
        reads = (link.positions >= 0).any(1)
        if reads.all() or (link.layer.in_ids == 0).any() or (reads & ~removable).any():
            continue
        strength = sum(np.square(each.rows()).sum(1) for each in group.producers)
        removable[np.argmax(np.where(reads, strength, -1.0))] = False
    return replace(group, removable=removable)


def kept_count(group: ChannelGroup, ratio: float) -> int:
    """max(1, round(n (1 - ratio))) in every cell, but never fewer than must stay."""
    sizes = np.bincount(group.conv_groups)
    pinned = np.bincount(group.conv_groups[~group.removable], minlength=len(sizes)).max()
    quota = max(1, round(int(sizes[0]) * (1.0 - ratio)), int(pinned))
    return quota * len(sizes)


def counts_of(groups: Sequence[ChannelGroup], options: PruningOptions) -> dict[str, int]:
    """Group name -> channels to keep, by the options' ratio and counts. OptionError where a count does not fit."""
    wished = {name: planned.kept for name, planned in options.planned.items()}
    unknown = sorted(wished.keys() - {group.name for group in groups})
    if unknown:
        raise OptionError(f"no channel group is named {unknown[0]!r}; `onnxmerge inspect` lists them")
    counts = {}
    for group in groups:
        ratio = options.ratio if options.ratio is not None else 0.0
        if group.name in wished:
            if not 1 <= wished[group.name] <= group.size:
                raise OptionError(f"cannot keep {wished[group.name]} of the {group.size} channels of {group.name!r}")
            ratio = 1.0 - wished[group.name] / group.size
        counts[group.name] = kept_count(group, ratio)
    for group in groups:
        planned = options.planned.get(group.name)
        _check_kept(group, None if planned is None else planned.channels)
    return counts


def _check_kept(group: ChannelGroup, named: Sequence[int] | None) -> None:
    """OptionError where channels that were named cannot be all that stays."""
    if named is None:
        return
    stays = np.zeros(group.size, bool)
    stays[list(named)] = True
    if not (stays | group.removable).all():
        missing = int(np.flatnonzero(~stays & ~group.removable)[0])
        why = "a layer would be left without inputs" if group.refusal is None else group.refusal.text
        raise OptionError(f"channel {missing} of {group.name!r} must stay: {why}")
    if len(set(np.bincount(group.conv_groups[stays], minlength=group.conv_groups.max() + 1).tolist())) > 1:
        raise OptionError(f"the channels of {group.name!r} that stay must be equally many in each group of its convolution")
