"""Methods that look at nothing but weights: `prune` and `merge`. One function a method, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.algorithms.criteria import CRITERIA, keep_best
from onnxmerge.algorithms.decomposition import absorb, decompose, decompose_affine
from onnxmerge.algorithms.folded_batchnorm import multiples, recovered_moments, restored_rows
from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.merge_validity import MeanStd, PreActivations, pre_activations
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.options import PruningOptions


@dataclass(frozen=True)
class Decision:
    """What leaves a group, and with `merge` the scaling matrix Z (n, k) that its consumers absorb."""

    removal: Removal
    scaling: np.ndarray | None = None


Method = Callable[[Channels, ChannelGroup, int, PruningOptions], Decision | Refusal]


def given(group: ChannelGroup, options: PruningOptions) -> np.ndarray | None:
    """The units that a plan names, ascending."""
    planned = options.planned.get(group.name)
    return None if planned is None or planned.channels is None else np.array(sorted(planned.channels), np.int64)


def select(channels: Channels, group: ChannelGroup, count: int, criterion: str) -> np.ndarray:
    """Indices of the units that a weight criterion keeps; rows of several producers side by side."""
    rows = [link.rows() for link in group.producers]
    scores = CRITERIA[criterion](np.concatenate(rows, axis=1))
    return keep_best(scores, count, group.removable, group.conv_groups)


def prune(channels: Channels, group: ChannelGroup, count: int, options: PruningOptions) -> Decision | Refusal:
    """Drop, replace nothing."""
    kept = given(group, options)
    kept = select(channels, group, count, weight_criterion(options)) if kept is None else kept
    return Decision(Removal(group, kept, "prune"))


def merge(channels: Channels, group: ChannelGroup, count: int, options: PruningOptions) -> Decision | Refusal:
    """Neuron merging: Z from the producers' rows, absorbed into every consumer."""
    found = pre_activations(channels, group)
    if isinstance(found, Refusal):
        return found
    criterion, moments = weight_criterion(options), found.mean_std
    folded = _folded_moments(group, found)
    if folded is None:
        kept = select(channels, group, count, criterion)
    else:
        kept, moments = _select_folded(channels, group, found, count, criterion), folded
    named = given(group, options)
    kept = kept if named is None else named
    scaling = np.zeros((group.size, len(kept)))
    profiles = group.merge_classes
    for profile in np.unique(profiles):
        members = np.flatnonzero(profiles == profile)
        staying = np.flatnonzero(np.isin(members, kept))
        if not len(staying):
            continue
        rows, scale, offset = found.rows[members], found.scale[members], found.offset[members]
        if found.is_scaled or moments is not None:
            told = None if moments is None else (moments[0][members], moments[1][members])
            part = decompose_affine(rows, scale, offset, staying, options.threshold, options.cosine_weight, told)
        else:
            joined = np.concatenate([rows * scale[:, None], offset[:, None]], axis=1)
            part = decompose(joined, staying, options.threshold)
        scaling[np.ix_(members, np.searchsorted(kept, members[staying]))] = part
    return Decision(Removal(group, kept, "merge"), scaling)


def _folded_moments(group: ChannelGroup, found: PreActivations) -> MeanStd | None:
    """Estimated moments, where one convolution feeds the group and its biases look as if a BatchNormalization was folded in."""
    if found.is_scaled or len(group.producers) > 1 or group.producers[0].node.op != "Conv":
        return None
    return recovered_moments(found.rows, found.offset)


def _select_folded(channels: Channels, group: ChannelGroup, found: PreActivations, count: int, criterion: str) -> np.ndarray:
    """As `select`, on rows with the lengths that they had before folding; what is a multiple of another channel goes first."""
    joined = np.concatenate([found.rows, found.offset[:, None]], axis=1)
    origin = multiples(joined, group.merge_classes, group.removable)
    columns = [link.columns() for link in group.consumers]
    read = np.concatenate([each.swapaxes(0, 1).reshape(group.size, -1) for each in columns], axis=1)
    scores = CRITERIA[criterion](restored_rows(found.rows, read))
    scores[origin != np.arange(group.size)] = -1.0
    return keep_best(scores, count, group.removable, group.conv_groups)


def replacements(channels: Channels, decisions: Sequence[Decision]) -> dict[str, Replacement]:
    """Consumers with the scaling matrices absorbed; one that reads several groups takes them one after the other."""
    found: dict[str, Replacement] = {}
    for decision in decisions:
        group, kept = decision.removal.group, decision.removal.kept
        if decision.scaling is None:
            continue
        for link in group.consumers:
            known = found.get(link.key)
            weight = link.layer.stored_weight if known is None else known.weight
            columns = link.columns(weight)
            columns[:, kept] = absorb(columns, decision.scaling)
            found[link.key] = Replacement(link.with_columns(weight, columns))
    return found


def weight_criterion(options: PruningOptions) -> str:
    """The criterion asked for, where it looks at nothing but weights."""
    return options.criterion if options.criterion in CRITERIA else "l2-norm"


BY_WEIGHTS: dict[str, Method] = {"prune": prune, "merge": merge}
