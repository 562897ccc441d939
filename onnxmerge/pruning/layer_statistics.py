"""What the first walk tells of a model: moments of all that its consumers read, removal orders, expected errors.

Everything that is decided later (which channels go, how many of each group, by which method) is decided from one `Study`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.algorithms.elimination import Elimination, eliminate, weigh
from onnxmerge.algorithms.least_squares import mixing
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Consumer, Layer
from onnxmerge.pruning.downstream_metric import OutputErrorMetric
from onnxmerge.pruning.weight_methods import Decision
from onnxmerge.statistics.reference_run import (
    Progress,
    ReferenceStatistics,
    RunContext,
    collect_reference_statistics,
    run_context_of,
)

CONSTANT = 1e-10  # a variance below this share of the second moments is rounding


@dataclass(frozen=True)
class LayerStatistics:
    """The model, what was observed of it, and how much errors matter further on; eliminations by group, made when asked for."""

    context: RunContext
    inputs: Inputs
    reference: ReferenceStatistics
    downstream: OutputErrorMetric
    known: dict[str, Elimination | None] = field(default_factory=dict)

    def elimination(self, group: ChannelGroup) -> Elimination | None:
        """The removal order and error curve of a group, joint over its consumers; None where nothing reads it."""
        if group.name not in self.known:
            self.known[group.name] = elimination_of(self.reference, group, self.downstream)
        return self.known[group.name]


def layer_statistics_of(
    analysed: AnalysedModel,
    inputs: Inputs,
    threads: int | None,
    progress: Progress,
    known: Mapping[str, Covariance] | None = None,
) -> LayerStatistics:
    """Walk the reference once, where the moments of its consumers are not known yet."""
    context = run_context_of(analysed, inputs, threads, progress)
    statistics = collect_reference_statistics(context, known)
    return LayerStatistics(context, inputs, statistics, output_error_metric_of(context, statistics))


def expected_error(statistics: ReferenceStatistics, group: ChannelGroup, decision: Decision) -> float:
    """Mean over the consumers of E|W x - W Z x[kept] - c|^2 as a share of the variance of W x, c the best constant.

    Z is the scaling matrix of merge, the least squares over channels for reconstruct, and keeps alone for prune.
    """
    kept, shares = decision.removal.kept, []
    gone = np.setdiff1d(np.arange(group.size), kept)
    for link in group.consumers:
        covariance = _covariance(statistics, group, link)
        columns = _columns(group, link, statistics.layers[link.key])
        flat = np.moveaxis(columns, 1, 2).reshape(-1, group.size)
        reading = flat.T @ flat
        left = covariance[np.ix_(gone, gone)]
        scaling = decision.scaling
        if decision.removal.method == "reconstruct":
            scaling = mixing(covariance, np.zeros(group.size), kept)[0]
        if scaling is not None:
            made = scaling[gone]
            crossed = made @ covariance[np.ix_(kept, gone)]
            left = left - crossed - crossed.T + made @ covariance[np.ix_(kept, kept)] @ made.T
        total = max(float(np.sum(reading * covariance)), np.finfo(float).tiny)
        shares.append(float(np.sum(reading[np.ix_(gone, gone)] * left)) / total)
    return float(np.mean(shares)) if shares else 0.0


def output_error_metric_of(context: RunContext, statistics: ReferenceStatistics) -> OutputErrorMetric:
    """What errors at outputs do further on, with the variances of the first walk; readers that give constants do not count."""
    variance = {}
    for key, layer in statistics.layers.items():
        moments, total, power = statistics.covariances[key], 0.0, 0.0
        for g, weight in enumerate(statistics.downstream[key].scaled(layer.weight)):
            inside = weight.shape[1]
            channel = layer.channel_of[g * inside : (g + 1) * inside]
            own = moments.xx[np.ix_(channel, channel)]
            total += sum(float(np.sum((weight[:, :, p] @ own) * weight[:, :, p])) for p in range(weight.shape[2]))
            power += float(np.square(weight).sum((0, 2)) @ (np.diag(own) + moments.mean_x[channel] ** 2))
        if total > CONSTANT * power:
            variance[key] = total
    return OutputErrorMetric(context.channels, context.node_index, variance, statistics.downstream)


def elimination_of(
    statistics: ReferenceStatistics, group: ChannelGroup, downstream: OutputErrorMetric | None = None
) -> Elimination | None:
    """The removal order and error curve of a group, joint over its consumers; None where nothing reads it."""
    consumers = []
    for link in group.consumers:
        metric = None if downstream is None else downstream.metric(link.layer)
        columns = _columns(group, link, statistics.layers[link.key])
        weights = weigh(columns, statistics.downstream[link.key].scale, metric)
        consumers.append((_covariance(statistics, group, link), weights))
    return eliminate(consumers, group.removable, group.conv_groups) if consumers else None


def _covariance(statistics: ReferenceStatistics, group: ChannelGroup, link: Consumer) -> np.ndarray:
    """(n, n) of the units as a consumer reads them, averaged over the places where one stands several times.

    Zero for those it does not read, and between groups of a convolution.
    """
    layer, total = statistics.layers[link.key], np.zeros((group.size, group.size))
    channels = np.where(link.positions < 0, -1, layer.channel_of[link.positions])
    columns, counts = np.unique(channels.T, axis=0, return_counts=True)
    for channel, count in zip(columns, counts, strict=True):
        covariance = statistics.covariances[link.key].xx[np.ix_(channel, channel)]
        total += np.where((channel[:, None] >= 0) & (channel >= 0), covariance, 0.0) * (count / counts.sum())
    places = link.positions.max(1)
    block = np.where(places < 0, -1 - np.arange(group.size), places // layer.weight.shape[2])
    return np.where((block[:, None] == block) & (places >= 0), total, 0.0)


def _columns(group: ChannelGroup, link: Consumer, layer: Layer) -> np.ndarray:
    weight = layer.stored(layer.weight)
    return link.columns(weight)
