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

from onnxmerge.algorithms.moments import Covariance
from onnxmerge.algorithms.sample_counts import FEW
from onnxmerge.algorithms.symmetric import Cholesky

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

SAFE_RIDGE = 1e-5
"""From this ridge on the matrix of a solve is positive definite: rounding moves eigenvalues of float32 products by 4e-6."""


def mixing(covariance: ArrayLike, kept: ArrayLike, ridge: float = MIXING_RIDGE) -> Floats:
    """Channel mixing: the least squares x[removed] ~ Z x[kept] + c over channels.

    Parameters
    ----------
    covariance : array_like of shape (n, n)
        Covariance of the channels.
    kept : array_like of shape (k,)
        Indices of the channels that stay.
    ridge : float
        Pull of Z towards zero, relative to the mean variance of the kept channels.

    Returns
    -------
    ndarray of shape (n - k, k)
        Z, for the removed channels in ascending order.

    Examples
    --------
    The second channel is twice the first:

    >>> mixing([[1.0, 2.0], [2.0, 4.0]], [0], ridge=0.0).round(6).tolist()
    [[2.0]]
    """
    full, chosen = np.asarray(covariance), np.asarray(kept)
    removed = np.setdiff1d(np.arange(len(full)), chosen)
    mixed = np.zeros((len(removed), len(chosen)))
    mean_variance, live = _live(np.diag(full)[chosen].astype(np.float64))
    if len(live):
        chosen = chosen[live]
        factor, _ = _factored(full[np.ix_(chosen, chosen)].astype(np.float64), ridge, mean_variance)
        mixed[:, live] = factor.solve(full[np.ix_(chosen, removed)].astype(np.float64)).T
    return mixed


class RidgeSystem:
    """The least squares of this module for one consumer: factored once, then solved for one target after the other.

    With fewer than `sample_counts.FEW` samples an unknown the ridge is raised: independent samples choose it by generalised
    cross-validation; overlapping patches of images, which cross-validation would take for more samples than they are, get one in
    proportion to unknowns / samples. Without that the result hangs on rounding: see the note of `OVERLAPPING_RIDGE`.

    Parameters
    ----------
    inputs : ndarray of shape (d, d)
        A, the covariance of the kept (patch) inputs. Overwritten.
    count : float
        Number of samples.
    prior : array_like of shape (o, d)
        See `mixed_weight`. Constant inputs keep their prior weight.
    ridge : float
        Pull towards the prior, relative to the mean variance of the inputs; the least that is used.
    independent : bool
        False where samples overlap, as the patches of a convolution do.

    Examples
    --------
    >>> from onnxmerge.algorithms.moments import MomentSums
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> target = MomentSums.of(x, 2.0 * x + 1.0).covariance()
    >>> weight, bias = RidgeSystem(target.xx, target.count, [[0.0]], ridge=0.0).solve(target)
    >>> weight.round(6).tolist(), bias.round(6).tolist()
    ([[2.0]], [1.0])
    """

    def __init__(self, inputs: Floats, count: float, prior: ArrayLike, ridge: float = RIDGE, independent: bool = True) -> None:
        self.weight, self._count, self._ridge, self._independent = np.asarray(prior, np.float64), count, ridge, independent
        self._mean_variance, self._live = _live(np.diag(inputs))
        self._product = inputs @ self.weight.T  # A V^T of the weight
        every = len(self._live) == len(inputs)
        self._matrix = inputs if every else inputs[np.ix_(self._live, self._live)]
        self._factor: Cholesky | None = None
        self._pull = 0.0

    def solve(self, target: Covariance, correction_exponent: float = CORRECTION_EXPONENT) -> tuple[Floats, Floats]:
        """Fit the weight to a target, pulled towards what it was before: the prior at first, then the last solution.

        Parameters
        ----------
        target : Covariance
            With y the o target outputs, with the reference's own bias if it has one; `xx` is not read.
        correction_exponent : float
            Of the variance correction, 0 to 1.

        Returns
        -------
        weight : ndarray of shape (o, d)
        bias : ndarray of shape (o,)
        """
        step = np.zeros_like(target.xy)
        if len(self._live):
            gradient = target.xy - self._product
            if self._factor is None:
                self._factorise(gradient[self._live], target)
            assert self._factor is not None
            step[self._live] = self._factor.solve(gradient[self._live])
        weight, self._product = self.weight + step.T, target.xy - self._pull * step
        explained = np.einsum("od,do->o", weight, self._product)
        scale = variance_correction(target.variance_y, np.maximum(explained, 0.0), correction_exponent)
        self._product *= scale
        self.weight = weight * scale[:, None]
        return self.weight, target.mean_y - self.weight @ target.mean_x

    def residual(self, target: Covariance) -> Floats:
        """(o,) variance of y - V s for the weight V that was found last; its part that a ridge leaves in counts too."""
        crossed = np.einsum("od,do->o", self.weight, target.xy)
        explained = 2.0 * crossed - np.einsum("od,do->o", self.weight, self._product)
        return np.asarray(np.maximum(target.variance_y - explained, 0.0))

    def regression(self, crossed: Floats) -> Floats:
        """(d, o) the weight, transposed, of a least squares without a prior; crossed (d, o): cov(s, y) of other targets y."""
        found = np.zeros_like(crossed)
        if self._factor is not None:
            found[self._live] = self._factor.solve(crossed[self._live])
        return found

    def _factorise(self, gradient: Floats, target: Covariance) -> None:
        """Choose the ridge and factor A + ridge mean(diag A) I; gradient (live d, o) of the prior."""
        unknowns, ridge = self.weight.shape[1], self._ridge
        if self._count < FEW * unknowns and self._independent and ridge > 0.0:
            cross = 2.0 * np.einsum("od,do->o", self.weight, target.xy) - np.einsum("od,do->o", self.weight, self._product)
            start = float(np.maximum(target.variance_y - cross, 0.0).sum())
            self._factor, self._pull = self._cross_validated(gradient, start)
            return
        if self._count < FEW * unknowns and not self._independent:
            ridge = max(ridge, OVERLAPPING_RIDGE * unknowns / self._count)
        self._factor, self._pull = _factored(self._matrix, ridge, self._mean_variance)

    def _cross_validated(self, gradient: Floats, start: float) -> tuple[Cholesky, float]:
        """The factor and the pull with the lowest error by generalised cross-validation; start: the residual of the prior.

        residual / (1 - freedom / count)^2, freedom = trace(A (A + pull)^-1) + 1: Golub, Heath, Wahba, "Generalized
        Cross-Validation as a Method for Choosing a Good Ridge Parameter", 1979. At most `RIDGES` factors: a decomposition into
        eigenvalues, which one of would do, takes as long as ten of them.
        """
        errors: list[float] = []
        for ridge in self._ridge * RIDGES:
            factor, pull = _factored(self._matrix.copy(), float(ridge), self._mean_variance)
            step = factor.solve(gradient)
            residual = max(start - float(np.vdot(step, gradient + pull * step)), 0.0)
            remaining = 1.0 - (len(step) - pull * factor.trace_of_inverse() + 1.0) / self._count
            errors.append(residual / remaining**2 if remaining > 0.0 else np.inf)
            if errors[-1] <= min(errors):
                best = factor, pull
            if len(errors) > 2 and errors[-3] < errors[-2] < errors[-1]:
                break
        return best


