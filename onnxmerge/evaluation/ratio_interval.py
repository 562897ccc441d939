"""How far a ratio of sums over inputs may be off, had other inputs of the same kind been drawn.

Errors of single inputs have long tails: of a sure classifier most inputs change by a millionth and a few altogether, and what
an error is made of may not be among a few dozen inputs at all. So an input that was not seen is added to those that were.
"""

import math
from functools import lru_cache

import numpy as np

DRAWS = 1000
"""Weightings of the inputs that are drawn."""
UNSEEN = 2.0
"""Minus the logarithm of the chance, in units of 1 / inputs, with which an error exceeds that of the unseen input. Of 20 variants
of five networks, each judged on 32, 64 and 128 of 1,200 to 1,800 inputs, the 95 % intervals of the fidelity, of scores and of
probabilities, and of changed decisions held the true figure in 90 to 100 % of the draws, in the mean in 98 %; with 1.0 in 80 to
100 %, without an unseen input in 47 to 97 %."""
_CHUNK = 1 << 12  # inputs whose weights are held at once


def ratio_interval(errors: np.ndarray, sizes: np.ndarray, ratio: float, *, counted: bool = False) -> tuple[float, float] | None:
    """The 95 % interval of a ratio of sums, sum(errors) / sum(sizes) but for a constant factor.

    The Bayesian bootstrap (Rubin 1981) with one more input: the inputs, and the unseen one, get random weights that are uniform
    on the simplex, and the ends are the 2.5 % quantile of the ratio where the unseen error is 0, and the 97.5 % quantile where it
    is the largest error times exp(`UNSEEN` * xi), at most that for which the ratio is 1. xi is Hill's estimate (1975) of the tail
    over the sqrt(inputs) largest errors. With the unseen error at its bound always, this is the bound of Gaffke (2005), for 0
    and 1 that of Clopper and Pearson.

    Parameters
    ----------
    errors, sizes : ndarray
        (inputs,) not negative; sizes that are all 0 count alike.
    ratio : float
        What was measured of all of them.
    counted : bool
        Whether errors are counts, so that there may be some where none was seen.

    Returns
    -------
    (float, float) or None
        None where there are fewer than two inputs, or no errors that are not counted.

    Examples
    --------
    >>> low, high = ratio_interval(np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4), 0.5)
    >>> low < 0.2 and 0.8 < high < 1.0
    True
    >>> ratio_interval(np.zeros(38), np.ones(38), 0.0, counted=True)[1] < 0.1
    True
    """
    count, total = len(errors), float(errors.sum())
    if count < 2 or not math.isfinite(total) or not math.isfinite(ratio) or (min(total, ratio) == 0.0 and not counted):
        return None  # errors with a ratio of 0 are rounding, too small to be told from none
    errors = errors * (ratio * count / total) if total > 0.0 else errors
    sizes = sizes * (count / sizes.sum()) if sizes.any() else np.ones(count)
    error_sums, size_sums, unseen_weights = _weighted_sums(errors, sizes)
    size_sums = size_sums + unseen_weights
    low = np.quantile(error_sums / size_sums, 0.025)
    high = np.quantile((error_sums + unseen_weights * _unseen_error(errors)) / size_sums, 0.975)
    return min(float(low), ratio), max(float(high), ratio)


def _unseen_error(errors: np.ndarray) -> float:
    """The error of the unseen input, of errors whose mean is the ratio."""
    ordered = np.sort(errors)[::-1]
    beyond = max(3, math.isqrt(len(ordered)))
    largest, threshold = float(ordered[0]), float(ordered[min(beyond, len(ordered) - 1)])
    bound = max(1.0, largest)
    if threshold == 0.0:
        return bound
    exponent = UNSEEN * float(np.log(ordered[:beyond] / threshold).mean())
    return min(bound, largest * math.exp(min(exponent, 700.0)))


def _weighted_sums(errors: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of errors and of sizes for `DRAWS` weightings, and the weight of the unseen input in each of them."""
    sums = np.zeros((2, DRAWS))
    for number, start in enumerate(range(0, len(errors), _CHUNK)):
        part = slice(start, start + _CHUNK)
        weights = _weights(number, len(errors[part]))
        sums += errors[part] @ weights, sizes[part] @ weights
    return sums[0], sums[1], np.random.default_rng(0).standard_exponential(DRAWS)


@lru_cache(maxsize=2)
def _weights(number: int, count: int) -> np.ndarray:
    """(count, draws): of one chunk of the inputs; the same for all outputs and candidates, which are then told apart alike."""
    return np.random.default_rng(1 + number).standard_exponential((count, DRAWS))
