"""How far a ratio of sums over inputs may be off, had other inputs of the same kind been drawn.

Errors of single inputs have long tails: of a sure classifier most inputs change by a millionth and a few altogether, and what
an error is made of may not be among a few dozen inputs at all. So an input that was not seen is added to those that were.
"""

import math
from functools import lru_cache

import numpy as np

DRAWS = 1000
"""Weightings of the inputs that are drawn."""
MOST_WEIGHTS = 1 << 12
"""Inputs from which on several, side by side, have a weight in common: the tail of so many is known."""
UNSEEN = 2.0
"""Minus the logarithm of the chance, in units of 1 / inputs, with which an error exceeds that of the unseen input. Of 20 variants
of five networks, each judged on 32, 64 and 128 of 1,200 to 1,800 inputs, the 95 % intervals of the fidelity of scores held the
true figure in 94 to 100 % of the draws, by the delta method without an unseen input in 83 to 98 %. Those of probabilities and of
changed decisions held it in 90 to 100 % by the tail, by the delta method in 46 to 98 %, and in 96 to 100 % with the bound."""


def ratio_interval(
    errors: np.ndarray, sizes: np.ndarray, ratio: float, *, is_share: bool = False, counted: bool = False
) -> tuple[float, float] | None:
    """The 95 % interval of a ratio of sums, sum(errors) / sum(sizes) but for a constant factor.

    The Bayesian bootstrap (Rubin 1981) with one more input: the inputs, and the unseen one, get random weights that are uniform
    on the simplex, and the ends are the 2.5 % quantile of the ratio where the unseen error is 0, and the 97.5 % quantile where it
    is the largest error times exp(`UNSEEN` * xi), at most that for which the ratio is 1. xi is Hill's estimate (1975) of the tail
    over the sqrt(inputs) largest errors: it counts on errors of the kinds that were seen. Of a share, where an input may change
    altogether though none did, the unseen error is that bound, which makes no assumption: the bound of Gaffke (2005), for 0 and 1
    that of Clopper and Pearson.

    Parameters
    ----------
    errors, sizes : ndarray
        (inputs,) not negative; sizes that are all 0 count alike.
    ratio : float
        What was measured of all of them.
    is_share : bool
        Whether an input may be lost as a whole, as decisions and probabilities are.
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
    >>> 0.09 < ratio_interval(np.full(38, 1e-6), np.ones(38), 1e-6, is_share=True)[1] < 0.1
    True
    """
    count, total = len(errors), float(errors.sum())
    if count < 2 or not math.isfinite(total) or not math.isfinite(ratio):
        return None
    if not (counted and total == 0.0) and (total == 0.0 or ratio == 0.0):  # where the ratio is 0 errors are rounding
        return None
    errors = errors * (ratio * count / total) if total > 0.0 else errors
    sizes = sizes * (count / sizes.sum()) if sizes.any() else np.ones(count)
    bound = max(1.0, float(errors.max()))
    unseen_error = bound if is_share or counted else min(bound, _tail_error(errors))
    together = -(-count // MOST_WEIGHTS)
    parts = [np.add.reduceat(each, np.arange(0, count, together)) for each in (errors, sizes)]
    weights = _weights(len(parts[0]) + 1)
    error_sums, size_sums = (part @ weights[1:] for part in parts)
    size_sums = size_sums + weights[0]
    low = np.quantile(error_sums / size_sums, 0.025)
    high = np.quantile((error_sums + weights[0] * unseen_error) / size_sums, 0.975)
    return min(float(low), ratio), max(float(high), ratio)


def _tail_error(errors: np.ndarray) -> float:
    """The error of the unseen input by the tail of those that were seen; infinite where few have any."""
    ordered = np.sort(errors)[::-1]
    beyond = max(3, math.isqrt(len(ordered)))
    threshold = float(ordered[min(beyond, len(ordered) - 1)])
    if threshold == 0.0:
        return math.inf
    exponent = UNSEEN * float(np.log(ordered[:beyond] / threshold).mean())
    return float(ordered[0]) * math.exp(min(exponent, 700.0))


@lru_cache(maxsize=2)
def _weights(count: int) -> np.ndarray:
    """(count, draws), not normalised; the same for all outputs and candidates, which are then told apart alike."""
    return np.random.default_rng(1).standard_exponential((count, DRAWS))
