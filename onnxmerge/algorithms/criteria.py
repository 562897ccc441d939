"""Which channels to keep: one score a channel from its weights alone, higher = keep.

Rows are the producer's weights, one channel a row, without bias and without BatchNormalization folded in (as in Kim et al.,
"Neuron Merging", NeurIPS 2020, section 4). `CRITERIA` is the menu; `keep_best` turns scores into kept indices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Squared distances below this share of the rows' squared lengths are rounding of the Gram matrix, not distance.
_GRAM_ROUNDING = 1e-14
_SIGNIFICANT_DIGITS = 12


def l1_norm(rows: NDArray[np.floating]) -> Floats:
    """Sum of absolute weights of each row: (n, d) -> (n,). Li et al., "Pruning Filters for Efficient ConvNets", 2017."""
    return np.asarray(np.abs(_as_rows(rows)).sum(axis=1))


def l2_norm(rows: NDArray[np.floating]) -> Floats:
    """Euclidean length of each row: (n, d) -> (n,). He et al., "Soft Filter Pruning", 2018."""
    return np.asarray(np.linalg.norm(_as_rows(rows), axis=1))


def l2_geometric_median(rows: NDArray[np.floating]) -> Floats:
    """Sum of each row's euclidean distances to all rows: (n, d) -> (n,). He et al., "Filter Pruning via Geometric Median", 2019.

    |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b>, on rows centred first, which keeps the cancellation small. Equal rows get equal
    scores: rounding of the Gram matrix is cut off, and so are the scores' last digits.
    """
    covariance = _as_rows(rows)
    covariance = covariance - covariance.mean(axis=0)
    gram = covariance @ covariance.T
    squares = gram.diagonal()
    lengths = squares[:, None] + squares[None, :]
    distances = lengths - 2.0 * gram
    distances[distances < _GRAM_ROUNDING * lengths] = 0.0
    np.fill_diagonal(distances, 0.0)
    scores: Floats = np.sqrt(distances).sum(axis=1)
    largest = scores.max(initial=0.0)
    return np.round(scores / largest, _SIGNIFICANT_DIGITS) * largest if largest > 0.0 else scores


CRITERIA: dict[str, Callable[[NDArray[np.floating]], Floats]] = {
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
    "l2-gm": l2_geometric_median,
}


def keep_best(
    scores: NDArray[np.floating],
    count: int,
    removable: NDArray[np.bool_] | None = None,
    conv_groups: NDArray[np.integer] | None = None,
) -> Indices:
    """The `count` channels with the highest scores, sorted by index; of equal scores the lower index stays.

    scores (n,); removable (n,), False = always kept and counted in `count`; cells (n,), a partition (the groups of a grouped
    convolution) where every cell keeps count / number of cells. ValueError where that cannot be.
    """
    values: Floats = np.asarray(scores, dtype=np.float64)
    channels = values.shape[0]
    may_go = np.ones(channels, dtype=bool) if removable is None else np.asarray(removable, dtype=bool)
    _, cell = np.unique(np.zeros(channels, int) if conv_groups is None else np.asarray(conv_groups), return_inverse=True)
    _check_request(values, count, may_go, cell)
    quota = count // (int(cell.max()) + 1)
    order = np.lexsort((-values, may_go, cell))  # stable: equal scores stay in order of index
    rank = np.arange(channels) - np.searchsorted(cell[order], cell[order])
    return np.sort(order[rank < quota]).astype(np.int64)


def _check_request(scores: Floats, count: int, may_go: NDArray[np.bool_], cell: NDArray[np.integer]) -> None:
    """ValueError unless `count` channels can be kept, equally many in every cell."""
    channels = scores.shape[0]
    if may_go.shape != (channels,) or cell.shape != (channels,):
        raise ValueError(f"scores, removable and cells must have one entry a channel ({channels})")
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN")
    if not 1 <= count <= channels:
        raise ValueError(f"cannot keep {count} of {channels} channels")
    sizes, pinned = np.bincount(cell), np.bincount(cell[~may_go], minlength=int(cell.max()) + 1)
    if count % sizes.size:
        raise ValueError(f"{count} kept channels do not spread equally over {sizes.size} cells")
    quota = count // sizes.size
    if quota > sizes.min():
        raise ValueError(f"a cell has {sizes.min()} channels, fewer than the {quota} to keep")
    if quota < pinned.max():
        raise ValueError(f"a cell has {pinned.max()} channels that must stay, more than the {quota} to keep")


def _as_rows(rows: NDArray[np.floating]) -> Floats:
    """Rows as float64; ValueError unless there are two axes."""
    values: Floats = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"rows must have two axes (channels, weights), not shape {values.shape}")
    return values
