"""Blocks of neighbouring output positions of a convolution, with all that they need of the convolution that begins its path."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxmerge.graph.channel_paths import ChannelPath
from onnxmerge.statistics.unfold import Positions, Window, output_extents, patches_of, window_of

BLOCK_EXTENT = 8
"""Output positions of a block along each spatial axis: 8 x 8 behind a kernel of 3 x 3 need 10 x 10 of the producer's."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a block is.

    Attributes
    ----------
    windows : tuple of Window
        Of the producer, of the stages between, and of the consumer, in the block.
    first_inputs, last_inputs : tuple of slice
        Positions of what producer and consumer read.
    outputs : tuple of slice
        Positions of the consumer's outputs.
    """

    windows: tuple[Window, ...]
    first_inputs: Positions
    last_inputs: Positions
    outputs: Positions

    def first_patches(self, values: np.ndarray, channels: NDArray[np.int64]) -> NDArray[np.float32]:
        """(samples, kernel positions * channels) of what the producer reads, (N, channels, *spatial)."""
        return _patches(values, self.windows[0], channels, self.first_inputs)

    def last_patches(self, values: np.ndarray, channels: NDArray[np.int64]) -> NDArray[np.float32]:
        """The same of what the consumer reads."""
        return _patches(values, self.windows[-1], channels, self.last_inputs)


def drawn_block(path: ChannelPath, shape: tuple[int, ...], seed: int) -> BlockPlace:
    """A block at random.

    Parameters
    ----------
    path : ChannelPath
        Between two convolutions.
    shape : tuple of int
        Shape (N, channels, *spatial) of what the producer reads.
    seed : int
        Another block for each.
    """
    whole, spaces = list[Window](), [tuple(shape[2:])]
    for attributes, kernel in _windows(path):
        read = (1, 1, *spaces[-1])
        spaces.append(output_extents(attributes, read, kernel))
        whole.append(window_of(attributes, read, kernel, (1, 1, *spaces[-1])))
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(max(1, extent - BLOCK_EXTENT + 1))) for extent in spaces[-1]]
    stops = [min(start + BLOCK_EXTENT, extent) for start, extent in zip(starts, spaces[-1], strict=True)]
    positions, windows = [tuple(map(slice, starts, stops))], list[Window]()
    for each, space in zip(reversed(whole), reversed(spaces[:-1]), strict=True):
        inputs, window = each.block(positions[0], space)
        positions.insert(0, inputs)
        windows.insert(0, window)
    return BlockPlace(tuple(windows), positions[0], positions[-2], positions[-1])


def every_position(window: Window) -> Positions:
    """All outputs of a window."""
    return tuple(slice(0, None, 1) for _ in window.kernel)


def _windows(path: ChannelPath) -> list[tuple[Mapping[str, Any], tuple[int, ...]]]:
    """Attributes and kernel of all that takes windows, from the producer on."""
    between = [(stage.window.attributes, stage.window.kernel) for stage in path.stages if stage.window is not None]
    first, last = ((layer.node.attrs, layer.kernel_shape) for layer in (path.producer, path.consumer))
    return [first, *between, last]


def _patches(values: np.ndarray, window: Window, channels: NDArray[np.int64], positions: Positions) -> NDArray[np.float32]:
    (found,) = patches_of(values[(slice(None), slice(None), *positions)], window, channels[np.newaxis], every_position(window))
    return np.asarray(found, np.float32)
