"""Which channels of a group matter least: by the weights of its producers, or by what its consumers lose without them."""

import numpy as np

from onnxmerge.algorithms.criteria import CRITERIA, keep_best
from onnxmerge.algorithms.elimination import Elimination, eliminate, kept_after, weight_products
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Consumer
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.downstream_metric import OutputErrorMetric
from onnxmerge.statistics.reference_run import ReferenceStatistics

DEFAULT_WEIGHT_CRITERION = "l2-norm"
"""Where `criterion` names none. One of the three of the paper; a convention, for no one of them is the best for every model."""


def weight_criterion(options: PruningOptions) -> str:
    """The criterion asked for where it looks at nothing but weights, else the default one of those."""
    return options.criterion if options.criterion in CRITERIA else DEFAULT_WEIGHT_CRITERION


def planned_channels(group: ChannelGroup, options: PruningOptions) -> np.ndarray | None:
    """(k,) ascending indices of the channels that `plan` names for a group; None where it names none."""
    planned = options.planned.get(group.name)
    return None if planned is None or planned.kept_channels is None else np.array(sorted(planned.kept_channels), np.int64)


def kept_channels(group: ChannelGroup, count: int, options: PruningOptions, elimination: Elimination | None = None) -> np.ndarray:
    """Indices of the channels that stay.

    Parameters
    ----------
    group : ChannelGroup
        The channel group.
    count : int
        How many of its channels stay.
    options : PruningOptions
        Of these `plan` and `criterion`.
    elimination : Elimination or None
        The removal order of `elimination_of`; None where weights rank the channels.

    Returns
    -------
    ndarray of shape (count,), int, ascending
        Those that the plan names, else the last ones of the removal order, else the best ones by the weight criterion, for
        which the rows of all producers stand side by side.
    """
    planned = planned_channels(group, options)
    if planned is not None:
        return planned
    if elimination is not None:
        return kept_after(elimination, group.size, count)
    rows = np.concatenate([producer.rows() for producer in group.producers], axis=1)
    return keep_best(CRITERIA[weight_criterion(options)](rows), count, group.removable, group.conv_groups)


def elimination_of(
    reference: ReferenceStatistics, group: ChannelGroup, output_errors: OutputErrorMetric | None = None
) -> Elimination | None:
    """The order in which channels are removed, by backward elimination, and the error curve that goes with it.

    Parameters
    ----------
    reference : ReferenceStatistics
        Covariances of what each consumer reads.
    group : ChannelGroup
        The channel group; the order is joint over its consumers.
    output_errors : OutputErrorMetric or None
        How much errors at each output of a consumer matter further on; None for all the same.

    Returns
    -------
    Elimination or None
        None where the group has no consumers.
    """
    consumers = []
    for consumer in group.consumers:
        metric = None if output_errors is None else output_errors.metric(consumer.layer)
        products = weight_products(consumer.columns(), reference.downstream[consumer.key].scale, metric)
        consumers.append((group_covariance(reference, group, consumer), products))
    return eliminate(consumers, group.removable, group.conv_groups) if consumers else None


def group_covariance(reference: ReferenceStatistics, group: ChannelGroup, consumer: Consumer) -> np.ndarray:
    """(n, n) covariance of a group's channels as a consumer reads them, averaged over the positions where one stands.

    Zero for channels that it does not read, and between the groups of a grouped convolution, which never meet in an output.
    """
    layer, whole = consumer.layer, reference.covariances[consumer.key].xx
    rows = np.where(consumer.positions < 0, -1, layer.channel_of[consumer.positions])
    if layer.groups == 1 and len(rows) == len(whole) and (rows == np.arange(len(whole))[:, None]).all():
        return whole
    distinct, counts = np.unique(rows.T, axis=0, return_counts=True)
    total = np.zeros((group.size, group.size))
    for channels, count in zip(distinct, counts, strict=True):
        covariance = whole[np.ix_(channels, channels)]
        total += np.where((channels[:, None] >= 0) & (channels >= 0), covariance, 0.0) * (count / counts.sum())
    last = consumer.positions.max(1)
    conv_group = np.where(last < 0, -1 - np.arange(group.size), last // layer.inputs_per_group)
    return np.where((conv_group[:, None] == conv_group) & (last >= 0), total, 0.0)
