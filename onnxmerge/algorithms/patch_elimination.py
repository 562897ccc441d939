"""Which channels a convolution keeps: backward elimination of whole channels, with all kernel positions of each.

With A the covariance of the patches s plus a ridge, P = A^-1 and V = P cov(s, y) the weight of the least squares, to remove the
channel with the unknowns I, its kernel positions, and to solve again for the others adds tr(V_I^T P_II^-1 V_I) to what is missed;
then V <- V - P_:I P_II^-1 V_I and P <- P - P_:I P_II^-1 P_I:. `elimination` does the same with one unknown a channel, on
channels as the reference has them; here the targets may differ from what the weight gives.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.least_squares import RIDGE

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def keep_by_patches(inputs: Floats, crossed: ArrayLike, count: int, removable: ArrayLike, ridge: float = RIDGE) -> Integers:
    """The channels with which a least squares misses least, as far as one removal after the other finds them.

    Parameters
    ----------
    inputs : ndarray of shape (k * n, k * n)
        Covariance of patches, laid out (kernel position, channel). Overwritten.
    crossed : array_like of shape (k * n, o)
        Covariance of the patches with the target outputs, times a matrix that errors of these are measured with.
    count : int
        How many of the n channels stay.
    removable : array_like of shape (n,), bool
        Channels that may go.
    ridge : float
        Added to the diagonal, relative to its mean.

    Returns
    -------
    ndarray of shape (count,), int
        Ascending.

    Examples
    --------
    The second channel repeats the first, the third carries most:

    >>> covariance = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    >>> keep_by_patches(covariance, [[2.0], [2.0], [9.0]], 2, [True] * 3).tolist()
    [1, 2]
    """
    left = np.arange(len(np.asarray(removable)))
    inputs[np.diag_indices_from(inputs)] += max(ridge * float(np.trace(inputs)) / len(inputs), np.finfo(float).tiny)
    precision = np.linalg.inv(inputs)
    weight = precision @ np.asarray(crossed, np.float64)
    unknowns = np.arange(len(inputs)).reshape(-1, len(left)).T  # (n, k)
    may_go = np.array(removable, bool)
    while len(left) > count and may_go[left].any():
        own = unknowns[left]
        rows = weight[own]
        costs = np.einsum("cko,cko->c", rows, np.linalg.solve(precision[own[:, :, None], own[:, None, :]], rows))
        gone = left[int(np.argmin(np.where(may_go[left], costs, np.inf)))]
        removed = unknowns[gone]
        repaired = np.linalg.solve(precision[np.ix_(removed, removed)], precision[removed])
        weight -= repaired.T @ weight[removed]
        precision -= precision[:, removed] @ repaired
        left = left[left != gone]
    return left
