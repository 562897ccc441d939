"""From a budget to counts: the curves of all groups, what they cost, and the counts that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.algorithms.allocation import Cost, Curve, allocate, loss_curve, mean_cost, pareto_front, total_loss
from onnxmerge.algorithms.criteria import CRITERIA
from onnxmerge.algorithms.elimination import kept_after
from onnxmerge.errors import Refusal
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.cost_terms import COST_TERMS, bias_terms, cost_classes
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.sensitivity import Sensitivity
from onnxmerge.pruning.weight_methods import BY_WEIGHTS, select, weight_criterion

BOTH = "both"  # parameters and MACs, each as a share of what there was


@dataclass(frozen=True)
class Allocation:
    """One way to spend: kept channels by group, the share of the cost that is left, and the loss that is predicted."""

    counts: dict[str, int]
    share: float
    loss: float


@dataclass(frozen=True)
class Budget:
    """What groups may keep and what that does to the output (curves), and to the size (costs, as shares of the whole)."""

    groups: tuple[ChannelGroup, ...]
    curves: tuple[Curve, ...]
    costs: Mapping[str, Cost]

    def counts_for(self, kind: str, share: float, multiple: int = 1) -> Allocation:
        """The counts of least loss that leave at most `share` of the cost; the smallest there are where none do.

        multiple: groups that shrink keep multiples of it.
        """
        curves = rounded(self.curves, multiple)
        if share >= 1.0:
            return self._allocation(np.array([curve.counts[-1] for curve in curves]), kind)
        return self._allocation(allocate(curves, self.costs[kind], share), kind)

    def pareto_front(self, multiple: int = 1, softly: bool = False) -> list[Allocation]:
        """Ways to spend that no other beats in both size and loss, the smallest model first; multiples as in `rounded`."""
        curves = rounded(self.curves, multiple, softly)
        return [self._allocation(counts, BOTH) for counts in pareto_front(curves, self.costs[BOTH])]

    def allocation_of(self, counts: Mapping[str, int], kind: str) -> Allocation:
        """What counts decided elsewhere cost and do."""
        return self._allocation(np.array([counts[group.name] for group in self.groups]), kind)

    def _allocation(self, counts: np.ndarray, kind: str) -> Allocation:
        named = {group.name: int(count) for group, count in zip(self.groups, counts, strict=True)}
        return Allocation(named, self.costs[kind].total(counts), total_loss(self.curves, counts))


def budget_of(
    layer_statistics: LayerStatistics,
    analysed: AnalysedModel,
    groups: Sequence[ChannelGroup],
    sensitivities: Mapping[str, Sequence[Sensitivity]],
    options: PruningOptions,
) -> Budget:
    """Curves from removal orders and probes, costs from the graph."""
    channels = analysed.channels
    curves = tuple(_curve(layer_statistics, group, sensitivities[group.name], options) for group in groups)
    classes = cost_classes(channels, groups)
    kept = tuple(_of_each_class(layer_statistics, *each, options) for each in zip(groups, classes, curves, strict=True))
    sizes = [group.size for group in groups]
    costs = {}
    for kind, terms in COST_TERMS.items():
        found = terms(channels, groups, classes, analysed.shapes)
        whole = max(Cost(*found, kept).total(sizes), 1.0)
        if kind == "params" and options.method not in BY_WEIGHTS:
            found = found.plus(bias_terms(channels, groups, classes))
        costs[kind] = Cost(found.weight / whole, found.rows, found.columns, kept)
    return Budget(tuple(groups), curves, {**costs, BOTH: mean_cost(list(costs.values()))})


def _of_each_class(
    layer_statistics: LayerStatistics, group: ChannelGroup, classes: np.ndarray, curve: Curve, options: PruningOptions
) -> np.ndarray:
    """(size + 1, classes): channels of each cost class that stay, by how many of the group do (0 where the curve has none)."""
    if not classes.any():
        return np.arange(group.size + 1.0)[:, None]
    elimination = layer_statistics.elimination(group)
    solved = options.method not in BY_WEIGHTS and options.criterion not in CRITERIA
    table = np.zeros((group.size + 1, int(classes.max()) + 1))
    for count in curve.counts.tolist():
        if elimination is not None and solved:
            kept = kept_after(elimination, group.size, count)
        else:
            kept = select(layer_statistics.context.channels, group, count, weight_criterion(options))
        table[count] = np.bincount(classes[kept], minlength=table.shape[1])
    return table


def _curve(
    layer_statistics: LayerStatistics, group: ChannelGroup, sensitivities: Sequence[Sensitivity], options: PruningOptions
) -> Curve:
    """Counts are whole quotas: the same number in every cell, and never less than must stay; all where merge is not valid."""
    if options.method == "merge" and isinstance(pre_activations(layer_statistics.context.channels, group), Refusal):
        return Curve(np.array([group.size]), np.zeros(1))
    sizes = np.bincount(group.conv_groups)
    pinned = int(np.bincount(group.conv_groups[~group.removable], minlength=len(sizes)).max())
    counts = len(sizes) * np.arange(max(1, pinned), int(sizes[0]) + 1)
    elimination = layer_statistics.elimination(group)
    removed = group.size - counts
    if elimination is None:
        return Curve(counts, np.zeros(len(counts)))
    cost = np.concatenate([[0.0], elimination.cost])
    errors = cost[np.minimum(removed, len(cost) - 1)]
    loss = loss_curve(errors, cost[[group.size - each.kept for each in sensitivities]], [each.loss for each in sensitivities])
    return Curve(counts, np.maximum.accumulate(loss[::-1])[::-1])


def rounded(curves: Sequence[Curve], multiple: int, softly: bool = False) -> tuple[Curve, ...]:
    """Only multiples, and each group's own size. softly: of a smaller power of two where a group has less than two."""
    found = []
    for curve in curves:
        step, size = multiple, int(curve.counts[-1])
        while softly and step > 1 and 2 * step > size:
            step //= 2
        fits = (curve.counts % step == 0) | (curve.counts == size)
        found.append(Curve(curve.counts[fits], curve.loss[fits]))
    return tuple(found)
