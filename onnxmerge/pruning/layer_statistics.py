"""What the first walk tells of a model: moments of all that its consumers read, removal orders, expected errors.

Everything that is decided later (which channels go, how many of each group, by which method) is decided from one `Study`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.algorithms.elimination import Elimination, eliminate, weigh
from onnxmerge.algorithms.least_squares import mixing
from onnxmerge.algorithms.moments import Centred
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.analysed_model import Understanding
from onnxmerge.graph.channel_groups import ChannelGroup, Link
from onnxmerge.graph.downstream import scaled
from onnxmerge.graph.readers import Reader
from onnxmerge.graph.weights import consumer_columns, stored
from onnxmerge.options import Options
from onnxmerge.pruning.downstream_metric import DownstreamMetric
from onnxmerge.pruning.weight_methods import Decision
from onnxmerge.statistics.reference_run import Engine, Progress, Statistics, engine_of, observe_reference

CONSTANT = 1e-10  # a variance below this share of the second moments is rounding


@dataclass(frozen=True)
class Study:
    """The model, what was observed of it, and how much errors matter further on; eliminations by group, made when asked for."""

    engine: Engine
    inputs: Inputs
    statistics: Statistics
    downstream: DownstreamMetric
    known: dict[str, Elimination | None] = field(default_factory=dict)

    def elimination(self, group: ChannelGroup) -> Elimination | None:
        """The removal order and error curve of a group, joint over its consumers; None where nothing reads it."""
        if group.name not in self.known:
            self.known[group.name] = elimination_of(self.statistics, group, self.downstream)
        return self.known[group.name]


def study_of(
    understood: Understanding,
    inputs: Inputs,
    options: Options,
    progress: Progress,
    known: Mapping[str, Centred] | None = None,
) -> Study:
    """Walk the reference once, where the moments of its consumers are not known yet."""
    engine = engine_of(understood, inputs, options, progress)
    statistics = observe_reference(engine, known)
    return Study(engine, inputs, statistics, downstream_metric_of(engine, statistics))


def expected_error(statistics: Statistics, group: ChannelGroup, decision: Decision) -> float:
    """Mean over the consumers of E|W x - W Z x[kept] - c|^2 as a share of the variance of W x, c the best constant.

    Z is the scaling matrix of merge, the least squares over channels for reconstruct, and keeps alone for prune.
    """
    kept, shares = decision.removal.kept, []
    gone = np.setdiff1d(np.arange(group.size), kept)
    for link in group.consumers:
        covariance = _covariance(statistics, group, link)
        columns = _columns(group, link, statistics.readers[link.key])
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


def downstream_metric_of(engine: Engine, statistics: Statistics) -> DownstreamMetric:
    """What errors at outputs do further on, with the variances of the first walk; readers that give constants do not count."""
    variance = {}
    for key, reader in statistics.readers.items():
        moments, total, power = statistics.moments[key], 0.0, 0.0
        for g, weight in enumerate(scaled(reader.weight, statistics.outlooks[key])):
            inside = weight.shape[1]
            channel = reader.channel_of[g * inside : (g + 1) * inside]
            own = moments.xx[np.ix_(channel, channel)]
            total += sum(float(np.sum((weight[:, :, p] @ own) * weight[:, :, p])) for p in range(weight.shape[2]))
            power += float(np.square(weight).sum((0, 2)) @ (np.diag(own) + moments.mean_x[channel] ** 2))
        if total > CONSTANT * power:
            variance[key] = total
    return DownstreamMetric(engine.channels.flow, engine.positions, variance, statistics.outlooks)


def elimination_of(statistics: Statistics, group: ChannelGroup, downstream: DownstreamMetric | None = None) -> Elimination | None:
    """The removal order and error curve of a group, joint over its consumers; None where nothing reads it."""
    consumers = []
    for link in group.consumers:
        metric = None if downstream is None else downstream.metric(link.weighted)
        columns = _columns(group, link, statistics.readers[link.key])
        weights = weigh(columns, statistics.outlooks[link.key].scale, metric)
        consumers.append((_covariance(statistics, group, link), weights))
    return eliminate(consumers, group.removable, group.cells) if consumers else None


def _covariance(statistics: Statistics, group: ChannelGroup, link: Link) -> np.ndarray:
    """(n, n) of the units as a consumer reads them, averaged over the places where one stands several times.

    Zero for those it does not read, and between groups of a convolution.
    """
    reader, total = statistics.readers[link.key], np.zeros((group.size, group.size))
    channels = np.where(link.places < 0, -1, reader.channel_of[link.places])
    columns, counts = np.unique(channels.T, axis=0, return_counts=True)
    for channel, count in zip(columns, counts, strict=True):
        covariance = statistics.moments[link.key].xx[np.ix_(channel, channel)]
        total += np.where((channel[:, None] >= 0) & (channel >= 0), covariance, 0.0) * (count / counts.sum())
    places = link.places.max(1)
    block = np.where(places < 0, -1 - np.arange(group.size), places // reader.weight.shape[2])
    return np.where((block[:, None] == block) & (places >= 0), total, 0.0)


def _columns(group: ChannelGroup, link: Link, reader: Reader) -> np.ndarray:
    weight = stored(reader.weighted, reader.weight, reader.kernel)
    return consumer_columns(group, link, weight)
