"""Moments of what consumers read: of their channels, and of their samples against target outputs.

All of it runs on the CPU, also beside a GPU: on an H100 ResNet-56 took no less time with both on CUDA, and bytes would differ
from run to run.

Samples are float32, and so are products of blocks of them, summed in float64: half the time of float64 ones. Their error in the
2-norm is 4e-6 of the mean variance, a 250th of the least ridge and a 25th of the damping of an elimination. Means are
subtracted first: without that the error grows with (mean / deviation)^2, to 1e-3 where that is 100. So it does where all samples
and not blocks are multiplied in float32: for VGG-16 (800 samples, 2304 unknowns) the smallest eigenvalue, which is 0, came out as
-1e-3 of the mean variance, and the solution was 100 times too large.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.moments import Covariance, MomentSums
from onnxmerge.algorithms.sample_counts import enough_samples
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.threads import default_threads
from onnxmerge.graph.layers import Layer
from onnxmerge.statistics.unfold import by_group, drawn_positions, from_groups, patches_of, rows_of, thinning, window_of

BATCH_BYTES = 1 << 28
"""Memory for the patches that are multiplied at a time, 256 MiB."""

BLOCK_SAMPLES = 1 << 10
"""Samples that are multiplied at a time: products take much longer than adding them up."""

JOINED_SAMPLES = 4 * BLOCK_SAMPLES
"""Samples of small batches are put together up to here: blocks of nearly equal size, seldom smaller than `BLOCK_SAMPLES`."""

PRODUCT_BYTES = 1 << 29
"""Memory for products of blocks that are made at a time, 512 MiB."""

CACHE_BYTES = 1 << 28
"""Memory for the samples of one consumer that are kept for other targets, 256 MiB; where they take more they are made anew."""

Targets = Callable[[int], np.ndarray]
"""Number of a batch -> target outputs of a consumer, as `ConsumerSamples.view` gives them."""


class _Centre:
    """Subtracts from samples (groups, samples, d) the means of the first ones, rounded: it need only be near the mean."""

    value: NDArray[np.float32]

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused, in a line of its own
    def subtract(self, samples: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The difference, in `out` where it is given."""
        if not hasattr(self, "value"):
            self.value = np.asarray(samples.mean(1, dtype=np.float64), np.float32)
        return np.subtract(samples, self.value[:, np.newaxis], out=out)


def channel_covariance(run: LayerwiseRun, layer: Layer) -> Covariance:
    """Mean and covariance of the channels that a consumer reads, over all inputs and enough positions.

    Parameters
    ----------
    run : LayerwiseRun
        Stands at the consumer.
    layer : Layer
        The consumer, with n channels.

    Returns
    -------
    Covariance
        `mean_x` (n,) and `xx` (n, n); no targets.
    """
    count, places = layer.channel_positions.shape
    space = run.tensor(0, layer.source).shape[2:] if layer.layout.startswith("conv") else ()
    values = sum(run.tensor(number, layer.source).size for number in range(run.batch_count))
    samples = places * values // layer.in_ids.size
    steps = thinning(samples, count, space, run.batch_count) if space else (_row_step(samples, count),)

    def rows_of_batch(number: int) -> np.ndarray:
        x, positions = np.asarray(run.tensor(number, layer.source)), drawn_positions(steps, number)
        rows = rows_of(x[(slice(None), slice(None), *positions)], 1) if space else rows_of(x, layer.input_axis)[positions[0]]
        return rows[:, layer.channel_positions.T].reshape(-1, count) if places > 1 else rows

    pieces = _joined((rows_of_batch(number)[np.newaxis],) for number in range(run.batch_count))
    centre, totals = _Centre(), list[MomentSums]()
    for (x,) in pieces:
        totals = moment_sums(centre.subtract(x), threads=run.threads, before=totals)
    found = totals[0].covariance(centre.value[0])
    return replace(found, xx=found.xx.astype(np.float32))


