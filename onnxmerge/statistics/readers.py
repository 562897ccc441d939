"""How a weighted node reads its input, and the second moments that its reconstruction needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxmerge.graph.flow import Flow, Weighted
from onnxmerge.graph.weights import canonical, kernel_of, weight_of
from onnxmerge.merging.reconstruction import Centred, Moments
from onnxmerge.runtime.providers import Provider
from onnxmerge.statistics.gram import Network, outputs_of, patches_of, rows_of, summing, thinning, window_of
from onnxmerge.statistics.walk import Walk

BATCH_BYTES = 1 << 28  # of patches at a time
FAR = 8.0  # standard deviations from zero


@dataclass(frozen=True)
class Reader:
    """A consumer: what it reads and how.

    at: its position among the nodes; source: its input tensor; axis: the axis it contracts; weight (g, out/g, in/g, positions)
    float64; columns (channels, t): places of each channel on the flattened contracted axis, several where Flatten put the
    positions of a channel side by side; kernel: spatial extents of a convolution.
    """

    weighted: Weighted
    at: int
    source: str
    axis: int
    weight: np.ndarray
    columns: np.ndarray
    kernel: tuple[int, ...]

    @property
    def key(self) -> str:
        """The key of the weighted node."""
        return self.weighted.key

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, 1 elsewhere."""
        return len(self.weight)

    @property
    def channel_of(self) -> np.ndarray:
        """(in,) the channel that each place belongs to."""
        owner = np.zeros(self.columns.size, np.int64)
        owner[self.columns.reshape(-1)] = np.repeat(np.arange(len(self.columns)), self.columns.shape[1])
        return owner

    @property
    def written_axis(self) -> int:
        """The channel axis of the output."""
        return 1 if self.weighted.node.op == "Gemm" else self.axis

    @property
    def solvable(self) -> bool:
        """False for ConvTranspose, where what an output position reads depends on where it is: channel mixing only."""
        return self.weighted.layout != "conv_transpose"


def reader_of(flow: Flow, weighted: Weighted, at: int) -> Reader:
    """The reader of a weighted node at a position of the node list."""
    node = weighted.node
    source = node.inputs[1 - weighted.weight] if node.op == "MatMul" else node.inputs[0]
    rank = len(flow.shape(source) or ())
    stored_weight = weight_of(flow, weighted)
    return Reader(
        weighted,
        at,
        source.name,
        _contracted(weighted, rank),
        canonical(weighted, stored_weight).astype(np.float64),
        _columns(weighted.in_ids),
        kernel_of(weighted, stored_weight),
    )


def _contracted(weighted: Weighted, rank: int) -> int:
    node = weighted.node
    if node.op == "Gemm":
        return 0 if node.attrs.get("transA", 0) else 1
    if node.op == "MatMul":
        return rank - 1 if weighted.weight == 1 else rank - 2
    return 1


def _columns(ids: np.ndarray) -> np.ndarray:
    """(channels, t) places with the same id; t: what the numbers of places that ids have are all divisible by.

    A channel that has more than t places counts as several. In grouped convolutions each place counts for itself, since an id
    may stand in several groups.
    """
    grouped, ids = len(ids) > 1, ids.reshape(-1)
    places = 1 if grouped else int(np.gcd.reduce(np.unique(ids, return_counts=True)[1]))
    order = np.argsort(ids, kind="stable") if places > 1 else np.arange(len(ids))
    order = order.reshape(-1, places)
    return order[np.argsort(order[:, 0])]


