"""A basis of fewer channels for the product of two factors: logits = q . k of an attention.

Over pairs of positions E (q . k - q' . k')^2 with q' = A^T q, k' = B^T k is least for the leading singular vectors of Q K^T.
With C = R^T R the covariance of k and M the second moments of q these are the eigenvectors V of R M R^T:

    A = R^T V,  B = R^-1 V,  what is lost: the sum of the eigenvalues that are left out.

No choice of channels loses less. A shift of all logits of a query changes nothing behind a Softmax, so that k is centred.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.elimination import DAMPING

Floats = NDArray[np.float64]


class ProductBasis(NamedTuple):
    """Maps of both factors, (k, k) float64 with a new channel in each column, and the share of each, the largest first."""

    query: Floats
    key: Floats
    share: Floats


def product_basis(query_moments: Floats, key_covariance: Floats, damping: float = DAMPING) -> ProductBasis:
    """The new channels of a product, of which the first ones are to be kept.

    Parameters
    ----------
    query_moments : ndarray of shape (k, k)
        Second moments of one factor.
    key_covariance : ndarray of shape (k, k)
        Covariance of the other.
    damping : float
        Share of its mean variance that every channel of the second factor is taken to have besides.

    Returns
    -------
    ProductBasis
        The channels as they are, of which none counts, where the logits are those of a constant.

    Examples
    --------
    >>> basis = product_basis(np.diag([1.0, 4.0]), np.diag([1.0, 9.0]), damping=0.0)
    >>> basis.share.round(3).tolist(), (basis.query @ basis.key.T).round(6).tolist()
    ([0.973, 0.027], [[1.0, 0.0], [0.0, 1.0]])
    """
    count = len(key_covariance)
    if not np.sum(query_moments * key_covariance) > 0.0:
        return ProductBasis(np.eye(count), np.eye(count), np.zeros(count))
    level = float(np.trace(key_covariance)) / count
    root = np.linalg.cholesky(key_covariance + max(damping, 1e-12) * level * np.eye(count)).T
    values, vectors = np.linalg.eigh(root @ query_moments @ root.T)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    query, key = root.T @ vectors, np.linalg.solve(root, vectors)
    sign = np.sign(query[np.abs(query).argmax(0), np.arange(count)])  # a channel that is nearly an old one has its sign
    scale = sign * np.maximum(values, 1e-6 * max(float(values[0]), np.finfo(float).tiny)) ** -0.25  # both factors alike in size
    return ProductBasis(query * scale, key / scale, values / max(float(values.sum()), np.finfo(float).tiny))
