"""What folding BatchNormalization into a convolution took away, estimated from the weights that are left.

Folding leaves rows A_i = gamma_i / std_i W_i and biases b_i = beta_i - A_i . E[x]. Merging wants the moments of y = A x + b, and
the criteria want the lengths |W_i|; both are gone, but not without a trace:

- moments: beta is small beside A . E[x], so the biases fall on a line, b_i = mean(beta) - m s_i, with s_i the sum of row i and
  m the mean of one input. Inputs after ReLU spread in proportion to their mean, hence std(y_i) = HALF_NORMAL m |A_i|.
- lengths: relu(c y) = c relu(y), so channel i may grow by c where its consumers' columns V_i shrink by c, and the weight decay of
  training settles where both are equally long. Folding multiplies the row and leaves the columns' part: |W_i| ~ |V_i|.

On ResNet-56 (27 convolutions) beta / std comes back with a correlation of 0.85, the order of |W_i| with 0.86 (|A_i|: 0.68).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

HALF_NORMAL = 1.46
"""Standard deviation over mean of max(x, 0) for x normal around 0; the outcome hardly depends on it."""

_CORRELATION = 0.5
"""How closely biases must follow the sums of the rows: of folded convolutions 0.56 (64 channels) to 1.00, of others below 0.4."""

_SIGNIFICANCE = 2.5
"""And at least this many standard deviations of the correlation of n unrelated pairs, which is 1 / sqrt(n)."""

_MULTIPLE = 1e-6
"""Rows whose cosine is nearer to 1 than this are multiples of one another; rounding to float16 takes 1e-7 from it."""


def recovered_moments(rows: NDArray[np.floating], bias: NDArray[np.floating]) -> tuple[Floats, Floats] | None:
    """Mean and standard deviation of y = rows x + bias, x after ReLU.

    m is the least-squares slope of -bias against the sums of the rows, with an intercept.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Weights of a convolution, a channel a row.
    bias : ndarray of shape (n,)

    Returns
    -------
    pair of ndarray of shape (n,), or None
        None where nothing hints at folding: see `_CORRELATION` and `_SIGNIFICANCE`.

    Examples
    --------
    >>> rows = np.arange(30.0).reshape(30, 1)
    >>> mean, deviation = recovered_moments(rows, 0.5 - 2.0 * rows[:, 0])
    >>> float(mean[7].round(6)), float(deviation[1].round(2))
    (0.5, 2.92)
    """
    values, biases = np.asarray(rows, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    sums = values.sum(axis=1)
    centred, target = sums - sums.mean(), biases.mean() - biases
    lengths = np.linalg.norm(centred), np.linalg.norm(target)
    if not lengths[0] > 0.0 or not lengths[1] > 0.0:
        return None
    correlation = float(centred @ target) / float(lengths[0] * lengths[1])
    if correlation < max(_CORRELATION, _SIGNIFICANCE / np.sqrt(len(sums))):
        return None
    mean = correlation * float(lengths[1] / lengths[0])
    return biases + mean * sums, HALF_NORMAL * mean * np.linalg.norm(values, axis=1)


def restored_rows(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Floats:
    """Rows with the lengths of their consumers' columns, as before folding: A_i |V_i| / |A_i|.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        A, a channel a row.
    columns : ndarray of shape (n, e)
        V, what the consumers read of each channel.

    Returns
    -------
    ndarray of shape (n, d)
        Zero rows stay zero.

    Examples
    --------
    >>> restored_rows(np.array([[3.0, 4.0]]), np.array([[0.0, 10.0]]))
    array([[6., 8.]])
    """
    values = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    original = np.linalg.norm(np.asarray(columns, dtype=np.float64), axis=1, keepdims=True)
    return np.asarray(values * np.divide(original, lengths, out=np.zeros_like(lengths), where=lengths > 0.0))


def multiple_of(rows: NDArray[np.floating], classes: NDArray[np.integer], removable: NDArray[np.bool_]) -> Indices:
    """For each row the longest row that it is a positive multiple of: it can leave without a loss.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Weights, a channel a row, with the bias as one more column.
    classes : ndarray of shape (n,), int
        Only rows of the same class can stand for one another.
    removable : ndarray of shape (n,), bool
        A row that must stay goes before longer ones.

    Returns
    -------
    ndarray of shape (n,)
        Indices of rows; its own where there is none.

    Examples
    --------
    >>> multiple_of(np.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]]), np.zeros(3, int), np.ones(3, bool))
    array([1, 1, 2])
    """
    values = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1)
    directions = np.divide(values, lengths[:, None], out=np.zeros_like(values), where=lengths[:, None] > 0.0)
    alike = (directions @ directions.T >= 1.0 - _MULTIPLE) & (classes[:, None] == classes)
    np.fill_diagonal(alike, True)
    strength = np.where(np.asarray(removable, dtype=bool), lengths, np.inf)
    return np.asarray(np.where(alike, strength, -1.0).argmax(axis=1))
