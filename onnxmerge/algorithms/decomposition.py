"""Method `merge`: what a removed channel did is given to the most similar kept one.

A producer's rows W (n, d) are decomposed as W ~ Z W[kept], Z (n, k) non-negative with at most one entry a row. Over a
positively homogeneous path such as ReLU, relu(Z y) = Z relu(y), so Z moves through it and the consumer V becomes V Z.
Source: Kim, Kim, Park, Jeon, "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020.
"""

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.criteria import as_rows

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_ROUNDING = 1e-12
"""The cosine of a row with a multiple of itself falls short of 1 by this much at most, in float64."""

_FLOAT32_ROUNDING = 1e-5
"""Offsets of exact multiples differ by this share of their size at most: some 80 units in the last place of float32."""

_SILENT = 1e-3
"""A channel whose mean after ReLU is below this share of its standard deviation is silent: no ratio is taken of it. That
is a mean before ReLU of about -2.7 deviations."""

_NORMAL_GRID = np.linspace(-8.0, 8.0, 321)
"""Standard deviations at which the normal density is summed: steps of 0.05, with tails of 1e-15 left out."""

_NORMAL_WEIGHTS = np.exp(-0.5 * _NORMAL_GRID**2) / np.exp(-0.5 * _NORMAL_GRID**2).sum()


def decompose(rows: NDArray[np.floating], kept: NDArray[np.integer], threshold: float) -> Floats:
    """Scaling matrix Z with rows ~ Z rows[kept]: every removed row goes to the kept one that it is most similar to.

    Z[i, j] = |W_i| / |W_j| for the j of highest cosine similarity where cos(W_i, W_j) >= threshold, else row i is zero.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Weights of Gemm, or of Conv without BatchNormalization, with the bias as one more column; several producers side by side.
    kept : ndarray of shape (k,)
        Channels that stay.
    threshold : float
        Least cosine similarity at which a channel is merged. A similarity of zero or below never merges, whatever the threshold:
        the scale could not be positive.

    Returns
    -------
    ndarray of shape (n, k)
        Z, the identity in the rows of kept channels.

    Raises
    ------
    ValueError
        Where `kept` is empty or names a channel twice or one that is not there.

    Examples
    --------
    >>> decompose(np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1]]), np.array([0, 1]), threshold=0.5).round(2)
    array([[1., 0.],
           [0., 1.],
           [3., 0.]])
    """
    values, kept = _checked(rows, kept)
    removed = np.setdiff1d(np.arange(values.shape[0]), kept)
    norms = _norms(values)
    cosines = _cosines(values, norms, removed, kept)
    ratios = _ratios(norms[removed][:, None], norms[kept])
    return _merge(values.shape[0], removed, kept, cosines.argmax(axis=1), cosines, ratios, threshold)


