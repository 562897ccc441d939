"""Method `merge`: every removed channel is given to the most similar kept one (`algorithms/decomposition.py`)."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxmerge.algorithms.criteria import CRITERIA, keep_best
from onnxmerge.algorithms.decomposition import absorb, decompose, decompose_affine
from onnxmerge.algorithms.folded_batchnorm import multiple_of, recovered_moments, restored_rows
from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.merge_validity import PreActivations, pre_activations
from onnxmerge.graph.operators.scale_crossing import MeanStd
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.onnxio.mapped_files import Scratch
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.importance import kept_channels, planned_channels, weight_criterion
from onnxmerge.pruning.layer_statistics import LayerStatistics


def merge(
    channels: Channels, group: ChannelGroup, count: int, options: PruningOptions, statistics: LayerStatistics | None
) -> Removal | Refusal:
    """Neuron merging: the rows of a group's producers give the scaling matrix Z. A `Method`; statistics are not read.

    Returns
    -------
    Removal or Refusal
        With `scaling` Z (n, k); refused where something between producers and consumers does not let Z through.

    Notes
    -----
    Kim, Kim, Park, Jeon, "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020. Channels are merged within one of the
    group's `merge_classes`. Ours: where a BatchNormalization was folded into a convolution, its mean and standard deviation are
    estimated from weights and biases, and channels are ranked by the norms that their rows had before.
    """
    compared = pre_activations(channels, group)
    if isinstance(compared, Refusal):
        return compared
    folded = _folded_batchnorm(group, compared)
    if folded is None or planned_channels(group, options) is not None:
        kept = kept_channels(group, count, options)
    else:
        kept = _kept_by_restored_rows(group, compared, count, weight_criterion(options))
    mean_std = compared.mean_std if folded is None else folded
    scaling = np.zeros((group.size, len(kept)))
    classes = group.merge_classes
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        kept_members = np.flatnonzero(np.isin(members, kept))
        if len(kept_members):
            columns = np.searchsorted(kept, members[kept_members])
            scaling[np.ix_(members, columns)] = _scaling(compared, mean_std, members, kept_members, options)
    return Removal(group, kept, "merge", scaling=Scratch().kept(scaling))


def _scaling(
    compared: PreActivations, mean_std: MeanStd | None, members: np.ndarray, kept: np.ndarray, options: PruningOptions
) -> np.ndarray:
    """Z (members, kept) of the channels `members`, of which those at the positions `kept` stay."""
    rows = compared.rows if len(members) == len(compared.rows) else compared.rows[members]
    scale, offset = compared.scale[members], compared.offset[members]
    if compared.is_scaled or mean_std is not None:
        own = None if mean_std is None else (mean_std[0][members], mean_std[1][members])
        return decompose_affine(rows, scale, offset, kept, options.threshold, options.cosine_weight, own)
    with_bias = np.concatenate([rows * scale[:, None], offset[:, None]], axis=1)
    return decompose(with_bias, kept, options.threshold)


def _folded_batchnorm(group: ChannelGroup, compared: PreActivations) -> MeanStd | None:
    """Estimated moments where one convolution feeds the group and its biases look as if a BatchNormalization was folded in."""
    if compared.is_scaled or len(group.producers) > 1 or group.producers[0].node.op != "Conv":
        return None
    return recovered_moments(compared.rows, compared.offset)


def _kept_by_restored_rows(group: ChannelGroup, compared: PreActivations, count: int, criterion: str) -> np.ndarray:
    """(count,) best channels by rows with the norms of before folding; multiples of another channel are removed first."""
    with_bias = np.concatenate([compared.rows, compared.offset[:, None]], axis=1)
    origin = multiple_of(with_bias, group.merge_classes, group.removable)
    columns = [consumer.columns().swapaxes(0, 1).reshape(group.size, -1) for consumer in group.consumers]
    scores = CRITERIA[criterion](restored_rows(compared.rows, np.concatenate(columns, axis=1)))
    scores[origin != np.arange(group.size)] = -1.0
    return keep_best(scores, count, group.removable, group.conv_groups)


def absorbed(removals: Sequence[Removal]) -> dict[str, Replacement]:
    """Consumers with the scaling matrices of `merge` absorbed into their weights.

    Parameters
    ----------
    removals : Sequence[Removal]
        Those without a scaling matrix are passed over.

    Returns
    -------
    dict[str, Replacement]
        By key of the layer; one that reads several merged groups absorbs their matrices one after the other.
    """
    replacements: dict[str, Replacement] = {}
    scratch = Scratch()
    for removal in removals:
        if removal.scaling is None:
            continue
        for consumer in removal.group.consumers:
            before = replacements.get(consumer.key)
            weight = consumer.layer.stored_weight if before is None else before.weight
            change = partial(_absorbed, kept=removal.kept, scaling=removal.scaling)
            replacements[consumer.key] = Replacement(scratch.kept(consumer.with_columns(weight, change)))
    return replacements


def _absorbed(columns: np.ndarray, kept: np.ndarray, scaling: np.ndarray) -> np.ndarray:
    columns[:, kept] = absorb(columns, scaling)
    return columns
