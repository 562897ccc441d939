"""Moments of what consumers read: of their channels, and of their samples against target outputs.

ONNX Runtime lays the samples out and numpy multiplies them: 1.3 to 1.9 times as fast as products inside ONNX Runtime 1.31, since
BLAS knows that x^T x is symmetric. All of it runs on the CPU, also beside a GPU: on an H100 ResNet-56 took no less time with both
on CUDA, and bytes would differ from run to run.

Samples are float32, their products float64. In float32 a covariance is wrong by rounding, which least squares with fewer samples
than unknowns magnifies: for VGG-16 (800 samples, 2304 unknowns) the smallest eigenvalue, which is 0, came out as -1e-3 of the
mean variance, as large as the ridge, and the solution was 100 times too large. Subtracting means first makes that worse where
zeros are many (padding, ReLU): products of zeros are exact, those of a repeated mean all round the same way. In float64 nothing
need be subtracted: the error of a covariance, 1e-16 (mean / deviation)^2 of it, stays below that of float32 samples themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.moments import Covariance, MomentSums
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.graph.layers import Layer
from onnxmerge.statistics.unfold import GraphBuilder, outputs_of, patches_of, rows_of, thinning, window_of

BATCH_BYTES = 1 << 28
"""Memory for the patches that are multiplied at a time, 256 MiB; they are copied about three times on their way."""

BLOCK_SAMPLES = 1 << 12
"""Samples that are converted to float64 and multiplied at a time: products take much longer than adding them up. With 4,608
unknowns a block takes twice the memory of the float32 patches, the sums not counted."""

CACHE_BYTES = 1 << 29
"""Memory for the samples of one consumer that are kept for other targets, 512 MiB; where they take more they are made anew."""

Targets = Callable[[int], np.ndarray]
"""Number of a batch -> target outputs of a consumer, shaped like its output."""


@dataclass
class SampleCache:
    """What sums over the inputs of one consumer have in common whatever the targets are; filled by the first call.

    Attributes
    ----------
    parts : list of ndarray of shape (groups, samples, inputs), float32
        The samples, part by part, while they fit into `CACHE_BYTES`.
    xx : list of ndarray of shape (inputs, inputs)
        For each group the sum of x x^T; empty before the first call.
    fits : bool
        False once the samples took too much memory.
    """

    parts: list[np.ndarray] = field(default_factory=list)
    xx: list[NDArray[np.float64]] = field(default_factory=list)
    fits: bool = True

    def keep(self, part: np.ndarray) -> None:
        """Hold one more part, or none at all where they take too much memory."""
        self.parts.append(part)
        self.fits = self.fits and sum(each.nbytes for each in self.parts) <= CACHE_BYTES
        if not self.fits:
            self.parts.clear()


def channel_covariance(run: LayerwiseRun, layer: Layer, threads: int | None) -> Covariance:
    """Mean and covariance of the channels that a consumer reads, over all positions and inputs.

    Parameters
    ----------
    run : LayerwiseRun
        Stands at the consumer.
    layer : Layer
        The consumer, with n channels.
    threads : int, optional
        Threads of ONNX Runtime.

    Returns
    -------
    Covariance
        `mean_x` (n,) and `xx` (n, n); no targets.
    """
    example = np.asarray(run.tensor(0, layer.source))
    count, positions = layer.channel_positions.shape
    builder = GraphBuilder()
    rows = rows_of(builder, "x", layer.input_axis, example.ndim)
    if positions > 1:
        ordered = builder.op("Gather", rows, builder.constant(layer.channel_positions.reshape(-1)), axis=2)
        split = builder.op("Reshape", ordered, builder.constant([-1, count, positions]))
        rows = builder.op("Reshape", builder.op("Transpose", split, perm=[0, 2, 1]), builder.constant([1, -1, count]))
    session = builder.session({"x": example}, {"inputs": rows}, threads)
    total = None
    for number in range(run.batch_count):
        (part,) = moment_sums(session.run({"x": np.asarray(run.tensor(number, layer.source))})["inputs"])
        total = part if total is None else total + part
    assert total is not None
    return total.covariance()


def consumer_moment_sums(
    run: LayerwiseRun, layer: Layer, kept: NDArray[np.bool_], targets: Targets, cache: SampleCache, threads: int | None
) -> list[MomentSums]:
    """Moment sums of the kept inputs of a consumer against target outputs.

    Parameters
    ----------
    run : LayerwiseRun
        Stands at the consumer.
    layer : Layer
        The consumer.
    kept : ndarray of shape (groups, inputs per group), bool
        The inputs that stay, equally many in each group.
    targets : callable
        See `Targets`.
    cache : SampleCache
        Empty at the first call; then what that call left in it, for other targets of the same inputs.
    threads : int, optional
        Threads of ONNX Runtime.

    Returns
    -------
    list of MomentSums
        One for each group; its inputs are laid out (kernel position, kept input).
    """
    first = targets(0)
    example = np.asarray(run.tensor(0, layer.source))
    known = list(cache.xx)
    samples = _sampler(run, layer, kept, {"x": example, "y": first}, cache, threads)
    totals: list[MomentSums] = []
    unknowns = int(kept.sum()) * layer.kernel_size
    for number in range(run.batch_count):
        target = first if number == 0 else targets(number)
        for x, y in _parts(np.asarray(run.tensor(number, layer.source)), target, unknowns):
            parts = moment_sums(*samples({"x": x, "y": y}), with_xx=not known)
            totals = parts if not totals else [a + b for a, b in zip(totals, parts, strict=True)]
    if known:
        return [replace(total, xx=xx) for total, xx in zip(totals, known, strict=True)]
    cache.xx = [total.xx for total in totals]
    return totals


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused, in a line of its own
def moment_sums(x: NDArray[np.float32], y: NDArray[np.float32] | None = None, with_xx: bool = True) -> list[MomentSums]:
    """Moment sums of samples, in float64.

    Parameters
    ----------
    x : ndarray of shape (groups, samples, d)
        Inputs.
    y : ndarray of shape (groups, samples, o), optional
        Targets; o is 0 in the result where there are none.
    with_xx : bool
        Whether the sum of x x^T is wanted: it takes nearly all of the time. It is zero otherwise.

    Returns
    -------
    list of MomentSums
        One for each group.
    """
    y = np.zeros((*x.shape[:2], 0), np.float32) if y is None else y
    return [_group_sums(inputs, targets, with_xx) for inputs, targets in zip(x, y, strict=True)]


def _group_sums(x: NDArray[np.float32], y: NDArray[np.float32], with_xx: bool) -> MomentSums:
    """Of one group: samples (s, d) and (s, o)."""
    inputs, targets = x.shape[1], y.shape[1]
    shapes = (inputs, targets, (inputs, inputs) if with_xx else (), (inputs, targets), targets)
    sums = [np.zeros(shape) for shape in shapes]
    for start in range(0, len(x), BLOCK_SAMPLES):
        one, other = (side[start : start + BLOCK_SAMPLES].astype(np.float64) for side in (x, y))
        products = one.T @ one if with_xx else 0.0, one.T @ other, np.square(other).sum(0)
        for total, part in zip(sums, (one.sum(0), other.sum(0), *products), strict=True):
            total += part
    return MomentSums(float(len(x)), *sums)


def _sampler(
    run: LayerwiseRun, layer: Layer, kept: NDArray[np.bool_], examples: Feeds, cache: SampleCache, threads: int | None
) -> Callable[[Feeds], tuple[np.ndarray, np.ndarray]]:
    """Tensors x and y -> samples of both; those of x come from the cache where it holds them."""
    builder = GraphBuilder()
    count = sum(len(run.tensor(number, layer.source)) for number in range(run.batch_count))
    x, y = _samples(builder, layer, kept, examples["x"], examples["y"], count)
    again = bool(cache.parts)
    outputs = {"outputs": y} if again else {"inputs": x, "outputs": y}
    session, held = builder.session(examples, outputs, threads), iter(list(cache.parts))
    fill = not cache.xx

    def samples(feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
        found = session.run(feeds)
        inputs = next(held) if again else found["inputs"]
        if fill:
            cache.keep(inputs)
        return inputs, found["outputs"]

    return samples


def _samples(
    builder: GraphBuilder, layer: Layer, kept: NDArray[np.bool_], example: np.ndarray, output: np.ndarray, count: int
) -> tuple[str, str]:
    """The samples x (g, s, d) and y (g, s, o) of the tensors "x" and "y"; count: inputs in all, for thinning."""
    groups, per_group = kept.shape[0], int(kept[0].sum())
    gathered = builder.op("Gather", "x", builder.constant(np.flatnonzero(kept.reshape(-1))), axis=layer.input_axis)
    if layer.layout != "conv":
        x = rows_of(builder, gathered, layer.input_axis, example.ndim)
        return x, rows_of(builder, "y", layer.output_axis, output.ndim)
    window = window_of(layer.node.attrs, example.shape, layer.kernel_shape, output.shape)
    steps = thinning(count * int(np.prod(window.extents)), per_group * layer.kernel_size, window.extents)
    x = patches_of(builder, gathered, window, groups, per_group, steps)
    return x, outputs_of(builder, "y", window, groups, layer.weight.shape[1], steps)


def _parts(x: np.ndarray, y: np.ndarray, unknowns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A batch in pieces whose patches fit into `BATCH_BYTES`; whole where the first axis is not one of samples."""
    if not x.ndim or x.shape[0] != y.shape[0]:
        yield x, y
        return
    pixels = y.size // max(1, y.shape[0] * y.shape[1]) if y.ndim > 1 else 1
    size = max(1, int(BATCH_BYTES // max(1, np.dtype(np.float32).itemsize * pixels * unknowns)))
    for start in range(0, x.shape[0], size):
        yield x[start : start + size], y[start : start + size]
