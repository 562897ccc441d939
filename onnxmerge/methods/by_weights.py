"""Methods that look at nothing but weights: `prune` and `merge`. One function a method, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.channels import ChannelGroup, Channels
from onnxmerge.graph.paths import neurons
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.graph.weights import consumer_columns, producer_rows, put_columns, weight_of
from onnxmerge.merging.criteria import CRITERIA, keep_best
from onnxmerge.merging.decomposition import absorb, decompose, decompose_affine
from onnxmerge.options import Options
from onnxmerge.results import Refusal


@dataclass(frozen=True)
class Decision:
    """What leaves a group, and with `merge` the scaling matrix Z (n, k) that its consumers absorb."""

    removal: Removal
    scaling: np.ndarray | None = None


Method = Callable[[Channels, ChannelGroup, int, Options], Decision | Refusal]


def select(channels: Channels, group: ChannelGroup, count: int, criterion: str) -> np.ndarray:
    """Indices of the units that a weight criterion keeps; rows of several producers side by side."""
    rows = [producer_rows(channels.flow, group, link) for link in group.producers]
    scores = CRITERIA[criterion](np.concatenate(rows, axis=1))
    return keep_best(scores, count, group.removable, group.cells)


def prune(channels: Channels, group: ChannelGroup, count: int, options: Options) -> Decision | Refusal:
    """Drop, replace nothing."""
    return Decision(Removal(group, select(channels, group, count, _weight_criterion(options)), "prune"))


def merge(channels: Channels, group: ChannelGroup, count: int, options: Options) -> Decision | Refusal:
    """Neuron merging: Z from the producers' rows, absorbed into every consumer."""
    found = neurons(channels, group)
    if isinstance(found, Refusal):
        return found
    kept = select(channels, group, count, _weight_criterion(options))
    scaling = np.zeros((group.size, len(kept)))
    profiles = group.profiles
    for profile in np.unique(profiles):
        members = np.flatnonzero(profiles == profile)
        staying = np.flatnonzero(np.isin(members, kept))
        if not len(staying):
            continue
        rows, scale, offset = found.rows[members], found.scale[members], found.offset[members]
        if found.normalised:
            part = decompose_affine(rows, scale, offset, staying, options.threshold, options.cosine_weight)
        else:
            joined = np.concatenate([rows * scale[:, None], offset[:, None]], axis=1)
            part = decompose(joined, staying, options.threshold)
        scaling[np.ix_(members, np.searchsorted(kept, members[part.kept]))] = part.scaling
    return Decision(Removal(group, kept, "merge"), scaling)


def replacements(channels: Channels, decisions: Sequence[Decision]) -> dict[str, Replacement]:
    """Consumers with the scaling matrices absorbed; one that reads several groups takes them one after the other."""
    found: dict[str, Replacement] = {}
    for decision in decisions:
        group, kept = decision.removal.group, decision.removal.kept
        if decision.scaling is None:
            continue
        for link in group.consumers:
            known = found.get(link.key)
            weight = weight_of(channels.flow, link.weighted) if known is None else known.weight
            columns = consumer_columns(group, link, weight)
            columns[:, kept] = absorb(columns, decision.scaling)
            found[link.key] = Replacement(put_columns(link, weight, columns))
    return found


def _weight_criterion(options: Options) -> str:
    return "l2-norm" if options.criterion == "auto" else options.criterion


BY_WEIGHTS: dict[str, Method] = {"prune": prune, "merge": merge}
