"""What replaces the removed channels: least squares on second moments.

For a consumer y = W x of which only the inputs s stay, the new weight and bias minimise

    E|y - V s - b|^2 + ridge * mean(diag A) * |V - V0|^2,   A = cov(s),   V0 the prior

so V = V0 + (A + ridge mean(diag A) I)^-1 (cov(s, y) - A V0^T), b = mean(y) - V mean(s); then every row of V is scaled by
(std(y) / std(V s))^correction_exponent, because least squares shrinks what it cannot explain, and that adds up over layers.
The prior is the channel mixing x ~ Z s + c, fitted on the channels alone. s are the unfolded patches of the compressed
prefix and y the outputs of the reference, so that later layers repair what earlier ones lost (compare He, Zhang, Sun,
"Channel Pruning for Accelerating Very Deep Neural Networks", 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.moments import MomentSums
from onnxmerge.algorithms.sample_counts import FEW

Floats = NDArray[np.float64]

RIDGE = 1e-3
"""Pull towards the prior, relative to the mean variance of the inputs."""

OVERLAPPING_RIDGE = 0.5
"""Then, where samples overlap: the ridge is at least this for one unknown a sample, and more in proportion."""

RIDGES = 10.0 ** np.arange(7)
"""What is tried then, as multiples of the ridge that was asked for."""

MIXING_RIDGE = 1e-3
"""The same for the channel mixing, towards zero."""

CORRECTION_EXPONENT = 0.5
"""Exponent of the variance correction; 0 leaves the least squares as they are."""

CORRECTION_LIMIT = 2.0
"""A row is never scaled by more than this, nor by less than its inverse."""

LARGEST_SYSTEM = 6144
"""Unknowns per output above which the patch system is not built (about 1.2 GB while it is solved): channel mixing then stays."""

DEAD = 1e-12
"""An input whose variance is below this share of the mean variance is constant: it keeps its prior weight."""

LEAST_SCALE = 1e-3
"""A BatchNormalization scale below this cannot be aimed through."""


def mixing(covariance: ArrayLike, mean: ArrayLike, kept: ArrayLike, ridge: float = MIXING_RIDGE) -> tuple[Floats, Floats]:
    """Z (n, k) and c (n,) with x ~ Z x[kept] + c, least squares; the rows of kept channels are exactly the identity.

    covariance: (n, n) and mean: (n,) of the channels; kept: (k,) indices; ridge: relative to the mean variance of the kept ones.
    """
    full, centre, chosen = np.asarray(covariance, np.float64), np.asarray(mean, np.float64), np.asarray(kept)
    inner = full[np.ix_(chosen, chosen)]
    mixed = _solve_ridge(inner, full[chosen], ridge).T
    mixed[chosen] = np.eye(len(chosen))
    return mixed, centre - mixed @ centre[chosen]


def solve(
    moments: MomentSums,
    prior: ArrayLike,
    ridge: float = RIDGE,
    correction_exponent: float = CORRECTION_EXPONENT,
    independent: bool = True,
) -> tuple[Floats, Floats]:
    """Weight (o, d) and bias (o,): the weighted least squares of the module's head.

    moments: x are the kept (patch) inputs, y the outputs wanted, the reference's own bias included if it has one.
    prior: (o, d), see `mixed_weight`. Constant inputs keep their prior weight. ridge: the least; with few samples an unknown it
    is chosen by cross-validation, or, where samples are not independent (overlapping patches of an image, which cross-validation
    would take for more than they are), raised in proportion to unknowns / samples.
    """
    covariance, start = moments.covariance(), np.asarray(prior, np.float64)
    gradient = covariance.xy - covariance.xx @ start.T
    unknowns = len(start.T)
    if moments.count < FEW * unknowns and not independent:
        ridge = max(ridge, OVERLAPPING_RIDGE * unknowns / moments.count)
    elif moments.count < FEW * unknowns:
        ridge = _cross_validated(covariance.xx, gradient, float(covariance.residual(start).sum()), moments.count, ridge)
    weight = start + _solve_ridge(covariance.xx, gradient, ridge).T
    scale = variance_correction(covariance.variance_y, covariance.explained(weight), correction_exponent)
    corrected = weight * scale[:, None]
    return corrected, covariance.mean_y - corrected @ covariance.mean_x


def mixed_weight(weight: ArrayLike, mixed: ArrayLike) -> Floats:
    """The prior of a consumer: weight (o, n, *kernel) that reads Z s instead of x, (o, k, *kernel); mixed is Z (n, k)."""
    return np.moveaxis(np.tensordot(np.asarray(weight, np.float64), np.asarray(mixed, np.float64), (1, 0)), -1, 1)


def variance_correction(wanted: ArrayLike, reached: ArrayLike, correction_exponent: float = CORRECTION_EXPONENT) -> Floats:
    """(o,) factors for rows: (wanted / reached variance)^(correction_exponent / 2), limited; 1 where either is zero."""
    target, found = np.asarray(wanted, np.float64), np.asarray(reached, np.float64)
    usable = (target > 0.0) & (found > DEAD * target)
    ratio = np.sqrt(np.where(usable, target, 1.0) / np.where(usable, found, 1.0))
    return np.clip(ratio, 1.0 / CORRECTION_LIMIT, CORRECTION_LIMIT) ** correction_exponent


def adjusted_target(
    output: NDArray[np.floating],
    reached: NDArray[np.floating],
    wanted: NDArray[np.floating],
    scale: ArrayLike | None = None,
    rectified: bool = False,
) -> NDArray[np.floating]:
    """Targets (N, o, *space), dtype of output, for a consumer whose output goes through a scale and joins before an activation.

    output: what the consumer gives (N, o, *space); reached: the pre-activation this leads to, scale * output + shift + the other
    branches of the compressed model; wanted: the reference's. The target is output + (wanted - reached) / scale, so that the
    consumer also makes good what the other branches lost; an output with a vanishing scale is left. rectified: a ReLU follows,
    and where wanted is negative any negative value will do (Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks
    for Classification and Detection", 2015): there min(reached, 0) is wanted. First from the reference's output, then the solved.
    """
    if rectified:
        wanted = np.where(wanted > 0, wanted, np.minimum(reached, 0))
    if scale is None:
        return output + (wanted - reached)
    factor = np.asarray(scale, output.dtype)
    inverse = np.divide(1, factor, out=np.zeros_like(factor), where=np.abs(factor) > LEAST_SCALE)
    target: NDArray[np.floating] = output + (wanted - reached) * inverse.reshape(-1, *[1] * (output.ndim - 2))
    return target


def fits_in_memory(unknowns: int) -> bool:
    """Whether the patch system of so many inputs is solved; otherwise channel mixing stays."""
    return unknowns <= LARGEST_SYSTEM


def _cross_validated(matrix: Floats, right: Floats, start: float, count: float, least: float) -> float:
    """The ridge from `least` on with the lowest error by generalised cross-validation (Golub, Heath, Wahba 1979).

    That is residual / (1 - freedom / count)^2, freedom = trace(A (A + ridge)^-1) + 1; start: the residual without any step.
    """
    mean = float(np.diag(matrix).mean())
    live = np.flatnonzero(np.diag(matrix) > DEAD * mean) if mean > 0.0 else np.zeros(0, np.int64)
    inner, gradient = matrix[np.ix_(live, live)], right[live]
    errors: list[float] = []
    for ridge in least * RIDGES if len(live) and least > 0.0 else ():
        inverse = np.linalg.inv(inner + ridge * mean * np.eye(len(live)))
        step = inverse @ gradient
        residual = max(start - float(np.sum(step * (2.0 * gradient - inner @ step))), 0.0)
        left = 1.0 - (len(live) - ridge * mean * float(np.trace(inverse)) + 1.0) / count
        errors.append(residual / left**2 if left > 0.0 else np.inf)
        if len(errors) > 2 and errors[-3] < errors[-2] < errors[-1]:
            break
    return least * float(RIDGES[int(np.argmin(errors))]) if errors else least


def _solve_ridge(matrix: Floats, right: Floats, ridge: float) -> Floats:
    """(matrix + ridge * mean(diag) I)^-1 right, with rows of constant inputs zero."""
    variance = np.diag(matrix)
    mean = max(float(variance.mean()) if len(variance) else 0.0, 0.0)
    live = np.flatnonzero(variance > DEAD * mean) if mean > 0.0 else np.zeros(0, np.int64)
    solution = np.zeros_like(right)
    if not len(live):
        return solution
    regular = matrix[np.ix_(live, live)]
    regular[np.diag_indices_from(regular)] += max(ridge, DEAD) * mean
    try:
        solution[live] = np.linalg.solve(regular, right[live])
    except np.linalg.LinAlgError:
        solution[live] = np.linalg.lstsq(regular, right[live], rcond=None)[0]
    return solution
