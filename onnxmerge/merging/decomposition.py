"""Method `merge`: what a removed channel did is given to the most similar kept one.

A producer's rows W (n, d) are decomposed as W ~ Z W[kept], Z (n, k) non-negative with at most one entry a row. Over a
positively homogeneous path such as ReLU, relu(Z y) = Z relu(y), so Z moves through it and the consumer V becomes V Z.
Source: Kim, Kim, Park, Jeon, "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# The cosine of a row with a multiple of itself falls short of 1 by this much at most.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Decomposition:
    """rows ~ scaling @ rows[kept].

    scaling (n, k): columns in the order of `kept`. kept (k,): channel indices. partner (n,): the kept channel that each channel
    became (a kept one is its own), -1 where it was dropped. similarity (n,): cosine similarity of each channel's row to the
    chosen kept one, also where that was too low to merge; 1 for kept channels, 0 where there was nothing to compare.
    """

    scaling: Floats
    kept: Indices
    partner: Indices
    similarity: Floats


def decompose(rows: NDArray[np.floating], kept: NDArray[np.integer], threshold: float) -> Decomposition:
    """Merge every removed row into the kept one with the highest cosine similarity, scaled by the ratio of their norms.

    rows (n, d): weights of Gemm, or of Conv without BatchNormalization, the bias as one more column; several producers side by
    side. kept (k,). Z[i, j] = |W_i| / |W_j| for the most similar j where cos(W_i, W_j) >= threshold; else row i is zero.
    A similarity of zero or below never merges, whatever the threshold: the scale could not be positive.
    """
    values, kept = _checked(rows, kept)
    removed = np.setdiff1d(np.arange(values.shape[0]), kept)
    norms = np.linalg.norm(values, axis=1)
    cosines = _cosines(values, norms, removed, kept)
    return _merge(norms, removed, kept, cosines.argmax(axis=1), cosines, threshold)


def decompose_affine(
    rows: NDArray[np.floating],
    scale: NDArray[np.floating],
    offset: NDArray[np.floating],
    kept: NDArray[np.integer],
    threshold: float,
    cosine_weight: float,
) -> Decomposition:
    """Merge channels y_i = a_i (W_i x) + t_i: Conv, then BatchNormalization or any per-channel affine.

    rows W (n, d); scale a (n,) = gamma / std; offset t (n,) = beta + a (bias - mean); kept (k,). With the affine rows
    A_i = a_i W_i, A_i = S A_j gives y_i = S y_j + (t_i - S t_j), where S = |A_i| / |A_j| is never negative: the sign of a is part
    of A, so channels whose a differ in sign are alike where their W are opposed. Of the kept j, the lowest

        cosine_weight (1 - cos(A_i, A_j)) + (1 - cosine_weight) d_ij,    d_ij = |t_i - S t_j| / S, stretched to 0..1 over j

    is chosen, and merged where its cosine similarity reaches the threshold and is positive. Source: the paper's section on
    batch normalization.
    """
    values, kept = _checked(rows, kept)
    affine = values * np.asarray(scale, dtype=np.float64)[:, None]
    removed = np.setdiff1d(np.arange(values.shape[0]), kept)
    norms = np.linalg.norm(affine, axis=1)
    cosines = _cosines(affine, norms, removed, kept)
    distances = _bias_distances(norms, np.asarray(offset, dtype=np.float64), removed, kept)
    scores = cosine_weight * (1.0 - cosines) + (1.0 - cosine_weight) * distances
    scores[:, norms[kept] == 0.0] = np.inf
    return _merge(norms, removed, kept, scores.argmin(axis=1), cosines, threshold)


def absorb(weight: NDArray[np.floating], scaling: NDArray[np.floating]) -> Floats:
    """The consumer that reads the kept channels: (out, n, positions) and Z (n, k) -> (out, k, positions).

    V'[o, j, p] = sum_i V[o, i, p] Z[i, j], so that V' x[kept] = V (Z x[kept]).
    """
    product = np.tensordot(np.asarray(weight, dtype=np.float64), np.asarray(scaling, dtype=np.float64), axes=(1, 0))
    return np.ascontiguousarray(np.moveaxis(product, 2, 1))


def _checked(rows: NDArray[np.floating], kept: NDArray[np.integer]) -> tuple[Floats, Indices]:
    """Rows as float64 and kept as indices; ValueError unless kept are distinct channels, at least one."""
    values: Floats = np.asarray(rows, dtype=np.float64)
    indices: Indices = np.asarray(kept, dtype=np.int64)
    if values.ndim != 2:
        raise ValueError(f"rows must have two axes (channels, weights), not shape {values.shape}")
    if indices.ndim != 1 or indices.size == 0 or np.unique(indices).size != indices.size:
        raise ValueError("kept must be a list of distinct channels, at least one")
    if indices.min() < 0 or indices.max() >= values.shape[0]:
        raise ValueError(f"kept names channels outside 0..{values.shape[0] - 1}")
    return values, indices


def _cosines(rows: Floats, norms: Floats, removed: Indices, kept: Indices) -> Floats:
    """Cosine similarity of removed rows (r, d) with kept rows (k, d): (r, k). Zero where either row is zero."""
    products = norms[removed][:, None] * norms[kept][None, :]
    cosines = np.divide(rows[removed] @ rows[kept].T, products, out=np.zeros_like(products), where=products > 0.0)
    return np.clip(cosines, -1.0, 1.0)


def _bias_distances(norms: Floats, offset: Floats, removed: Indices, kept: Indices) -> Floats:
    """|t_i - S t_j| / S for removed i and kept j, stretched to 0..1 over the usable j of each i: (r, k).

    Written as |t_i |A_j| / |A_i| - t_j|, which needs no S. Kept channels with a zero row have no S and do not set the range;
    removed channels with a zero row get zeros, and so do those whose candidates are all equally far.
    """
    lengths = norms[removed][:, None]
    inverse_scale = np.divide(norms[kept][None, :], lengths, out=np.zeros((removed.size, kept.size)), where=lengths > 0.0)
    distances = np.abs(offset[removed][:, None] * inverse_scale - offset[kept][None, :])
    usable = (norms[kept] > 0.0)[None, :]
    lowest = distances.min(axis=1, keepdims=True, where=usable, initial=np.inf)
    highest = distances.max(axis=1, keepdims=True, where=usable, initial=-np.inf)
    spread = highest - lowest
    stretched: Floats = np.divide(distances - lowest, spread, out=np.zeros_like(distances), where=(spread > 0.0) & usable)
    return stretched


def _merge(norms: Floats, removed: Indices, kept: Indices, choice: Indices, cosines: Floats, threshold: float) -> Decomposition:
    """Write Z: identity for kept, |row_i| / |row_choice| for removed that are similar enough, zero for the others.

    norms (n,) of the rows compared; choice (r,) is the column of each removed channel's candidate in cosines (r, k).
    """
    channels = norms.size
    chosen = cosines[np.arange(removed.size), choice]
    merged = (chosen > 0.0) & (chosen >= threshold - _ROUNDING)
    scaling = np.zeros((channels, kept.size))
    scaling[kept, np.arange(kept.size)] = 1.0
    scaling[removed[merged], choice[merged]] = norms[removed[merged]] / norms[kept[choice[merged]]]
    partner = np.full(channels, -1, dtype=np.int64)
    partner[kept] = kept
    partner[removed[merged]] = kept[choice[merged]]
    similarity = np.ones(channels)
    similarity[removed] = chosen
    return Decomposition(scaling, kept, partner, similarity)
