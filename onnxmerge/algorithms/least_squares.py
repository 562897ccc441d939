"""What replaces the removed channels: least squares on second moments.

For a consumer y = W x of which only the inputs s stay, the new weight V and bias b minimise

    E|y - V s - b|^2 + ridge * mean(diag A) * |V - V0|^2,   A = cov(s),   V0 the prior

so V = V0 + (A + ridge mean(diag A) I)^-1 (cov(s, y) - A V0^T), b = mean(y) - V mean(s). Then every row of V is scaled by
(std(y) / std(V s))^exponent: least squares shrinks what it cannot explain, and shrinkage adds up over layers. The prior is the
channel mixing x ~ Z s + c, fitted on the channels alone. s are the unfolded patches of the compressed prefix and y the outputs of
the reference, so that later layers correct what earlier ones lost (compare He, Zhang, Sun, "Channel Pruning for Accelerating Very
Deep Neural Networks", 2017).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxmerge.algorithms.moments import MomentSums
from onnxmerge.algorithms.sample_counts import FEW

Floats = NDArray[np.float64]

RIDGE = 1e-3
"""Pull towards the prior, relative to the mean variance of the inputs."""

OVERLAPPING_RIDGE = 0.5
"""Where samples are few and overlap, the ridge for one unknown a sample; in proportion to unknowns / samples otherwise.