def channel_moments(walk: Walk, reader: Reader, provider: Provider, threads: int | None) -> Centred:
    """Mean and covariance of the reader's input per channel, pooled over positions; the walk stands at the reader."""
    example = walk.tensor(0, reader.source)
    net = Network()
    shift = _means(np.asarray(example), reader)
    middle = shift[reader.channel_of].astype(np.float32)[None, None]
    rows = net.op("Sub", rows_of(net, "x", reader.axis, example.ndim), "middle")
    count, places = reader.columns.shape
    if places > 1:
        ordered = net.op("Gather", rows, net.constant(reader.columns.reshape(-1)), axis=2)
        split = net.op("Reshape", ordered, net.constant([-1, count, places]))
        rows = net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1]), net.constant([1, -1, count]))
    sums = summing(net, {"x": example, "middle": middle}, (rows, None), provider, threads)
    total = None
    for number in range(walk.count):
        x = walk.tensor(number, reader.source)
        values = sums({"x": np.asarray(x), "middle": middle})
        part = _moments(values, 0, x.size // reader.columns.size * places)
        total = part if total is None else total + part
    assert total is not None
    centred = total.centred()
    return replace(centred, mean_x=centred.mean_x + shift)


def _means(x: np.ndarray, reader: Reader) -> np.ndarray:
    """(channels,) close to the means: products of values around zero lose less in float32."""
    places = x.mean(tuple(axis for axis in range(x.ndim) if axis != reader.axis), dtype=np.float64)
    return np.asarray(places[reader.columns].mean(1).astype(np.float32), np.float64)


def solve_moments(
    compressed: Walk,
    reader: Reader,
    kept: np.ndarray,
    targets: Callable[[int], np.ndarray],
    known: list[Moments] | None,
    provider: Provider,
    threads: int | None,
) -> list[Moments]:
    """For each group of the reader: moments of its kept inputs in the compressed prefix against the targets.

    kept (g, in/g) bool, equally many in each group; targets: batch -> wanted outputs, shaped like the reader's; known: moments
    of the same inputs against other targets, whose sums over the inputs alone are taken over. Inputs are laid out
    (position, kept place). The walk stands at the reader.
    """
    first = targets(0)
    net = Network()
    example = np.asarray(compressed.tensor(0, reader.source))
    x, y = _samples(net, reader, kept, example, first, sum(len(compressed.tensor(n, reader.source)) for n in _all(compressed)))
    middles = _middles(reader, kept, example, first)
    x, y = net.op("Sub", x, "middle_x"), net.op("Sub", y, "middle_y")
    sums = summing(net, {"x": example, "y": first, **middles}, (x, y), provider, threads, inputs_too=known is None)
    totals: list[Moments] = []
    unknowns = int(kept.sum()) * reader.weight.shape[3]
    for number in _all(compressed):
        value = first if number == 0 else targets(number)
        for x_part, y_part in _parts(np.asarray(compressed.tensor(number, reader.source)), value, unknowns):
            values = sums({"x": x_part, "y": y_part, **middles})
            parts = [_moments(values, g, int(values["shape"][1])) for g in range(len(kept))]
            totals = parts if not totals else [a + b for a, b in zip(totals, parts, strict=True)]
    shifts = zip(middles["middle_x"][:, 0], middles["middle_y"][:, 0], strict=True)
    totals = [total.moved(by_x, by_y) for total, (by_x, by_y) in zip(totals, shifts, strict=True)]
    return totals if known is None else [replace(new, xx=old.xx) for new, old in zip(totals, known, strict=True)]


def _middles(reader: Reader, kept: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """(g, 1, d) and (g, 1, o) float32: the means of samples far from zero, whose products would lose too much in float32.

    Zero for all others: moving them too cost 3 to 50 points on VGG-16, where samples are fewer than unknowns.
    """
    inputs = _far(x, reader.axis)[kept.reshape(-1)].reshape(len(kept), 1, -1)
    outputs = _far(y, reader.written_axis).reshape(len(kept), 1, -1)
    return {"middle_x": np.tile(inputs, (1, 1, reader.weight.shape[3])), "middle_y": outputs}


def _far(values: np.ndarray, axis: int) -> np.ndarray:
    """(channels,) float32: the mean where it is many standard deviations from zero, else 0."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    mean, deviation = values.mean(others, dtype=np.float64), values.std(others, dtype=np.float64)
    return np.where((deviation > 0) & (np.abs(mean) > FAR * deviation), mean, 0.0).astype(np.float32)


def _all(walk: Walk) -> range:
    return range(walk.count)


def _samples(
    net: Network, reader: Reader, kept: np.ndarray, example: np.ndarray, output: np.ndarray, count: int
) -> tuple[str, str]:
    """The samples x (g, s, d) and y (g, s, o) of the tensors "x" and "y"; count: inputs in all, for thinning."""
    groups, per_group = kept.shape[0], int(kept[0].sum())
    gathered = net.op("Gather", "x", net.constant(np.flatnonzero(kept.reshape(-1))), axis=reader.axis)
    if reader.weighted.layout != "conv":
        return rows_of(net, gathered, reader.axis, example.ndim), rows_of(net, "y", reader.written_axis, output.ndim)
    window = window_of(reader.weighted.node.attrs, example.shape, reader.kernel, output.shape)
    unknowns = per_group * int(np.prod(reader.kernel))
    thin = thinning(count * int(np.prod(window.extents)), unknowns, window.extents)
    x = patches_of(net, gathered, window, groups, per_group, thin)
    return x, outputs_of(net, "y", window, groups, reader.weight.shape[1], thin)


def _parts(x: np.ndarray, y: np.ndarray, unknowns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A batch in pieces whose patches fit the memory set aside for them."""
    if not x.ndim or x.shape[0] != y.shape[0]:
        yield x, y
        return
    pixels = y.size // max(1, y.shape[0] * y.shape[1]) if y.ndim > 1 else 1
    size = max(1, int(BATCH_BYTES // max(1, 4 * pixels * unknowns)))  # patches are copied about three times on their way
    for start in range(0, x.shape[0], size):
        yield x[start : start + size], y[start : start + size]


def _moments(values: dict[str, np.ndarray], group: int, count: int) -> Moments:
    """One group's sums as float64; zeros in place of those that were not asked for."""
    sums = {name: np.asarray(value[group], np.float64) for name, value in values.items() if name != "shape"}
    size = len(sums["sum_x"])
    empty = {"sum_x": (0,), "sum_y": (0,), "xx": (size, size), "xy": (size, 0), "yy": (0,)}
    return Moments(float(count), **{name: sums.get(name, np.zeros(shape)) for name, shape in empty.items()})
