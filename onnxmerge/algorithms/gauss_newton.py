"""Gauss-Newton steps for a weight that a nonlinear function and another weight follow.

For outputs r - J d that depend on the change d (k, i) of k rows, J linear, the step minimises |r - J d|^2 + ridge |d|^2. J^T J is
too large to be formed; it is applied to a few conjugate directions (Hestenes and Stiefel, 1952), so that the length of each step
is exact. Directions are preconditioned by its Kronecker factorisation B (x) A, with A the second moment of what the rows read and
B that of the directions in which they change the outputs: Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", 2015.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.symmetric import Cholesky

Floats = NDArray[np.float64]

DAMPING = 1e-2
"""Share of the mean curvature that the preconditioner adds; half of it, as a power, in each factor."""


class KroneckerFactors:
    """The inverse of (B + a I) (x) (A + b I), with a and b shares of the mean diagonals.

    Parameters
    ----------
    inputs : ndarray of shape (i, i)
        A, second moment of what the rows read. Overwritten.
    outputs : ndarray of shape (k, k)
        B, second moment of how the rows change the outputs. Overwritten.
    damping : float
        Share of the mean curvature that is added.

    Examples
    --------
    >>> KroneckerFactors(np.diag([2.0, 4.0]), np.eye(1), damping=0.0).solve(np.array([[2.0, 2.0]])).round(6).tolist()
    [[1.0, 0.5]]
    """

    def __init__(self, inputs: Floats, outputs: Floats, damping: float = DAMPING) -> None:
        self._inputs, self._outputs = (_damped(each, float(np.sqrt(damping))) for each in (inputs, outputs))

    def solve(self, gradient: Floats) -> Floats:
        """B^-1 G A^-1 for G (k, i), damped."""
        return self._outputs.solve(self._inputs.solve(np.ascontiguousarray(gradient.T)).T)


def _damped(matrix: Floats, share: float) -> Cholesky:
    """The factor with a share of the mean of the diagonal added to it; at least what rounding of float32 products asks for."""
    mean = max(float(np.trace(matrix)) / len(matrix), np.finfo(float).tiny)
    matrix[np.diag_indices_from(matrix)] += max(share, 1e-12) * mean
    return Cholesky(matrix)


def conjugate_step(
    gradient: Floats,
    product: Callable[[Floats], tuple[float, Callable[[], Floats]]],
    precondition: Callable[[Floats], Floats],
    directions: int,
) -> tuple[Floats, float]:
    """The step over some conjugate directions, each as far as it lowers |r - J d|^2 + ridge |d|^2.

    Parameters
    ----------
    gradient : ndarray of shape (k, i)
        J^T r.
    product : callable
        For a direction v: v^T H v, and what gives H v, which the last direction does not need; H = J^T J + ridge I.
    precondition : callable
        Approximates the inverse of H.
    directions : int
        How many directions at most.

    Returns
    -------
    step : ndarray of shape (k, i)
    fall : float
        By how much the function falls from step 0.

    Examples
    --------
    >>> h = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> step, _ = conjugate_step(np.array([[1.0, 2.0]]), lambda v: (float((v @ h @ v.T)[0, 0]), lambda: v @ h), np.copy, 2)
    >>> step.round(4).tolist()
    [[0.0909, 0.6364]]
    """
    step, fall, remaining = np.zeros_like(gradient), 0.0, gradient
    direction = precondition(remaining)
    slope = float(np.vdot(remaining, direction))
    for number in range(directions):
        if not slope > 0.0:
            break
        curvature, changed = product(direction)
        if not curvature > 0.0:
            break
        length = slope / curvature
        step = step + length * direction
        fall += slope * length
        if number + 1 < directions:
            remaining = remaining - length * changed()
            preconditioned = precondition(remaining)
            before, slope = slope, float(np.vdot(remaining, preconditioned))
            direction = preconditioned + slope / before * direction
    return step, fall
