"""Windows of each channel, summed with weights or compared: what depthwise convolutions and poolings do, and its adjoint.

Channels come last, so that what numpy does for each position of a kernel runs along them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxmerge.statistics.unfold import Window

Singles = NDArray[np.float32]


def windowed(values: Singles, window: Window, weight: Singles, reduce: Callable[..., Any] = np.add) -> Singles:
    """One value for each window.

    Parameters
    ----------
    values : ndarray of shape (N, *spatial, channels)
    window : Window
        Its padding is read as zeros.
    weight : ndarray of shape (kernel size or 1, channels or 1)
        What values are multiplied with.
    reduce : callable
        `np.add`, or `np.maximum`.

    Returns
    -------
    ndarray of shape (N, *extents, channels)

    Examples
    --------
    >>> window = Window((2,), (2,), (1,), (0,), (0,), (2,))
    >>> windowed(np.array([1.0, 2.0, 3.0, 5.0], np.float32).reshape(1, 4, 1), window, np.ones((1, 1), np.float32)).reshape(-1)
    array([3., 8.], dtype=float32)
    """
    padding = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    padded = np.pad(values, padding) if any(map(any, padding)) else values
    found, piece = (np.empty((len(values), *window.extents, values.shape[-1]), np.float32) for _ in range(2))
    for number, bounds in enumerate(_bounds(window)):
        np.multiply(padded[bounds], weight[number % len(weight)], out=piece if number else found)
        if number:
            reduce(found, piece, out=found)
    return found


def windowed_adjoint(values: Singles, window: Window, weight: Singles, space: Sequence[int]) -> Singles:
    """The adjoint of `windowed` where it sums: (N, *space, channels) of (N, *extents, channels)."""
    reached = zip(space, window.before, window.after, strict=True)
    padded = np.zeros((len(values), *[sum(each) for each in reached], values.shape[-1]), np.float32)
    piece = np.empty(values.shape, np.float32)
    for number, bounds in enumerate(_bounds(window)):
        padded[bounds] += np.multiply(values, weight[number % len(weight)], out=piece)
    inner = (slice(before, before + extent) for before, extent in zip(window.before, space, strict=True))
    return padded[(slice(None), *inner)]


def _bounds(window: Window) -> list[tuple[slice, ...]]:
    """For each position of the kernel what it meets of the padded values (N, *spatial, channels)."""
    found = []
    for offset in np.ndindex(*window.kernel):
        axes = zip(offset, window.dilations, window.extents, window.strides, strict=True)
        bounds = (slice(at * apart, at * apart + (extent - 1) * step + 1, step) for at, apart, extent, step in axes)
        found.append((slice(None), *bounds))
    return found
