"""Factorisations of symmetric positive definite matrices in the memory of the matrix itself.

Of every matrix only the lower triangle is read and written, in panels of rows: half the work and the memory traffic of whole
ones, and no copies, which for 16,384 unknowns take 2.1 GB each. numpy has no triangular solve; here one is made of products with
the inverses of diagonal blocks.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PANEL = 512
"""Rows that are updated at a time: a product of this many rows is as fast as a whole one, and half of it is left out."""

BLOCK = 192
"""Columns that are factored at a time: below a hundred products are slow, above 300 the factors of the blocks are."""


def row_of(lower: Floats, i: int) -> Floats:
    """(n,) row i of a symmetric matrix of which the lower triangle is given."""
    return np.concatenate([lower[i, :i], lower[i:, i]])


def subtract_product(lower: Floats, left: Floats, right: Floats) -> None:
    """lower -= left^T right for a symmetric product of left and right (k, n), in the lower triangle."""
    for start in range(0, len(lower), PANEL):
        stop = min(start + PANEL, len(lower))
        lower[start:stop, :stop] -= left[:, start:stop].T @ right[:, :stop]


def shrunk(lower: Floats, kept: NDArray[np.int64]) -> Floats:
    """Rows and columns `kept` (k,), ascending, of a symmetric matrix, moved to its front; a view of it (k, k)."""
    for start in range(0, len(kept), PANEL):
        rows = kept[start : start + PANEL]
        lower[start : start + len(rows), : start + len(rows)] = lower[np.ix_(rows, kept[: start + len(rows)])]
    return lower[: len(kept), : len(kept)]


def invert(lower: Floats) -> Floats:
    """Invert a symmetric positive definite matrix in place, by sweeping blocks of it; the lower triangle alone.

    Raises
    ------
    numpy.linalg.LinAlgError
        Where it is not positive definite; it is spoilt then.

    Notes
    -----
    Sweep operator: Goodnight, "A Tutorial on the SWEEP Operator", The American Statistician 33, 1979.

    Examples
    --------
    >>> invert(np.array([[4.0, 0.0], [2.0, 5.0]])).round(4).tolist()
    [[0.3125, -0.125], [-0.125, 0.25]]
    """
    for own in _blocks(len(lower)):
        factor = np.linalg.inv(np.linalg.cholesky(lower[own, own]))
        inverse = factor.T @ factor
        columns = np.concatenate([lower[own, : own.start].T, np.zeros((len(inverse), len(inverse))), lower[own.stop :, own]])
        scaled = columns @ inverse
        subtract_product(lower, scaled.T, columns.T)
        lower[own, : own.start], lower[own.stop :, own] = scaled[: own.start].T, scaled[own.stop :]
        lower[own, own] = -inverse
    return np.negative(lower, out=lower)


class Cholesky:
    """Factor of a symmetric positive definite matrix, in its place.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        Overwritten; the lower triangle is read.

    Raises
    ------
    numpy.linalg.LinAlgError
        Where it is not positive definite; it is spoilt then.

    Examples
    --------
    >>> factor = Cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
    >>> factor.solve(np.array([[8.0], [12.0]])).ravel().tolist(), round(factor.trace_of_inverse(), 4)
    ([1.0, 2.0], 0.5625)
    """

    def __init__(self, matrix: Floats) -> None:
        self._lower, self._inverses = matrix, []
        for own in _blocks(len(matrix)):
            inverse = np.linalg.inv(np.linalg.cholesky(matrix[own, own]))
            panel = matrix[own.stop :, own] @ inverse.T
            matrix[own.stop :, own] = panel
            subtract_product(matrix[own.stop :, own.stop :], panel.T, panel.T)
            self._inverses.append((own, inverse))

    def solve(self, right: Floats) -> Floats:
        """The inverse times right (n, o)."""
        solution = right.copy()
        for own, inverse in self._inverses:
            solution[own] = inverse @ (solution[own] - self._lower[own, : own.start] @ solution[: own.start])
        for own, inverse in reversed(self._inverses):
            solution[own] = inverse.T @ (solution[own] - self._lower[own.stop :, own].T @ solution[own.stop :])
        return solution

    def trace_of_inverse(self) -> float:
        """Trace of the inverse: the sum of the squares of the inverse factor, which is made a few columns at a time."""
        total = 0.0
        for number, (first, inverse) in enumerate(self._inverses):
            columns = np.zeros((len(self._lower) - first.start, len(inverse)))
            columns[: len(inverse)] = inverse
            for own, other in self._inverses[number + 1 :]:
                before = own.start - first.start
                columns[before : before + len(other)] = -other @ (self._lower[own, first.start : own.start] @ columns[:before])
            total += float(np.vdot(columns, columns))
        return total


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
