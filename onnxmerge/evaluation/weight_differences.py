"""How one constant of a node differs between two models, in words."""

import numpy as np

# Relative difference of one number that rounding explains, by dtype; the coarser of two counts
_ROUNDING, _DEFAULT_ROUNDING = {"float16": 2e-3, "float64": 1e-12}, 1e-5


def difference(before: np.ndarray | None, after: np.ndarray | None, name: str, rows_last: bool = False) -> str:
    """Describe how a constant differs.

    Parameters
    ----------
    before, after : ndarray or None
        The constant in both models; None where a model has none.
    name : str
        What it is called in the sentence, as "weight".
    rows_last : bool
        Whether output channels are on the last axis, not the first.

    Returns
    -------
    str
        As "the weight has the opposite sign"; empty where both are equal but for rounding.
    """
    if before is None or after is None:
        return "" if before is after else f"the {name} is {'new' if before is None else 'gone'}"
    if before.shape != after.shape:
        return f"the {name} was {_shape(before)} and is {_shape(after)}"
    if before.dtype.kind not in "biuf" or after.dtype.kind not in "biuf":
        return "" if np.array_equal(before, after) else f"the {name} differs"
    tolerance = max(_ROUNDING.get(array.dtype.name, _DEFAULT_ROUNDING) for array in (before, after))
    one, other = before.astype(np.float64), after.astype(np.float64)
    changed = ~np.isclose(other, one, rtol=tolerance, atol=0.0, equal_nan=True)
    if not changed.any():
        return ""
    if not np.isfinite(other[np.isfinite(one)]).all():
        return f"the {name} holds NaN or infinity"
    return f"the {name} {_describe(one, other, changed, tolerance, rows_last)}"


def _describe(one: np.ndarray, other: np.ndarray, changed: np.ndarray, tolerance: float, rows_last: bool) -> str:
    if np.allclose(other, -one, rtol=tolerance, atol=0.0):
        return "has the opposite sign"
    arrays = [np.moveaxis(each, -1, 0) if rows_last and each.ndim > 1 else each for each in (one, other, changed)]
    exchanged = _exchanged(arrays[0], arrays[1], arrays[2], tolerance)
    if exchanged:
        return exchanged
    moved = np.abs(other[changed] - one[changed]) / np.maximum(np.abs(one[changed]), 1e-30)
    low, high = float(moved.min()), float(moved.max())
    size = f"{high:.1%}" if high - low < 0.1 * high else f"{low:.1%} to {high:.1%}" if high < 100 else "more than a hundredfold"
    return f"differs in {int(changed.sum()):,} of {one.size:,} numbers, by {size}"


def _exchanged(one: np.ndarray, other: np.ndarray, changed: np.ndarray, tolerance: float) -> str:
    """'has its channels 0 and 3 exchanged', where rows only changed places; "" elsewhere."""
    misplaced = np.flatnonzero(changed.reshape(len(one), -1).any(axis=1)) if one.ndim else np.zeros(0, np.intp)
    if len(misplaced) < 2:
        return ""
    rows = [array[misplaced].reshape(len(misplaced), -1) for array in (one, other)]
    projection = np.random.default_rng(0).standard_normal(rows[0].shape[1])
    order = [np.argsort(array @ projection) for array in rows]
    if not np.allclose(rows[0][order[0]], rows[1][order[1]], rtol=tolerance, atol=0.0):
        return ""
    return f"has its channels {misplaced[0]} and {misplaced[1]} exchanged" if len(misplaced) == 2 else "has its channels permuted"


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape)) or "a single number"
