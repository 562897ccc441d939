"""Blocks of neighbouring output positions of a convolution, with all that they need of the convolution before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.graph.elementwise_paths import ElementwisePath
from onnxmerge.statistics.unfold import Positions, Window, output_extents, patches_of, window_of

BLOCK_EXTENT = 8
"""Output positions of a block along each spatial axis: 8 x 8 behind a kernel of 3 x 3 need 10 x 10 of the producer's."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a block is.

    Attributes
    ----------
    first, second : Window
        Of the producer and of the consumer in the block.
    first_inputs, second_inputs : tuple of slice
        Positions of what they read.
    outputs : tuple of slice
        Positions of the consumer's outputs.
    """

    first: Window
    second: Window
    first_inputs: Positions
    second_inputs: Positions
    outputs: Positions

    def first_patches(self, values: np.ndarray, channels: NDArray[np.int64]) -> NDArray[np.float32]:
        """(samples, kernel positions * channels) of what the producer reads, (N, channels, *spatial)."""
        return _patches(values, self.first, channels, self.first_inputs)

    def second_patches(self, values: np.ndarray, channels: NDArray[np.int64]) -> NDArray[np.float32]:
        """The same of what the consumer reads."""
        return _patches(values, self.second, channels, self.second_inputs)


def drawn_block(path: ElementwisePath, first: tuple[int, ...], second: tuple[int, ...], seed: int) -> BlockPlace:
    """A block at random.

    Parameters
    ----------
    path : ElementwisePath
        Between two convolutions.
    first, second : tuple of int
        Shapes (N, channels, *spatial) of what the producer and the consumer read.
    seed : int
        Another block for each.
    """
    whole = []
    for layer, shape in ((path.producer, first), (path.consumer, second)):
        extents = output_extents(layer.node.attrs, shape, layer.kernel_shape)
        whole.append(window_of(layer.node.attrs, shape, layer.kernel_shape, (1, 1, *extents)))
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(max(1, extent - BLOCK_EXTENT + 1))) for extent in whole[1].extents]
    stops = [min(start + BLOCK_EXTENT, extent) for start, extent in zip(starts, whole[1].extents, strict=True)]
    outputs = tuple(map(slice, starts, stops))
    second_inputs, second_window = whole[1].block(outputs, second[2:])
    pool = path.pool or (1,) * len(second_inputs)
    written = tuple(slice(each.start * extent, each.stop * extent) for each, extent in zip(second_inputs, pool, strict=True))
    first_inputs, first_window = whole[0].block(written, first[2:])
    return BlockPlace(first_window, second_window, first_inputs, second_inputs, outputs)


def every_position(window: Window) -> Positions:
    """All outputs of a window."""
    return tuple(slice(0, None, 1) for _ in window.kernel)


def by_window(values: np.ndarray, pool: Sequence[int], reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """One value for each window of a pooling whose windows lie side by side.

    Parameters
    ----------
    values : ndarray of shape (N, *spatial, channels)
        The extents are multiples of those of the windows.
    pool : sequence of int
        Extents of a window along the spatial axes; () changes nothing.
    reduce : callable
        `np.sum`, `np.max` or the like.
    """
    for axis, extent in enumerate(pool, 1):
        values = reduce(values.reshape(*values.shape[:axis], -1, extent, *values.shape[axis + 1 :]), axis=axis + 1)
    return values


def repeated(values: np.ndarray, pool: Sequence[int]) -> np.ndarray:
    """Each value of (N, *spatial, channels) at all positions of its window."""
    for axis, extent in enumerate(pool, 1):
        values = np.repeat(values, extent, axis)
    return values


def _patches(values: np.ndarray, window: Window, channels: NDArray[np.int64], positions: Positions) -> NDArray[np.float32]:
    (found,) = patches_of(values[(slice(None), slice(None), *positions)], window, channels[np.newaxis], every_position(window))
    return np.asarray(found, np.float32)
