"""How far a ratio of sums over inputs may be off, had other inputs of the same kind been drawn."""

import math

import numpy as np

_LARGEST_EXPONENT = 50.0  # of the factor, which says nothing then


def interval_factor(errors: np.ndarray, weights: np.ndarray) -> float | None:
    """The f for which r / f to r f is the 95 % interval of r = sum(errors) / sum(weights).

    log r has the standard error sqrt(n / (n - 1) sum (e / sum e - w / sum w)^2), the delta method, and Student's distribution.

    Parameters
    ----------
    errors, weights : ndarray
        (inputs,) not negative; weights that are all 0 count alike.

    Returns
    -------
    float or None
        None where there are fewer than two inputs, or no errors.

    Examples
    --------
    >>> factor = interval_factor(np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))
    >>> 2.0 < factor < 20.0
    True
    """
    count, total = len(errors), float(errors.sum())
    if count < 2 or not 0.0 < total < math.inf:
        return None
    weights = weights if weights.any() else np.ones(count)
    deviation = math.sqrt(count / (count - 1) * float(np.sum((errors / total - weights / weights.sum()) ** 2)))
    return math.exp(min(_student(count - 1) * deviation, _LARGEST_EXPONENT))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, by its expansion in 1 / degrees of freedom (Fisher, Cornish 1960)."""
    return 1.96 + 2.37 / freedom + 2.82 / freedom**2