def _row_step(samples: int, unknowns: int) -> int:
    """Every how many-th row is enough, an odd number."""
    return max(1, int((samples / enough_samples(unknowns) - 1) // 2 * 2 + 1))


def _joined(pieces: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Samples (groups, samples, ...) of several pieces together where they are few, at least `JOINED_SAMPLES` but at the end."""
    waiting: list[tuple[np.ndarray, ...]] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(each[0].shape[1] for each in waiting) >= JOINED_SAMPLES:
            yield tuple(map(_concatenated, zip(*waiting, strict=True)))
            waiting.clear()
    if waiting:
        yield tuple(map(_concatenated, zip(*waiting, strict=True)))


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Along the samples; one part is not copied."""
    return np.concatenate(parts, 1) if len(parts) > 1 else parts[0]


class ConsumerSamples:
    """What a consumer reads in enough positions, as patches or rows, and what stands in the place of their outputs.

    Parameters
    ----------
    run : LayerwiseRun
        Stands at the consumer.
    layer : Layer
        The consumer.
    kept : ndarray of shape (groups, inputs per group), bool
        The inputs that stay, equally many in each group.
    output_shape : tuple of int
        Shape of the consumer's output in any batch.
    """

    def __init__(self, run: LayerwiseRun, layer: Layer, kept: NDArray[np.bool_], output_shape: Sequence[int]) -> None:
        self.run, self.layer = run, layer
        self.channels = np.flatnonzero(kept.reshape(-1)).reshape(len(kept), -1)
        self.unknowns = self.channels.shape[1] * layer.kernel_size
        source = np.asarray(run.tensor(0, layer.source))
        self.window = None
        if layer.layout == "conv":
            self.window = window_of(layer.node.attrs, source.shape, layer.kernel_shape, output_shape)
            inputs = sum(len(run.tensor(number, layer.source)) for number in range(run.batch_count))
            positions = inputs * int(np.prod(self.window.extents))
            self.steps = thinning(positions, self.unknowns, self.window.extents, run.batch_count)
        else:
            values = sum(run.tensor(number, layer.source).size for number in range(run.batch_count))
            self.steps = (_row_step(values // kept.size, self.unknowns),)
        self._held: dict[tuple[int, int], np.ndarray] = {}
        self._centre = _Centre()

    def view(self, batch: int, tensor: np.ndarray) -> np.ndarray:
        """Of a tensor shaped like the consumer's output the samples' values: (N, out, *positions), or (rows, out)."""
        if self.window is None:
            return rows_of(tensor, self.layer.output_axis)[self._positions(batch)]
        return tensor[(slice(None), slice(None), *self._positions(batch))]

    def outputs(self, batch: int, weights: Sequence[np.ndarray], bias: NDArray[np.float64]) -> np.ndarray:
        """What other weights give, as `view` lays it out; weights (out, kept inputs, kernel size) of each group, bias (out,)."""
        flat = np.stack([np.moveaxis(each, 1, 2).reshape(len(each), -1) for each in weights]).astype(np.float32)
        space = self._space(batch)
        parts = []
        for piece in self._pieces(batch):
            found = self._inputs(batch, piece) @ flat.swapaxes(1, 2)
            found += bias.reshape(len(flat), 1, -1) + self._centre.value[:, np.newaxis].astype(np.float64) @ flat.swapaxes(1, 2)
            parts.append(from_groups(found, (found.shape[1] // math.prod(space), bias.size, *space)))
        return np.concatenate(parts)

    def forget(self) -> None:
        """Free the memory of samples that are kept for other targets; they are made anew."""
        self._held.clear()

    def covariances(self, targets: Targets, with_xx: bool = True) -> list[Covariance]:
        """Covariances with target outputs, for each group of a grouped convolution; inputs (kernel position, kept input).

        with_xx: whether those of the inputs are wanted, which take nearly all of the time and are the same for all targets.
        """
        centre, totals = _Centre(), list[MomentSums]()
        for x, y in _joined(self._samples(targets)):
            totals = moment_sums(x, centre.subtract(y), with_xx, self.run.threads, totals)
        return [total.covariance(*near) for total, *near in zip(totals, self._centre.value, centre.value, strict=True)]

    def _samples(self, targets: Targets) -> Iterator[tuple[np.ndarray, ...]]:
        """Inputs as `_inputs` gives them and targets (groups, samples, outputs), piece by piece."""
        for batch in range(self.run.batch_count):
            target = targets(batch)
            for piece in self._pieces(batch):
                yield self._inputs(batch, piece), by_group(target[piece], self.layer.groups)

    def _positions(self, batch: int) -> tuple[slice, ...]:
        return drawn_positions(self.steps, batch)

    def _space(self, batch: int) -> list[int]:
        """How many positions are taken along each spatial axis."""
        extents = () if self.window is None else self.window.extents
        return [len(range(extent)[each]) for extent, each in zip(extents, self._positions(batch), strict=bool(extents))]

    def _pieces(self, batch: int) -> list[slice]:
        """A batch in pieces along its first axis whose patches fit into `BATCH_BYTES`."""
        if self.window is None:
            return [slice(None)]
        size = max(1, BATCH_BYTES // max(1, 4 * self.layer.groups * self.unknowns * math.prod(self._space(batch))))
        return [slice(start, start + size) for start in range(0, len(self.run.tensor(batch, self.layer.source)), size)]

    def _inputs(self, batch: int, piece: slice) -> NDArray[np.float32]:
        """(groups, samples, unknowns) of a piece, less the centre."""
        key = batch, piece.start or 0
        if key in self._held:
            return self._held[key]
        source = np.asarray(self.run.tensor(batch, self.layer.source))
        if self.window is None:
            found = rows_of(source, self.layer.input_axis)[self._positions(batch)][:, self.channels[0]][np.newaxis]
        else:
            found = patches_of(source[piece], self.window, self.channels, self._positions(batch))
        self._centre.subtract(found, out=found)
        if found.nbytes + sum(each.nbytes for each in self._held.values()) <= CACHE_BYTES:
            self._held[key] = found
        return found


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused, in a line of its own
def moment_sums(
    x: np.ndarray, y: np.ndarray | None = None, with_xx: bool = True, threads: int | None = 1, before: Sequence[MomentSums] = ()
) -> list[MomentSums]:
    """Moment sums of samples, in float64.

    Parameters
    ----------
    x : ndarray of shape (groups, samples, d)
        Inputs. Blocks of samples are multiplied in their type: of float32 ones the means should be near 0.
    y : ndarray of shape (groups, samples, o), optional
        Targets, of the same type; o is 0 in the result where there are none.
    with_xx : bool
        Whether the sum of x x^T is wanted: it takes nearly all of the time. It is of no shape otherwise.
    threads : int or None
        How many blocks of samples are multiplied at a time; changes no byte. None for all processors.
    before : sequence of MomentSums
        Of other samples, one for each group: the sums are added to these, in place.

    Returns
    -------
    list of MomentSums
        One for each group.
    """
    y = np.zeros((*x.shape[:2], 0), x.dtype) if y is None else y
    return [_group_sums(*group, with_xx, threads or default_threads()) for group in zip_longest(x, y, before)]


def _group_sums(x: np.ndarray, y: np.ndarray, before: MomentSums | None, with_xx: bool, threads: int) -> MomentSums:
    """Of one group: samples (s, d) and (s, o)."""
    inputs, targets = x.shape[1], y.shape[1]
    shapes = inputs, targets, (inputs, inputs) if with_xx else (), (inputs, targets), targets
    before = before or MomentSums(0.0, *map(np.zeros, shapes))
    totals = before.sum_x, before.sum_y, before.xx, before.xy, before.yy
    size = max(1, -(-len(x) // max(1, round(len(x) / BLOCK_SAMPLES))))
    starts = range(0, len(x), size)
    at_a_time = min(threads, len(starts), max(1, PRODUCT_BYTES // (8 * inputs**2)))

    def block(start: int) -> list[np.ndarray]:
        one, other = x[start : start + size], y[start : start + size]
        each = np.ones(len(one), x.dtype)  # a product with ones takes half the time of `sum`
        squares = np.einsum("so,so->o", other, other)
        return [each @ one, each @ other, one.T @ one if with_xx else np.zeros(()), one.T @ other, squares]

    with ThreadPoolExecutor(at_a_time) if at_a_time > 1 else nullcontext() as pool:
        for first in range(0, len(starts), at_a_time):
            for found in (pool.map if pool else map)(block, starts[first : first + at_a_time]):
                for total, part in zip(totals, found, strict=True):
                    total += part
    return replace(before, count=before.count + len(x))
