"""Samples of a consumer: rows of a matrix product, or the patches that a convolution reads.

A consumer is looked at as a linear map of samples: y (samples, outputs) = x (samples, inputs) W^T + b. For a convolution a sample
is one output position and x its patch, laid out (position in the kernel, channel); elsewhere it is one row. Padding is part of a
patch, as zeros. Where positions are more than enough, every so many-th one is taken, from another offset in every batch: each
position is as likely as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.sample_counts import enough_samples

Positions = tuple[slice, ...]
"""Which positions are taken along each spatial axis, or which rows."""


@dataclass(frozen=True)
class Window:
    """The positions that a convolution reads.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
        One value for each spatial axis.
    before, after : tuple of int
        Padding in front of and behind each spatial axis.
    extents : tuple of int
        Output positions along each spatial axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extents: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads the input of its own position alone."""
        whole = (*self.kernel, *self.strides, *self.before, *self.after)
        return whole == (1,) * 2 * len(self.kernel) + (0,) * 2 * len(self.kernel)

    def block(self, outputs: Positions, input_extents: Sequence[int]) -> tuple[Positions, Window]:
        """The part of the input that neighbouring outputs read, and the window of it.

        Parameters
        ----------
        outputs : tuple of slice
            Outputs from start to stop along each spatial axis.
        input_extents : sequence of int
            Of the whole input.
        """
        inputs, before, after = [], [], []
        for axis, (each, extent) in enumerate(zip(outputs, input_extents, strict=True)):
            first = each.start * self.strides[axis] - self.before[axis]
            stop = (each.stop - 1) * self.strides[axis] - self.before[axis] + (self.kernel[axis] - 1) * self.dilations[axis] + 1
            inputs.append(slice(max(first, 0), min(stop, extent)))
            before.append(max(-first, 0))
            after.append(max(stop - extent, 0))
        extents = tuple(each.stop - each.start for each in outputs)
        return tuple(inputs), Window(self.kernel, self.strides, self.dilations, tuple(before), tuple(after), extents)


def rows_of(tensor: np.ndarray, axis: int) -> NDArray[np.float32]:
    """One axis of a tensor last and all others flattened, (samples, size of the axis).

    Parameters
    ----------
    tensor : ndarray
        Any tensor.
    axis : int
        The axis of inputs or outputs; `tensor.ndim` for a tensor that has none, of which every number is a sample.
    """
    whole = tensor[..., np.newaxis] if axis == tensor.ndim else np.moveaxis(tensor, axis, -1)
    return whole.reshape(-1, whole.shape[-1]).astype(np.float32, copy=False)


def patches_of(x: np.ndarray, window: Window, channels: NDArray[np.int64], positions: Positions) -> NDArray[np.float32]:
    """Unfold the input of a convolution into patches (im2col).

    Parameters
    ----------
    x : ndarray of shape (N, channels in all, *spatial)
        The input.
    window : Window
        What the convolution reads.
    channels : ndarray of shape (groups, channels), int
        The channels that each group of the convolution reads.
    positions : tuple of slice
        Which outputs are taken along each spatial axis.

    Returns
    -------
    ndarray of shape (groups, samples, kernel positions * channels)
    """
    groups, count = channels.shape
    taken = [range(extent)[each] for extent, each in zip(window.extents, positions, strict=True)]
    padding = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
    padded = np.pad(x[:, channels.reshape(-1)].astype(np.float32, copy=False), padding)
    patches = np.empty((groups, len(x), *map(len, taken), int(np.prod(window.kernel)), count), np.float32)
    for number, offset in enumerate(np.ndindex(*window.kernel)):
        bounds = tuple(
            slice(
                first := each.start * stride + at * dilation, first + (len(each) - 1) * each.step * stride + 1, each.step * stride
            )
            for each, stride, at, dilation in zip(taken, window.strides, offset, window.dilations, strict=True)
        )
        piece = padded[(slice(None), slice(None), *bounds)]
        patches[..., number, :] = np.moveaxis(piece.reshape(len(x), groups, count, *piece.shape[2:]), (1, 2), (0, -1))
    return patches.reshape(groups, -1, patches.shape[-2] * count)


def folded(patches: NDArray[np.float32], window: Window, shape: Sequence[int]) -> NDArray[np.float32]:
    """The adjoint of `patches_of` without groups: what patches hold of each position, summed (col2im).

    Parameters
    ----------
    patches : ndarray of shape (samples, kernel positions * channels)
        For all outputs of the window.
    window : Window
        What the convolution reads.
    shape : sequence of int
        Shape (N, channels, *spatial) of the input.

    Returns
    -------
    ndarray of that shape
    """
    count, channels, *space = shape
    split = patches.reshape(count, *window.extents, -1, channels)
    reached = zip(space, window.before, window.after, strict=True)
    padded = np.zeros((count, *[extent + before + after for extent, before, after in reached], channels), np.float32)
    for number, offset in enumerate(np.ndindex(*window.kernel)):
        bounds = tuple(
            slice(at * dilation, at * dilation + (extent - 1) * stride + 1, stride)
            for extent, stride, at, dilation in zip(window.extents, window.strides, offset, window.dilations, strict=True)
        )
        padded[(slice(None), *bounds)] += split[..., number, :]
    inner = (slice(before, before + extent) for before, extent in zip(window.before, space, strict=True))
    return np.moveaxis(padded[(slice(None), *inner)], -1, 1)


def by_group(view: np.ndarray, groups: int) -> NDArray[np.float32]:
    """(N, groups * outputs, *positions) as `patches_of` lays out samples: (groups, samples, outputs)."""
    split = view.reshape(len(view), groups, -1, *view.shape[2:])
    moved = np.moveaxis(split, (1, 2), (0, -1))
    return moved.reshape(groups, -1, split.shape[2]).astype(np.float32, copy=False)


def from_groups(samples: np.ndarray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The inverse of `by_group`; shape (N, groups * outputs, *positions)."""
    groups, _, outputs = samples.shape
    split = samples.reshape(groups, shape[0], *shape[2:], outputs)
    return np.moveaxis(split, (0, -1), (1, 2)).reshape(shape)


