"""A budget of parameters or MACs allocated over groups: their loss curves, what they cost, and the kept counts that fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxmerge.algorithms.allocation import Curve, allocate, loss_curve, pareto_front, total_loss
from onnxmerge.algorithms.bilinear_cost import Cost, WeightedCost, summed
from onnxmerge.algorithms.criteria import CRITERIA
from onnxmerge.errors import Refusal
from onnxmerge.execution.processor import channel_block
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup, inner_groups
from onnxmerge.graph.cost_terms import COST_TERMS, bias_terms, cost_classes, join_cost, time_cost
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.options import DEFAULT_FIDELITY, PruningOptions
from onnxmerge.pruning.importance import kept_channels
from onnxmerge.pruning.kept_counts import fast_multiple, smallest_count
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.sensitivity import Sensitivity

SIZE_WEIGHT = 0.05
"""Weights of parameters and of MACs beside predicted time where a latency is allocated: channels that save no time still make the
model smaller. At 0.62 of its time a MobileNetV2 kept a fidelity of 0.86 without these weights and of 0.85 with them, at 2 % fewer
parameters; with a third each it kept 0.76, and with MACs alone 0.77. An EfficientNet kept 0.78, 0.78, 0.75 and 0.70."""
TIME_WORTH = 4.0
"""How many hundredths of loss a hundredth of predicted time is worth where parameters or MACs are allocated in widths that run
fast. Allocations of time alone pay 6 to 9 (ResNet-56, VGG-16, MobileNetV2, EfficientNet, DenseNet): half of it."""
FREE_LOSS = 1.0 - DEFAULT_FIDELITY
"""A predicted loss up to which allocations count as equally close, so that the fastest is taken."""
MOST_LOSS = 2.0
"""Multiple of the least loss that no saved time is worth; a choice."""
TIME_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Weights of predicted time beside the allocated quantity that are tried for it."""
CLOSE_TO_BUDGET = 0.98
"""Share of what the allocation of least loss spends that the others must spend too: less is not what was asked for."""


@dataclass(frozen=True)
class Allocation:
    """One way to spend a budget.

    Attributes
    ----------
    counts : dict[str, int]
        Kept channels by name of the group.
    share : float
        What is left of the quantity that was allocated, 0 to 1.
    loss : float
        The predicted loss, 1 - fidelity, summed over groups.
    """

    counts: dict[str, int]
    share: float
    loss: float


