"""What the output of a layer should be, so that a sum with a branch that has changed is what it was."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEAST_SCALE = 1e-3
"""An output that a BatchNormalization multiplies with less than this gets no adjusted target: dividing by it makes noise."""


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
    change = np.subtract(reference, reached)
    if rectified:
        np.copyto(change, np.minimum(0, -reached), where=reference <= 0)
    if scale is not None:
        factor = np.asarray(scale, output.dtype)
        inverse = np.divide(1, factor, out=np.zeros_like(factor), where=np.abs(factor) > LEAST_SCALE)
        change *= inverse.reshape(-1, *[1] * (output.ndim - 2))
    return np.asarray(np.add(change, output, out=change))