def window_of(
    attributes: Mapping[str, Any], input_shape: Sequence[int], kernel: Sequence[int], output_shape: Sequence[int]
) -> Window:
    """The window of a Conv for concrete shapes, with `auto_pad` worked out as the operator's documentation defines it.

    Parameters
    ----------
    attributes : mapping
        Attributes of the Conv node; defaults where they are absent.
    input_shape, output_shape : sequence of int
        Shapes (N, channels, *spatial) of what the Conv reads and writes.
    kernel : sequence of int
        Size of the kernel along each spatial axis.

    Returns
    -------
    Window

    Examples
    --------
    >>> window_of({"auto_pad": "SAME_UPPER"}, (1, 8, 5), (2,), (1, 16, 5)).after
    (1,)
    """
    axes = len(kernel)
    strides = tuple(attributes.get("strides", [1] * axes))
    dilations = tuple(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    extents = tuple(output_shape[2:])
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(extents[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 for a in range(axes)]
        total = [max(0, reach[a] - input_shape[2 + a]) for a in range(axes)]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = less + more if mode == "SAME_UPPER" else more + less
    elif mode == "VALID":
        pads = [0] * 2 * axes
    return Window(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]), extents)


def output_extents(attributes: Mapping[str, Any], input_shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Output positions of a Conv along each spatial axis, as the operator's documentation defines them.

    attributes, input_shape, kernel: as `window_of` has them.
    """
    axes = len(kernel)
    strides = attributes.get("strides", [1] * axes)
    if str(attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
        return tuple(-(-extent // stride) for extent, stride in zip(input_shape[2:], strides, strict=True))
    window = window_of(attributes, input_shape, kernel, (1, 1, *[1] * axes))
    reached = zip(input_shape[2:], window.before, window.after, window.kernel, window.strides, window.dilations, strict=True)
    return tuple((n + before + after - (k - 1) * apart - 1) // step + 1 for n, before, after, k, step, apart in reached)


@lru_cache(1 << 12)
def drawn_positions(steps: tuple[int, ...], batch: int) -> Positions:
    """Every so many-th position along each axis, from an offset that differs from batch to batch.

    Of `step` batches, counted from 0, each has another one.

    Where each batch drew its own, 8 batches in steps of 5 saw one row in six never. What a network of sound gave for its lowest
    pitch, beside the padding, was off by three times its standard deviation then.
    """
    return tuple(slice(_order(axis, step, batch // step)[batch % step], None, step) for axis, step in enumerate(steps))


@lru_cache(1 << 12)
def _order(axis: int, step: int, turn: int) -> list[int]:
    """In which order the offsets are taken."""
    return list(map(int, np.random.default_rng((axis, step, turn)).permutation(step)))


def thinning(samples: int, unknowns: int, extents: Sequence[int], batches: int) -> tuple[int, ...]:
    """Every how many-th output position of a convolution is enough; see `sample_counts.enough_samples`.

    Steps are odd: behind an upsampling by two, every second position would be of one kind. None is larger than the number of
    batches, so that every row and column is seen: those beside the padding are like no others.

    Parameters
    ----------
    samples : int
        Output positions of all inputs together.
    unknowns : int
        Inputs of one patch.
    extents : sequence of int
        Output positions along each spatial axis; at least four of them stay.
    batches : int
        Number of batches, each of which has other positions.

    Returns
    -------
    tuple of int
        A step for each spatial axis.

    Examples
    --------
    >>> thinning(500_000, 144, (32, 32), 8)
    (7, 7)
    """
    enough = enough_samples(unknowns)
    steps = [1] * len(extents)
    while extents:
        axis = min(range(len(extents)), key=lambda a: (steps[a], a))
        remaining = samples / (np.prod(steps) // steps[axis] * (steps[axis] + 2))
        if remaining < enough or steps[axis] + 2 > min(extents[axis] // 4, batches):
            break
        steps[axis] += 2
    return tuple(steps)