@dataclass(frozen=True)
class Budget:
    """What groups may keep, and what follows from it.

    Attributes
    ----------
    groups : tuple of ChannelGroup
        The groups that may shrink.
    curves : tuple of Curve
        For each group its possible kept counts and the predicted loss of each.
    costs : Mapping[str, Cost]
        By "params", "macs" and "latency" (predicted time and a little of the others), the share of the whole model that kept
        counts leave.
    """

    groups: tuple[ChannelGroup, ...]
    curves: tuple[Curve, ...]
    costs: Mapping[str, Cost | WeightedCost]

    @property
    def steps(self) -> list[int]:
        """`fast_multiple` of each group."""
        return [fast_multiple(group.size, group.conv_group_count, group.positions) for group in self.groups]

    def counts_for(self, quantity: str, share: float, multiple: int | None = 1) -> Allocation:
        """The kept counts of least predicted loss within a budget.

        Parameters
        ----------
        quantity : str
            A key of `costs`.
        share : float
            How much of it may be left; where no counts leave as little, the smallest counts are returned.
        multiple : int or None
            Groups that shrink keep multiples of it; None for `fast_multiple` of each and, of the allocations that fit the budget,
            one that loses a little more (`TIME_WORTH`) where it is predicted to be faster.
        """
        curves = curves_of_multiples(self.curves, multiple, self.steps)
        if share >= 1.0:
            return self._allocation(np.array([curve.counts[-1] for curve in curves]), quantity)
        if multiple is None and quantity != "latency":
            return self._allocation(self._fast_counts(curves, quantity, share), quantity)
        return self._allocation(allocate(curves, self.costs[quantity], share), quantity)

    def _fast_counts(self, curves: Sequence[Curve], quantity: str, share: float) -> np.ndarray:
        """Counts within a share of the quantity that minimise loss * predicted time ** `TIME_WORTH`, see `FREE_LOSS`."""
        cost, time = self.costs[quantity], self.costs["latency"]
        plain = allocate(curves, cost, share)
        tried = [plain, *(allocate(curves, cost, share, spent) for spent in self._mixed[quantity])]
        tried = [counts for counts in tried if cost.total(counts) >= CLOSE_TO_BUDGET * cost.total(plain)]
        rated = [(max(total_loss(curves, counts), FREE_LOSS), counts) for counts in tried]
        most = MOST_LOSS * rated[0][0]
        return min((each for each in rated if each[0] <= most), key=lambda each: each[0] * time.total(each[1]) ** TIME_WORTH)[1]

    def pareto_front(self, quantity: str, multiple: int | None = 1) -> list[Allocation]:
        """Allocations that no other found beats in both cost and loss, the least cost first; see `counts_for`.

        Those that lose least for what they save of another quantity are among them: predicted time falls in blocks of channels,
        and between two blocks the model can still become smaller.
        """
        curves = curves_of_multiples(self.curves, multiple, self.steps)
        found = [self._allocation(counts, quantity) for cost in self.costs.values() for counts in pareto_front(curves, cost)]
        front: list[Allocation] = []
        for each in sorted(found, key=lambda one: (one.share, one.loss)):
            if not front or each.loss < front[-1].loss:
                front.append(each)
        return front

    @cached_property
    def _mixed(self) -> dict[str, list[WeightedCost]]:
        """Each cost mixed with predicted time, by `TIME_WEIGHTS`."""
        time = self.costs["latency"]
        weights = [(1.0 - weight, weight) for weight in TIME_WEIGHTS]
        return {name: [summed(((own, cost), (other, time))) for own, other in weights] for name, cost in self.costs.items()}

    def _allocation(self, counts: np.ndarray, quantity: str) -> Allocation:
        counts = counts.copy()
        for outer, inner in inner_groups(self.groups):
            if counts[outer] == 0:  # nothing is decided about what goes anyway
                counts[list(inner)] = [self.groups[each].size for each in inner]
        by_name = {group.name: int(count) for group, count in zip(self.groups, counts, strict=True)}
        return Allocation(by_name, self.costs[quantity].total(counts), total_loss(self.curves, counts))


def budget_of(
    statistics: LayerStatistics,
    analysed: AnalysedModel,
    groups: Sequence[ChannelGroup],
    sensitivities: Mapping[str, Sequence[Sensitivity]],
    options: PruningOptions,
    repeats: float = 1.0,
) -> Budget:
    """Loss curves from error curves and sensitivities, costs from the graph.

    Parameters
    ----------
    statistics : LayerStatistics
        Error curves of the groups.
    analysed : AnalysedModel
        The model.
    groups : Sequence[ChannelGroup]
        The groups that may shrink.
    sensitivities : Mapping[str, Sequence[Sensitivity]]
        Of each group, by its name.
    options : PruningOptions
        How channels are chosen and what replaces them.
    repeats : float
        The batch that is timed, as a multiple of the one that the model was analysed with.
    """
    channels, sizes = analysed.channels, [group.size for group in groups]
    curves = tuple(_loss_curve(statistics, group, sensitivities[group.name], options) for group in groups)
    classes = cost_classes(channels, groups)
    kept = tuple(_kept_by_class(statistics, *each, options) for each in zip(groups, classes, curves, strict=True))
    costs: dict[str, Cost | WeightedCost] = {}
    for quantity, terms_of in COST_TERMS.items():
        terms = terms_of(channels, groups, classes, analysed.shapes)
        whole = max(Cost(*terms, kept).total(sizes), 1.0)
        if quantity == "params" and not options.uses_weights_only:
            terms = terms.plus(bias_terms(channels, groups, classes))
        cost = Cost(terms.weight / whole, terms.rows, terms.columns, kept, inner=inner_groups(groups))
        costs[quantity] = summed(((1.0, cost), (1.0 / whole, join_cost(channels, groups, classes, quantity, kept))))
    time = time_cost(channels, groups, classes, analysed.shapes, kept, channel_block(), repeats)
    whole = time.total(sizes)
    latency = summed((((1.0 - 2.0 * SIZE_WEIGHT) / whole, time), *((SIZE_WEIGHT, size) for size in costs.values())))
    return Budget(tuple(groups), curves, {**costs, "latency": latency})


