"""The second moments that the reconstruction of a reader needs: of its channels, and of its samples against targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from onnxmerge.algorithms.moments import Covariance, MomentSums
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.layers import Layer
from onnxmerge.statistics.unfold import (
    GraphBuilder,
    outputs_of,
    patches_of,
    rows_of,
    sums_of_products,
    thinning,
    window_of,
)

BATCH_BYTES = 1 << 28  # of patches at a time
SAMPLE_BYTES = 1 << 29  # of samples that are kept for a second pass
FAR = 8.0  # standard deviations from zero


def channel_covariance(walk: LayerwiseRun, layer: Layer, threads: int | None) -> Covariance:
    """Mean and covariance of the reader's input per channel, pooled over positions; the walk stands at the reader."""
    example = walk.tensor(0, layer.source)
    net = GraphBuilder()
    shift = _means(np.asarray(example), layer)
    middle = shift[layer.channel_of].astype(np.float32)[None, None]
    rows = net.op("Sub", rows_of(net, "x", layer.input_axis, example.ndim), "middle")
    count, places = layer.channel_positions.shape
    if places > 1:
        ordered = net.op("Gather", rows, net.constant(layer.channel_positions.reshape(-1)), axis=2)
        split = net.op("Reshape", ordered, net.constant([-1, count, places]))
        rows = net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1]), net.constant([1, -1, count]))
    session = net.session({"x": example, "middle": middle}, {"inputs": rows}, threads)
    total = None
    for number in range(walk.batch_count):
        x = walk.tensor(number, layer.source)
        values = sums_of_products(session.run({"x": np.asarray(x), "middle": middle}), True)
        part = _moments(values, 0, x.size // layer.channel_positions.size * places)
        total = part if total is None else total + part
    assert total is not None
    covariance = total.covariance()
    return replace(covariance, mean_x=covariance.mean_x + shift)


def _means(x: np.ndarray, layer: Layer) -> np.ndarray:
    """(channels,) close to the means: products of values around zero lose less in float32."""
    places = x.mean(tuple(axis for axis in range(x.ndim) if axis != layer.input_axis), dtype=np.float64)
    return np.asarray(places[layer.channel_positions].mean(1).astype(np.float32), np.float64)


@dataclass
class SampleCache:
    """The input samples of one reader, part by part, kept from one pass to the next while they fit into the memory set aside."""

    parts: list[np.ndarray] = field(default_factory=list)
    fits: bool = True

    def keep(self, part: np.ndarray) -> None:
        """Remember one more part, or forget all."""
        self.parts.append(part)
        self.fits = self.fits and sum(each.nbytes for each in self.parts) <= SAMPLE_BYTES
        if not self.fits:
            self.parts.clear()


def consumer_moment_sums(
    compressed: LayerwiseRun,
    layer: Layer,
    kept: np.ndarray,
    targets: Callable[[int], np.ndarray],
    known: list[MomentSums] | None,
    samples: SampleCache,
    threads: int | None,
) -> list[MomentSums]:
    """For each group of the reader: moments of its kept inputs in the compressed prefix against the targets.

    kept (g, in/g) bool, equally many in each group; targets: batch -> wanted outputs, shaped like the reader's; known: moments
    of the same inputs against other targets, whose sums over the inputs alone are taken over; samples: filled then, and read
    now. Inputs are laid out (position, kept place). The walk stands at the reader.
    """
    first = targets(0)
    example = np.asarray(compressed.tensor(0, layer.source))
    middles = _middles(layer, kept, example, first)
    sums = _sums(compressed, layer, kept, (example, first), middles, known, samples, threads)
    totals: list[MomentSums] = []
    unknowns = int(kept.sum()) * layer.weight.shape[3]
    for number in _all(compressed):
        value = first if number == 0 else targets(number)
        for x_part, y_part in _parts(np.asarray(compressed.tensor(number, layer.source)), value, unknowns):
            values = sums({"x": x_part, "y": y_part, **middles})
            parts = [_moments(values, g, int(values["shape"][1])) for g in range(len(kept))]
            totals = parts if not totals else [a + b for a, b in zip(totals, parts, strict=True)]
    shifts = zip(middles["middle_x"][:, 0], middles["middle_y"][:, 0], strict=True)
    totals = [total.moved(by_x, by_y) for total, (by_x, by_y) in zip(totals, shifts, strict=True)]
    return totals if known is None else [replace(new, xx=old.xx) for new, old in zip(totals, known, strict=True)]


def _sums(
    compressed: LayerwiseRun,
    layer: Layer,
    kept: np.ndarray,
    examples: tuple[np.ndarray, np.ndarray],
    middles: dict[str, np.ndarray],
    known: list[MomentSums] | None,
    samples: SampleCache,
    threads: int | None,
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """x, y and their middles -> sums. The samples of the inputs are taken from the graph only once."""
    net = GraphBuilder()
    count = sum(len(compressed.tensor(n, layer.source)) for n in _all(compressed))
    x, y = _samples(net, layer, kept, *examples, count)
    x, y = net.op("Sub", x, "middle_x"), net.op("Sub", y, "middle_y")
    inputs = {"x": examples[0], "y": examples[1], **middles}
    again = known is not None and samples.fits and bool(samples.parts)
    session = net.session(inputs, {"outputs": y} if again else {"inputs": x, "outputs": y}, threads)
    waiting = iter(samples.parts if again else ())

    def multiply(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = session.run(feeds)
        if again:
            found["inputs"] = next(waiting)
        elif known is None:
            samples.keep(found["inputs"])
        return sums_of_products(found, known is None)

    return multiply


def _middles(layer: Layer, kept: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """(g, 1, d) and (g, 1, o) float32: the means of samples far from zero, whose products would lose too much in float32.

    Zero for all others: moving them too cost 3 to 50 points on VGG-16, where samples are fewer than unknowns.
    """
    inputs = _far(x, layer.input_axis)[kept.reshape(-1)].reshape(len(kept), 1, -1)
    outputs = _far(y, layer.output_axis).reshape(len(kept), 1, -1)
    return {"middle_x": np.tile(inputs, (1, 1, layer.weight.shape[3])), "middle_y": outputs}


def _far(values: np.ndarray, axis: int) -> np.ndarray:
    """(channels,) float32: the mean where it is many standard deviations from zero, else 0."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    mean, deviation = values.mean(others, dtype=np.float64), values.std(others, dtype=np.float64)
    return np.where((deviation > 0) & (np.abs(mean) > FAR * deviation), mean, 0.0).astype(np.float32)


def _all(walk: LayerwiseRun) -> range:
    return range(walk.batch_count)


def _samples(
    net: GraphBuilder, layer: Layer, kept: np.ndarray, example: np.ndarray, output: np.ndarray, count: int
) -> tuple[str, str]:
    """The samples x (g, s, d) and y (g, s, o) of the tensors "x" and "y"; count: inputs in all, for thinning."""
    groups, per_group = kept.shape[0], int(kept[0].sum())
    gathered = net.op("Gather", "x", net.constant(np.flatnonzero(kept.reshape(-1))), axis=layer.input_axis)
    if layer.layout != "conv":
        return rows_of(net, gathered, layer.input_axis, example.ndim), rows_of(net, "y", layer.output_axis, output.ndim)
    window = window_of(layer.node.attrs, example.shape, layer.kernel_shape, output.shape)
    unknowns = per_group * int(np.prod(layer.kernel_shape))
    thin = thinning(count * int(np.prod(window.extents)), unknowns, window.extents)
    x = patches_of(net, gathered, window, groups, per_group, thin)
    return x, outputs_of(net, "y", window, groups, layer.weight.shape[1], thin)


def _parts(x: np.ndarray, y: np.ndarray, unknowns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A batch in pieces whose patches fit the memory set aside for them."""
    if not x.ndim or x.shape[0] != y.shape[0]:
        yield x, y
        return
    pixels = y.size // max(1, y.shape[0] * y.shape[1]) if y.ndim > 1 else 1
    size = max(1, int(BATCH_BYTES // max(1, 4 * pixels * unknowns)))  # patches are copied about three times on their way
    for start in range(0, x.shape[0], size):
        yield x[start : start + size], y[start : start + size]


def _moments(values: dict[str, np.ndarray], group: int, count: int) -> MomentSums:
    """One group's sums as float64; zeros in place of those that were not asked for."""
    sums = {name: np.asarray(value[group], np.float64) for name, value in values.items() if name != "shape"}
    size = len(sums["sum_x"])
    empty = {"sum_x": (0,), "sum_y": (0,), "xx": (size, size), "xy": (size, 0), "yy": (0,)}
    return MomentSums(float(count), **{name: sums.get(name, np.zeros(shape)) for name, shape in empty.items()})
