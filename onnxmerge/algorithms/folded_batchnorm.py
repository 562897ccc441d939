"""What folding BatchNormalization into a convolution took away, estimated from the weights that are left.

Folding leaves rows A_i = gamma_i / std_i W_i and biases b_i = beta_i - A_i . E[x]. Merging wants the moments of y = A x + b, and
the criteria want the lengths |W_i|; both are gone, but not without a trace:

- moments: beta is small beside A . E[x], so the biases fall on a line, b_i = mean(beta) - m s_i, with s_i the sum of row i and
  m the mean of one input. Inputs after ReLU spread in proportion to their mean, hence std(y_i) = HALF_NORMAL m |A_i|.
- lengths: relu(c y) = c relu(y), so channel i may grow by c where its consumers' columns V_i shrink by c, and the weight decay of
  training settles where both are equally long. Folding multiplies the row and leaves the columns' part: |W_i| ~ |V_i|.

On ResNet-56 (27 convolutions) beta / std comes back with a correlation of 0.85, the order of |W_i| with 0.86 (|A_i|: 0.68).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Standard deviation over mean of max(x, 0) is 1.46 for x normal around 0; the outcome hardly depends on it.
HALF_NORMAL = 1.46
# How closely biases must follow the sums of the rows: folded convolutions have correlations of 0.56 (64 channels) to 1.00, others
# below 0.4. The second bound is 2.5 standard deviations of the correlation of n unrelated pairs.
_CORRELATION = 0.5
_SIGNIFICANCE = 2.5
# Rows whose cosine is nearer to 1 than this are multiples of one another; float16 weights are rounded by 1e-7 of it.
_MULTIPLE = 1e-6


def recovered_moments(rows: NDArray[np.floating], bias: NDArray[np.floating]) -> tuple[Floats, Floats] | None:
    """Mean and standard deviation (n,), (n,) of rows (n, d) . x + bias (n,), x after ReLU; None where nothing hints at folding.

    m is the least-squares slope of -bias against the sums of the rows, with an intercept.
    """
    values, biases = np.asarray(rows, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    sums = values.sum(axis=1)
    covariance, target = sums - sums.mean(), biases.mean() - biases
    lengths = np.linalg.norm(covariance), np.linalg.norm(target)
    if not lengths[0] > 0.0 or not lengths[1] > 0.0:
        return None
    correlation = float(covariance @ target) / float(lengths[0] * lengths[1])
    if correlation < max(_CORRELATION, _SIGNIFICANCE / np.sqrt(len(sums))):
        return None
    mean = correlation * float(lengths[1] / lengths[0])
    return biases + mean * sums, HALF_NORMAL * mean * np.linalg.norm(values, axis=1)


def restored_rows(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Floats:
    """Rows (n, d) with the lengths of their consumers' columns (n, e): A_i |V_i| / |A_i|, zero rows stay zero."""
    values = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    wanted = np.linalg.norm(np.asarray(columns, dtype=np.float64), axis=1, keepdims=True)
    restored: Floats = values * np.divide(wanted, lengths, out=np.zeros_like(lengths), where=lengths > 0.0)
    return restored


def multiples(rows: NDArray[np.floating], profiles: NDArray[np.integer], removable: NDArray[np.bool_]) -> Indices:
    """For each row (n, d), bias included, the longest row it is a positive multiple of: (n,), itself where there is none.

    Only rows of the same profile (n,) count, and one that must stay goes before longer ones. Such a row can leave without a loss.
    """
    values = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1)
    channel_ids = np.divide(values, lengths[:, None], out=np.zeros_like(values), where=lengths[:, None] > 0.0)
    alike = (channel_ids @ channel_ids.T >= 1.0 - _MULTIPLE) & (profiles[:, None] == profiles)
    np.fill_diagonal(alike, True)
    strength = np.where(np.asarray(removable, dtype=bool), lengths, np.inf)
    longest: Indices = np.where(alike, strength, -1.0).argmax(axis=1)
    return longest