def _kept_by_class(
    statistics: LayerStatistics, group: ChannelGroup, classes: np.ndarray, curve: Curve, options: PruningOptions
) -> np.ndarray:
    """(size + 1, classes): kept channels of each cost class, by kept channels of the group; zero at counts not on the curve."""
    if not classes.any():
        return np.arange(group.size + 1.0)[:, None]
    elimination = None if options.uses_weights_only or options.criterion in CRITERIA else statistics.elimination(group)
    table = np.zeros((group.size + 1, int(classes.max()) + 1))
    for count in curve.counts.tolist():
        kept = kept_channels(group, count, options, elimination)
        table[count] = np.bincount(classes[kept], minlength=table.shape[1])
    return table


def _loss_curve(
    statistics: LayerStatistics, group: ChannelGroup, sensitivities: Sequence[Sensitivity], options: PruningOptions
) -> Curve:
    """The counts that a group may keep, equally many in each group of a grouped convolution; all where merging is not valid."""
    if options.method == "merge" and isinstance(pre_activations(statistics.context.channels, group), Refusal):
        return Curve(np.array([group.size]), np.zeros(1))
    step = group.conv_group_count
    counts = np.arange(smallest_count(group), group.size + 1, step)
    elimination = statistics.elimination(group)
    if elimination is None:
        return Curve(counts, np.zeros(len(counts)))
    error = np.concatenate([[0.0], elimination.cost])
    errors = error[np.minimum(group.size - counts, len(error) - 1)]
    measured = [(error[group.size - each.kept], each.loss) for each in sensitivities if each.kept]
    loss = loss_curve(errors, [known for known, _ in measured], [lost for _, lost in measured])
    emptied = next((each.loss for each in sensitivities if each.kept == 0), None)
    if emptied is not None:
        counts, loss = np.append(0, counts), np.append(emptied, np.minimum(loss, emptied))
    return Curve(counts, np.maximum.accumulate(loss[::-1])[::-1])


def curves_of_multiples(curves: Sequence[Curve], multiple: int | None, steps: Sequence[int] | None = None) -> tuple[Curve, ...]:
    """The curves at multiples of a number alone, and at each group's size.

    Parameters
    ----------
    curves : Sequence[Curve]
        The loss curve of each group.
    multiple : int or None
        The number; None for `steps`.
    steps : Sequence[int] or None
        A number for each group; None for `fast_multiple` of its size.

    Returns
    -------
    tuple[Curve, ...]

    Examples
    --------
    >>> curve = Curve(np.arange(1, 13), np.linspace(1.0, 0.0, 12))
    >>> curves_of_multiples([curve], 8)[0].counts.tolist()
    [8, 12]
    """
    restricted = []
    sizes = [int(curve.counts[-1]) for curve in curves]
    for curve, size, step in zip(curves, sizes, steps or map(fast_multiple, sizes), strict=True):
        chosen = (curve.counts % (multiple or step) == 0) | (curve.counts == size)
        restricted.append(Curve(curve.counts[chosen], curve.loss[chosen]))
    return tuple(restricted)