VGG-16 at the widths of Kim et al. loses 0.6 points of accuracy with it, 0.9 with `RIDGE` alone.
"""

RIDGES = 10.0 ** np.arange(7)
"""Multiples of the ridge asked for that cross-validation tries where samples are few and independent."""

MIXING_RIDGE = 1e-3
"""As `RIDGE`, for the channel mixing, whose prior is zero."""

CORRECTION_EXPONENT = 0.5
"""Exponent of the variance correction; 0 leaves the least squares as they are. ResNet-56 at 50 %, no data: 85.1, not 83.8."""

CORRECTION_LIMIT = 2.0
"""The variance correction multiplies or divides a row by this at most: larger ratios come from outputs with hardly any signal."""

LARGEST_SYSTEM = 6144
"""Unknowns of one output above which the patch system is not built (about 1.2 GB while it is solved): the prior then stays."""

CONSTANT = 1e-12
"""An input whose variance is below this share of the mean variance is constant up to rounding: it keeps its prior weight."""

LEAST_SCALE = 1e-3
"""An output that a BatchNormalization multiplies with less than this gets no adjusted target: dividing by it makes noise."""


def mixing(covariance: ArrayLike, mean: ArrayLike, kept: ArrayLike, ridge: float = MIXING_RIDGE) -> tuple[Floats, Floats]:
    """Channel mixing: the least squares x ~ Z x[kept] + c over channels.

    Parameters
    ----------
    covariance : array_like of shape (n, n)
        Covariance of the channels.
    mean : array_like of shape (n,)
        Their means.
    kept : array_like of shape (k,)
        Indices of the channels that stay.
    ridge : float
        Pull of Z towards zero, relative to the mean variance of the kept channels.

    Returns
    -------
    Z : ndarray of shape (n, k)
        Its rows of kept channels are exactly the identity.
    c : ndarray of shape (n,)

    Examples
    --------
    The second channel is twice the first, and one more:

    >>> Z, c = mixing([[1.0, 2.0], [2.0, 4.0]], [3.0, 7.0], [0], ridge=0.0)
    >>> Z.round(6).tolist(), c.round(6).tolist()
    ([[1.0], [2.0]], [0.0, 1.0])
    """
    full, centre, chosen = np.asarray(covariance, np.float64), np.asarray(mean, np.float64), np.asarray(kept)
    others = np.setdiff1d(np.arange(len(full)), chosen)
    mixed = np.zeros((len(full), len(chosen)))
    mixed[chosen, np.arange(len(chosen))] = 1.0
    mixed[others] = _solve_ridge(full[np.ix_(chosen, chosen)], full[np.ix_(chosen, others)], ridge).T
    return mixed, centre - mixed @ centre[chosen]


def solve(
    moments: MomentSums,
    prior: ArrayLike,
    ridge: float = RIDGE,
    correction_exponent: float = CORRECTION_EXPONENT,
    independent: bool = True,
) -> tuple[Floats, Floats]:
    """The least squares of this module for one consumer.

    With fewer than `sample_counts.FEW` samples an unknown the ridge is raised: independent samples choose it by generalised
    cross-validation; overlapping patches of images, which cross-validation would take for more samples than they are, get one in
    proportion to unknowns / samples. Without that the result hangs on rounding: see the note.

    Parameters
    ----------
    moments : MomentSums
        x are the d kept (patch) inputs, y the o target outputs, with the reference's own bias if it has one.
    prior : array_like of shape (o, d)
        See `mixed_weight`. Constant inputs keep their prior weight.
    ridge : float
        Pull towards the prior, relative to the mean variance of the inputs; the least that is used.
    correction_exponent : float
        Of the variance correction, 0 to 1.
    independent : bool
        False where samples overlap, as the patches of a convolution do.

    Returns
    -------
    weight : ndarray of shape (o, d)
    bias : ndarray of shape (o,)

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> weight, bias = solve(MomentSums.of(x, 2.0 * x + 1.0), [[0.0]], ridge=0.0)
    >>> weight.round(6).tolist(), bias.round(6).tolist()
    ([[2.0]], [1.0])
    """
    covariance, start = moments.covariance(), np.asarray(prior, np.float64)
    gradient = covariance.xy - covariance.xx @ start.T
    unknowns = len(start.T)
    if moments.count < FEW * unknowns and not independent:
        ridge = max(ridge, OVERLAPPING_RIDGE * unknowns / moments.count)
    elif moments.count < FEW * unknowns:
        ridge = _cross_validated(covariance.xx, gradient, float(covariance.residual(start).sum()), moments.count, ridge)
    step = _solve_ridge(covariance.xx, gradient, ridge).T
    weight, pull = start + step, max(ridge, CONSTANT) * _live(covariance.xx)[0]
    explained = np.einsum("od,od->o", weight, covariance.xy.T - pull * step)  # A V^T = cov(s, y) - pull step^T: no product
    scale = variance_correction(covariance.variance_y, np.maximum(explained, 0.0), correction_exponent)
    corrected = weight * scale[:, None]
    return corrected, covariance.mean_y - corrected @ covariance.mean_x


def mixed_weight(weight: ArrayLike, mixed: ArrayLike) -> Floats:
    """The prior of a consumer: its weight, reading Z s in place of x.

    Parameters
    ----------
    weight : array_like of shape (o, n, *kernel)
    mixed : array_like of shape (n, k)
        Z, see `mixing`.

    Returns
    -------
    ndarray of shape (o, k, *kernel)
    """
    return np.moveaxis(np.tensordot(np.asarray(weight, np.float64), np.asarray(mixed, np.float64), (1, 0)), -1, 1)


def variance_correction(target: ArrayLike, reached: ArrayLike, exponent: float = CORRECTION_EXPONENT) -> Floats:
    """Factors for the rows of a weight that take the variances of its outputs towards their targets.

    (target / reached)^(exponent / 2), the ratio of standard deviations limited to `CORRECTION_LIMIT` both ways.

    Parameters
    ----------
    target, reached : array_like of shape (o,)
        Variances of the target outputs, and of what the weight gives.
    exponent : float
        0 corrects nothing, 1 all.

    Returns
    -------
    ndarray of shape (o,)
        1 where either variance is zero.

    Examples
    --------
    >>> variance_correction([2.25, 100.0, 0.0], [1.0, 1.0, 1.0], exponent=1.0)
    array([1.5, 2. , 1. ])
    """
    aimed, found = np.asarray(target, np.float64), np.asarray(reached, np.float64)
    usable = (aimed > 0.0) & (found > CONSTANT * aimed)
    ratio = np.sqrt(np.where(usable, aimed, 1.0) / np.where(usable, found, 1.0))
    return np.clip(ratio, 1.0 / CORRECTION_LIMIT, CORRECTION_LIMIT) ** exponent


def adjusted_target(
    output: NDArray[np.floating],
    reached: NDArray[np.floating],
    reference: NDArray[np.floating],
    scale: ArrayLike | None = None,
    rectified: bool = False,
) -> NDArray[np.floating]:
    """Target outputs of a consumer that goes through a scale and an addition before an activation.

    The target is output + (reference - reached) / scale, so that the consumer also corrects what the other branch lost. Where a
    ReLU follows and the reference is negative, any negative value will do: there min(reached, 0) takes the reference's place
    (Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015).

    Parameters
    ----------
    output : ndarray of shape (N, o, *space)
        What the consumer gives: the reference's at first, then that of the solved one.
    reached : ndarray of shape (N, o, *space)
        The pre-activation that this leads to in the compressed model: scale * output + offset + the other branch.
    reference : ndarray of shape (N, o, *space)
        The pre-activation of the reference.
    scale : array_like of shape (o,), optional
        Of a BatchNormalization behind the consumer; 1 where there is none. Below `LEAST_SCALE` the output is its own target.
    rectified : bool
        Whether a ReLU follows.

    Returns
    -------
    ndarray of shape (N, o, *space)
        In the dtype of `output`.

    Examples
    --------
    >>> adjusted_target(np.array([[1.0, 1.0]]), np.array([[2.0, -2.0]]), np.array([[3.0, -1.0]]), rectified=True)
    array([[2., 1.]])
    """
    if rectified:
        reference = np.where(reference > 0, reference, np.minimum(reached, 0))
    if scale is None:
        return output + (reference - reached)
    factor = np.asarray(scale, output.dtype)
    inverse = np.divide(1, factor, out=np.zeros_like(factor), where=np.abs(factor) > LEAST_SCALE)
    return np.asarray(output + (reference - reached) * inverse.reshape(-1, *[1] * (output.ndim - 2)))


def fits_in_memory(unknowns: int) -> bool:
    """Whether the patch system of so many inputs is solved; otherwise the channel mixing stays."""
    return unknowns <= LARGEST_SYSTEM


def _cross_validated(matrix: Floats, right: Floats, start: float, count: float, least: float) -> float:
    """The ridge from `least` on with the lowest error by generalised cross-validation.

    residual / (1 - freedom / count)^2, freedom = trace(A (A + ridge)^-1) + 1: Golub, Heath, Wahba, "Generalized Cross-Validation
    as a Method for Choosing a Good Ridge Parameter", 1979. start: the residual of the prior.
    """
    mean, live = _live(matrix)
    inner, gradient = matrix[np.ix_(live, live)], right[live]
    errors: list[float] = []
    for ridge in least * RIDGES if len(live) and least > 0.0 else ():
        inverse = np.linalg.inv(inner + ridge * mean * np.eye(len(live)))
        step = inverse @ gradient
        residual = max(start - float(np.sum(step * (2.0 * gradient - inner @ step))), 0.0)
        remaining = 1.0 - (len(live) - ridge * mean * float(np.trace(inverse)) + 1.0) / count
        errors.append(residual / remaining**2 if remaining > 0.0 else np.inf)
        if len(errors) > 2 and errors[-3] < errors[-2] < errors[-1]:
            break
    return least * float(RIDGES[int(np.argmin(errors))]) if errors else least


def _live(matrix: Floats) -> tuple[float, NDArray[np.int64]]:
    """The mean variance of a covariance matrix, and the indices of inputs that are not constant."""
    variance = np.diag(matrix)
    mean = max(float(variance.mean()) if len(variance) else 0.0, 0.0)
    return mean, np.flatnonzero(variance > CONSTANT * mean) if mean > 0.0 else np.zeros(0, np.int64)


def _solve_ridge(matrix: Floats, right: Floats, ridge: float) -> Floats:
    """(matrix + ridge * mean(diag) I)^-1 right, with rows of constant inputs zero."""
    mean, live = _live(matrix)
    solution = np.zeros_like(right)
    if not len(live):
        return solution
    regular = matrix[np.ix_(live, live)]
    regular[np.diag_indices_from(regular)] += max(ridge, CONSTANT) * mean
    try:
        solution[live] = np.linalg.solve(regular, right[live])
    except np.linalg.LinAlgError:
        solution[live] = np.linalg.lstsq(regular, right[live], rcond=None)[0]
    return solution