def mixed_weight(weight: ArrayLike, kept: ArrayLike, mixed: ArrayLike) -> Floats:
    """The prior of a consumer: its weight, reading Z x[kept] in the place of removed inputs.

    Parameters
    ----------
    weight : array_like of shape (o, n, *kernel)
    kept : array_like of shape (k,)
        Indices of the inputs that stay, ascending.
    mixed : array_like of shape (n - k, k)
        Z, see `mixing`.

    Returns
    -------
    ndarray of shape (o, k, *kernel)
    """
    given, chosen = np.asarray(weight, np.float64), np.asarray(kept)
    removed = np.delete(given, chosen, 1)
    return given[:, chosen] + np.moveaxis(np.tensordot(removed, np.asarray(mixed, np.float64), (1, 0)), -1, 1)


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


def fits_in_memory(unknowns: int) -> bool:
    """Whether the patch system of so many inputs is solved; otherwise the channel mixing stays."""
    return unknowns <= LARGEST_SYSTEM


def _live(variance: Floats) -> tuple[float, NDArray[np.int64]]:
    """The mean of variances, and the indices of inputs that are not constant."""
    mean = max(float(variance.mean()) if len(variance) else 0.0, 0.0)
    return mean, np.flatnonzero(variance > CONSTANT * mean) if mean > 0.0 else np.zeros(0, np.int64)


def _factored(matrix: Floats, ridge: float, mean_variance: float) -> tuple[Cholesky, float]:
    """The factor of a matrix, overwritten, plus ridge times the mean variance on its diagonal, and what was added.

    Where rounding leaves that indefinite more is added, until it is not.
    """
    spare = matrix.copy() if ridge < SAFE_RIDGE else matrix
    pull = max(ridge, CONSTANT) * mean_variance
    while True:
        matrix[np.diag_indices_from(matrix)] += pull
        try:
            return Cholesky(matrix), pull
        except np.linalg.LinAlgError:
            if ridge >= SAFE_RIDGE or pull > mean_variance:
                raise
            matrix[:], pull = spare, 10.0 * max(pull, np.finfo(float).eps * mean_variance)
