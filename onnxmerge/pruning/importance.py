"""Which channels of a group matter least: by the weights of its producers, or by what its consumers lose without them."""

import numpy as np

from onnxmerge.algorithms.criteria import CRITERIA, PAIRWISE, keep_best
from onnxmerge.algorithms.elimination import Elimination, eliminate, eliminate_independent, kept_after, weight_products
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.layers import Consumer
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.downstream_metric import OutputErrorMetric
from onnxmerge.pruning.product_update import group_products
from onnxmerge.statistics.reference_run import ReferenceStatistics

SMALLEST_CLASS = 4
"""Channels of a class for which a share means anything; a choice."""
ROWS_BYTES = 1 << 25
"""Of rows that are scored at a time."""
DEFAULT_WEIGHT_CRITERION = "l2-norm"
"""Where `criterion` names none. One of the three of the paper; a convention, for no one of them is the best for every model."""


def weight_criterion(options: PruningOptions) -> str:
    """The criterion asked for where it looks at nothing but weights, else the default one of those."""
    return options.criterion if options.criterion in CRITERIA else DEFAULT_WEIGHT_CRITERION


def planned_channels(group: ChannelGroup, options: PruningOptions) -> np.ndarray | None:
    """(k,) ascending indices of the channels that `plan` names for a group; None where it names none."""
    planned = options.planned.get(group.name)
    return None if planned is None or planned.kept_channels is None else np.array(sorted(planned.kept_channels), np.int64)


def are_given(group: ChannelGroup, options: PruningOptions) -> bool:
    """Whether a plan or a criterion of weights says which channels stay, whatever is lost without the others."""
    return options.criterion in CRITERIA or planned_channels(group, options) is not None


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
        which the rows of all producers stand side by side. A ratio, and the weight criterion, take the same share of every class.
    """
    planned = planned_channels(group, options)
    if planned is not None:
        return planned
    if count == 0:
        return np.zeros(0, np.int64)
    if elimination is not None and (options.ratio is None or len(elimination.order) < group.size - count):
        return kept_after(elimination, group.size, count)
    if elimination is not None:
        scores = np.full(group.size, np.inf)
        scores[elimination.order] = np.arange(len(elimination.order))
    else:
        scores = _scores_by_weights(group, weight_criterion(options))
    scores = ranks_within(group.merge_classes, scores)
    return keep_best(scores, count, group.removable, group.conv_groups)


def _scores_by_weights(group: ChannelGroup, criterion: str) -> np.ndarray:
    """(n,) scores of the rows of all producers side by side; where rows are not compared, not of all of them at once."""
    values = sum(producer.layer.stored_weight.size for producer in group.producers) / group.size
    step = group.size if criterion in PAIRWISE else max(1, int(ROWS_BYTES / 8 / values))
    parts = [slice(start, start + step) for start in range(0, group.size, step)]
    rows = (np.concatenate([producer.rows(part) for producer in group.producers], axis=1) for part in parts)
    return np.concatenate([CRITERIA[criterion](each) for each in rows])


def ranks_within(classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores that keep the same share of every class of channels, with the order that they have in it.

    Channels that more layers write have longer rows: by their norms a ratio would be taken from the others alone (the stream of a
    ShuffleNet would stay whole). Small classes count as one.

    Parameters
    ----------
    classes : ndarray of shape (n,), int
        Labels from 0.
    scores : ndarray of shape (n,), float64
        Higher = keep.

    Returns
    -------
    ndarray of shape (n,), float64
        The scores where there is one class, else the share of the class that scores less, and a half of the channel itself.

    Examples
    --------
    >>> ranks_within(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([4.0, 3.0, 2.0, 1.0, 8.0, 9.0, 7.0, 6.0])).tolist()
    [0.875, 0.625, 0.375, 0.125, 0.625, 0.875, 0.375, 0.125]
    """
    sizes = np.bincount(classes)
    classes = np.where(sizes[classes] < SMALLEST_CLASS, -1, classes)
    if (classes == classes[0]).all():
        return scores
    ranks = np.zeros(len(scores))
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        ranks[own[np.argsort(scores[own], kind="stable")]] = (np.arange(len(own)) + 0.5) / len(own)
    return ranks


def elimination_of(
    channels: Channels, group: ChannelGroup, reference: ReferenceStatistics, output_errors: OutputErrorMetric | None = None
) -> Elimination | None:
    """The order in which channels are removed, by backward elimination, and the error curve that goes with it.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    group : ChannelGroup
        The channel group; the order is joint over its consumers and the products that sum over its channels.
    reference : ReferenceStatistics
        Covariances of what each consumer reads, and moments of products.
    output_errors : OutputErrorMetric or None
        How much errors at each output of a consumer matter further on; None for all the same.

    Returns
    -------
    Elimination or None
        None where nothing reads the group.
    """
    consumers: list[tuple[np.ndarray | None, np.ndarray]] = []
    if any(consumer.key in reference.too_wide for consumer in group.consumers):
        return _elimination_by_weights(group)
    for consumer in group.consumers:
        metric = (None, None) if output_errors is None else output_errors.metric(consumer.layer)
        products = weight_products(consumer.columns(), reference.downstream[consumer.key].scale, *metric)
        consumers.append((group_covariance(reference, group, consumer), products))
    consumers += [(None, each.elimination_terms(group.size)) for each in group_products(channels, group, reference.products)]
    return eliminate(consumers, group.removable, group.conv_groups) if consumers else None


def _elimination_by_weights(group: ChannelGroup) -> Elimination:
    """As if channels were independent of each other and varied alike: each costs the squares of the weights that read it."""
    squares = [np.square(consumer.columns()).sum((0, 2)) for consumer in group.consumers]
    score = np.asarray(sum(each / max(float(each.sum()), np.finfo(float).tiny) for each in squares)) / len(squares)
    return eliminate_independent(score, group.removable, group.conv_groups)


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