def decompose_affine(
    rows: NDArray[np.floating],
    scale: NDArray[np.floating],
    offset: NDArray[np.floating],
    kept: NDArray[np.integer],
    threshold: float,
    cosine_weight: float,
    moments: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> Floats:
    """Scaling matrix of channels y_i = a_i (W_i x) + t_i: Conv, then BatchNormalization or any affine map of each channel.

    With the affine rows A_i = a_i W_i, A_i = S A_j gives y_i = S y_j + (t_i - S t_j), where S = |A_i| / |A_j| is never negative:
    the sign of a is part of A, so channels whose a differ in sign are alike where their W are opposed. Of the kept j, the lowest

        cosine_weight (1 - cos(A_i, A_j)) + (1 - cosine_weight) d_ij,    d_ij = |t_i - S t_j| / S, stretched to 0..1 over j

    is chosen, and merged where its cosine similarity reaches the threshold and is positive. Source: the paper's section on batch
    normalization. With `moments` (ours) d_ij = |mean_i / std_i - mean_j / std_j|, stretched: channels that fire alike. Since
    a scale that is right for equal rows is too large for rows that are only similar, it becomes
    c^2 S + (1 - c^2) min(S, E relu(y_i) / E relu(y_j)), with c = cos(A_i, A_j) and y normal. Exact multiples (c = 1) keep S, and
    where t_i = S t_j too they are chosen before all others.

    Parameters
    ----------
    rows, scale, offset : ndarrays of shape (n, d), (n,), (n,)
        W, a = gamma / standard deviation, t = beta + a (bias - mean).
    kept : ndarray of shape (k,)
        Channels that stay.
    threshold, cosine_weight : float
        Least cosine similarity at which a channel is merged, and the paper's lambda, 0 to 1.
    moments : pair of ndarray of shape (n,), optional
        Mean and standard deviation of y, which BatchNormalization tells: beta and |a| sqrt(running_var).

    Returns
    -------
    ndarray of shape (n, k)
        Z, the identity in the rows of kept channels.

    Raises ValueError as `decompose`.
    """
    values, kept = _checked(rows, kept)
    affine = values * np.asarray(scale, dtype=np.float64)[:, None]
    removed = np.setdiff1d(np.arange(values.shape[0]), kept)
    norms = _norms(affine)
    cosines = _cosines(affine, norms, removed, kept)
    scales = exact_scales = _ratios(norms[removed][:, None], norms[kept])
    shift = np.asarray(offset, dtype=np.float64)
    if moments is None:
        distances = np.abs(shift[removed][:, None] * _ratios(norms[kept], norms[removed][:, None]) - shift[kept])
    else:
        mean, deviation = (np.asarray(moment, dtype=np.float64) for moment in moments)
        standard = _ratios(mean, deviation)
        distances = np.abs(standard[removed][:, None] - standard[kept])
        scales = _damped(scales, cosines, _mean_after_relu(mean, deviation), removed, kept)
    scores = cosine_weight * (1.0 - cosines) + (1.0 - cosine_weight) * _stretched(distances, norms[kept] > 0.0)
    scores[_exact(cosines, exact_scales, shift, removed, kept)] = -1.0
    scores[:, norms[kept] == 0.0] = np.inf
    return _merge(values.shape[0], removed, kept, scores.argmin(axis=1), cosines, scales, threshold)


def absorb(weight: NDArray[np.floating], scaling: NDArray[np.floating]) -> Floats:
    """Weight of a consumer that reads the kept channels in place of all: V' x[kept] = V (Z x[kept]).

    Parameters
    ----------
    weight : ndarray of shape (out, n, positions)
        V.
    scaling : ndarray of shape (n, k)
        Z: at most one entry in a row, at least one in a column, and none below zero.

    Returns
    -------
    ndarray of shape (out, k, positions)

    Raises
    ------
    ValueError
        Where Z is of another form.

    Examples
    --------
    >>> absorb(np.ones((1, 3, 1)), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))[0, :, 0]
    array([1., 3.])
    """
    entries = scaling != 0.0
    if entries.sum(1).max() > 1 or not entries.any(0).all() or scaling.min() < 0.0:
        raise ValueError("a scaling matrix has at most one entry in a row, at least one in a column, and none below zero")
    column = scaling.argmax(axis=1)
    order = np.argsort(column, kind="stable")
    scale = scaling[order, column[order]]
    starts = np.searchsorted(column[order], np.arange(scaling.shape[1]))
    return np.asarray(np.add.reduceat(weight[:, order] * scale[:, None], starts, axis=1), np.float64)


def _checked(rows: NDArray[np.floating], kept: NDArray[np.integer]) -> tuple[Floats, Indices]:
    """Rows as float64 and kept as indices; ValueError unless kept are distinct channels, at least one."""
    values = as_rows(rows)
    indices: Indices = np.asarray(kept, dtype=np.int64)
    if indices.ndim != 1 or indices.size == 0 or np.unique(indices).size != indices.size:
        raise ValueError("kept must be a list of distinct channels, at least one")
    if indices.min() < 0 or indices.max() >= values.shape[0]:
        raise ValueError(f"kept names channels outside 0..{values.shape[0] - 1}")
    return values, indices


def _norms(rows: Floats) -> Floats:
    """Euclidean length of each row: (n, d) -> (n,), without a second array of the rows' size."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows)))


def _ratios(above: Floats, below: Floats) -> Floats:
    """above / below with broadcasting, zero where below is zero."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.zeros(shape), where=np.broadcast_to(below != 0.0, shape)))


def _cosines(rows: Floats, norms: Floats, removed: Indices, kept: Indices) -> Floats:
    """Cosine similarity of removed rows (r, d) with kept rows (k, d): (r, k). Zero where either row is zero."""
    cosines = _ratios(rows[removed] @ rows[kept].T, norms[removed][:, None] * norms[kept])
    return np.clip(cosines, -1.0, 1.0)


def _stretched(distances: Floats, usable: NDArray[np.bool_]) -> Floats:
    """Distances (r, k) mapped to 0..1 over the usable columns (k,) of each row; zeros where those are all equal or none."""
    lowest = distances.min(axis=1, keepdims=True, where=usable, initial=np.inf)
    highest = distances.max(axis=1, keepdims=True, where=usable, initial=-np.inf)
    return _ratios(distances - lowest, np.maximum(highest - lowest, 0.0))


def _exact(cosines: Floats, scales: Floats, offset: Floats, removed: Indices, kept: Indices) -> NDArray[np.bool_]:
    """Where channel i is S times channel j, offset (n,) included, up to the rounding of float32: (r, k)."""
    own, scaled = offset[removed][:, None], scales * offset[kept]
    same: NDArray[np.bool_] = np.abs(own - scaled) <= _FLOAT32_ROUNDING * (np.abs(own) + np.abs(scaled))
    return same & (cosines >= 1.0 - _FLOAT32_ROUNDING**2)


def _mean_after_relu(mean: Floats, deviation: Floats) -> Floats:
    """E max(y, 0) for y normal: (n,), (n,) -> (n,). Zero where it is below a thousandth of the deviation.

    By quadrature on one grid, so that it is exactly homogeneous: channels that are multiples have means that are multiples.
    """
    means = np.maximum(mean[:, None] + deviation[:, None] * _NORMAL_GRID, 0.0) @ _NORMAL_WEIGHTS
    return np.where(means > _SILENT * deviation, means, 0.0)


def _damped(scales: Floats, cosines: Floats, means: Floats, removed: Indices, kept: Indices) -> Floats:
    """c^2 S + (1 - c^2) min(S, mean_i / mean_j), S where the kept channel is silent: (r, k) -> (r, k)."""
    same_mean = np.where(means[kept] > 0.0, _ratios(means[removed][:, None], means[kept]), np.inf)
    return cosines**2 * scales + (1.0 - cosines**2) * np.minimum(scales, same_mean)


def _merge(
    channels: int, removed: Indices, kept: Indices, choice: Indices, cosines: Floats, scales: Floats, threshold: float
) -> Floats:
    """Write Z: identity for kept, the scale for removed channels that are similar enough, zero for the others.

    choice (r,): the column of each removed channel's candidate in cosines and scales (r, k).
    """
    scaling = np.zeros((channels, kept.size))
    chosen = cosines[np.arange(removed.size), choice]
    merged = np.flatnonzero((chosen > 0.0) & (chosen >= threshold - _ROUNDING))
    scaling[kept, np.arange(kept.size)] = 1.0
    scaling[removed[merged], choice[merged]] = scales[merged, choice[merged]]
    return scaling
