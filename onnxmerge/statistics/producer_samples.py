"""How the outputs of a consumer change with the weights of its producer, to first order, on blocks of neighbouring positions.

For a producer p = V u + b, an elementwise path x = f(p) and a consumer y = W x + c, a change d of V and b changes the outputs by
J d = W (f'(p) * (d u)). Behind a pooling the largest value of a window passes its derivative on, the others none. What the
consumer can make good itself is taken out of J d, since it is solved again afterwards (Golub and Pereyra, "The Differentiation
of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables Separate", 1973).

On blocks, since the outputs that a position of the producer reaches must be there together, and many inputs with a block each say
more than few whole ones. They are held as patches: in VGG-16 and ResNet-56 a step took a third of the time that it did unfolded
afresh for every product.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.algorithms.least_squares import RidgeSystem
from onnxmerge.algorithms.sample_counts import AMPLE_AT_MOST, enough_samples
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.elementwise_paths import ElementwisePath
from onnxmerge.statistics.blocks import BLOCK_EXTENT, by_window, drawn_block, every_position, repeated
from onnxmerge.statistics.unfold import Window, folded, patches_of, rows_of

BLOCK_INPUTS, BLOCK_SAMPLES = 16, 1024
"""Inputs of the model of which a block has the same positions; more, within a batch, where it has less samples than that."""

BLOCKS_BYTES = 1 << 27
"""Memory for the blocks of a consumer, 128 MiB: there are fewer where they would take more."""

SAMPLES, SAMPLES_PER_UNKNOWN = 2.0, 56.0
"""How many times the samples of a least squares a step is taken from, see `enough_samples`; and at least so many for each unknown
of a row, up to `AMPLE_AT_MOST` times the first. ResNet-56 without 70 % of its inner channels, on 500 images: of the outputs of
others 0.81 is explained, not 0.80, with 56 and not 32."""

MOMENT_SAMPLES = 2
"""Samples for each input of a row that its second moments are taken from."""

DIFFERENCE = 2.0**-5
"""Step of the differences in the place of f', in standard deviations of p: 50 times the spacing of float16 there."""

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
View = Callable[[np.ndarray], np.ndarray]
"""Tensor shaped like a layer's output -> the part of it that is looked at."""
Residual = Callable[[int, View, np.ndarray], np.ndarray]
"""Number of a batch, view of a tensor shaped like the consumer's output, and its output there -> what is missing."""


@dataclass(frozen=True)
class Affine:
    """A weight (out, inputs of a sample) and a bias (out,)."""

    weight: Singles
    bias: Singles

    def outputs(self, samples: Singles) -> Singles:
        """Of samples (n, inputs), (n, out)."""
        return np.asarray(samples @ self.weight.T + self.bias)


@dataclass(frozen=True)
class PairWeights:
    """The weights of a producer and its consumer in the compressed model.

    Attributes
    ----------
    producer : Affine
        Kept rows and inputs.
    consumer : Affine
        All rows, kept inputs.
    inputs, rows, outputs : ndarray of int
        Which inputs of the producer, rows of it, and outputs of the consumer are kept.
    output_scale : ndarray of shape (kept outputs,)
        What errors of the outputs are multiplied with.
    moves_bias : bool
        Whether the producer's bias may change.
    """

    producer: Affine
    consumer: Affine
    inputs: NDArray[np.int64]
    rows: NDArray[np.int64]
    outputs: NDArray[np.int64]
    output_scale: Singles
    moves_bias: bool = True


@dataclass(frozen=True)
class _Block:
    """inputs (samples of p, i + 1): patches of u, and ones for the bias, or zeros. slope (N, *positions of p, k): f'(p).

    read (samples of y, d): patches of x. residual (samples of y, outputs): scaled; active: 1 where it counts.
    """

    inputs: Singles
    slope: Singles
    read: Singles
    residual: Singles
    active: Singles
    window: Window | None

    @property
    def byte_count(self) -> int:
        """With two arrays more that are shaped like the residual."""
        return self.inputs.nbytes + self.slope.nbytes + self.read.nbytes + 4 * self.residual.nbytes


class ProducerSamples:
    """What the kept rows of a producer do to its consumer's outputs.

    Parameters
    ----------
    run : LayerwiseRun
        The compressed model, standing at the consumer; what the producer reads is still there.
    path : ElementwisePath
        Between the two.
    weights : PairWeights
        Of the two.
    residual : callable
        What the outputs miss. Zeros say that an output does not count there.
    system : RidgeSystem
        The consumer's least squares, solved.
    """

    def __init__(
        self, run: LayerwiseRun, path: ElementwisePath, weights: PairWeights, residual: Residual, system: RidgeSystem
    ) -> None:
        self._run, self._path, self._weights, self._residual, self._system = run, path, weights, residual, system
        self._flat = weights.consumer.weight[weights.outputs] * weights.output_scale[:, np.newaxis]
        self._activation = self._activation_of_rows()
        self._blocks = list(self._made())
        self.count = sum(len(block.read) for block in self._blocks)
        mean = np.sum([block.read.sum(0, dtype=np.float64) for block in self._blocks], 0) / self.count
        for block in self._blocks:
            np.subtract(block.read, mean.astype(np.float32), out=block.read)

    def residuals(self) -> list[Singles]:
        """What the outputs of each block miss, less what the consumer can make good."""
        return self._beyond_consumer([block.residual for block in self._blocks])

    def square_sum(self) -> float:
        """Of everything that the outputs miss."""
        return sum(float(np.vdot(block.residual, block.residual)) for block in self._blocks)

    def second_moments(self) -> tuple[Floats, Floats]:
        """Sums A (i + 1, i + 1) over samples of what the rows read, and means B (k, k) of how they move the outputs.

        Of some blocks: they precondition.
        """
        samples = np.cumsum([len(block.inputs) for block in self._blocks])
        enough = 1 + int(np.searchsorted(samples, MOMENT_SAMPLES * self._blocks[0].inputs.shape[1]))
        some, seen = self._blocks[:enough], samples[:enough][-1]
        slopes = [block.slope.reshape(-1, block.slope.shape[-1]) for block in some]
        by_position = self._flat.reshape(-1, self._weights.rows.size).astype(np.float64)
        inputs = _total(_product(block.inputs, block.inputs) for block in some)
        mean_slopes = _total(_product(each, each) for each in slopes) / seen
        return inputs * (samples[-1] / seen), by_position.T @ by_position * mean_slopes

    def change(self, step: Floats) -> list[Singles]:
        """J d of each block for d (k, i + 1), less what the consumer can make good."""
        return self._beyond_consumer([self._forward(block, step.T.astype(np.float32)) for block in self._blocks])

    def gradient(self, outputs: Sequence[Singles]) -> Floats:
        """J^T r (k, i + 1) for r of each block."""
        return _total(self._backward(*each) for each in zip(self._blocks, outputs, strict=True))

    def _forward(self, block: _Block, step: Singles) -> Singles:
        moved = (block.inputs @ step).reshape(block.slope.shape) * block.slope
        if block.window is not None:
            moved = np.moveaxis(by_window(moved, self._path.pool, np.sum), -1, 1)
            (moved,) = patches_of(moved, block.window, np.arange(moved.shape[1])[np.newaxis], every_position(block.window))
        return np.asarray(np.multiply(moved @ self._flat.T, block.active))

    def _backward(self, block: _Block, outputs: Singles) -> Floats:
        units = (outputs * block.active) @ self._flat
        if block.window is not None:
            count, *space, k = block.slope.shape
            pool = self._path.pool or (1,) * len(space)
            shape = count, k, *(extent // each for extent, each in zip(space, pool, strict=True))
            units = repeated(np.moveaxis(folded(units, block.window, shape), 1, -1), self._path.pool)
        units = units.reshape(block.slope.shape) * block.slope
        return _product(units.reshape(-1, units.shape[-1]), block.inputs)

    def _beyond_consumer(self, outputs: list[Singles]) -> list[Singles]:
        """The part of outputs of each block that is no affine function of what the consumer reads."""
        mean = (np.sum([each.sum(0, dtype=np.float64) for each in outputs], 0) / self.count).astype(np.float32)
        crossed = _total(_product(block.read, each) for block, each in zip(self._blocks, outputs, strict=True))
        weight = self._system.regression(crossed / self.count).astype(np.float32)
        return [each - (block.read @ weight + mean) for block, each in zip(self._blocks, outputs, strict=True)]

    def _activation_of_rows(self) -> View:
        """Gives for p (N, k, *space) or (rows, k) of the kept rows their activations."""
        path, rows, width = self._path, self._weights.rows, self._path.producer.out_ids.size
        if path.activation == path.producer.key:
            return np.asarray
        example = np.zeros((1, width, *[1] * len(path.producer.kernel_shape)), self._run.tensor(0, path.consumer.source).dtype)
        session = self._run.session_between({path.producer.key: example}, path.activation)

        def activation(p: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(p), width, *p.shape[2:]), p.dtype)
            whole[:, rows] = p
            (found,) = session.run({path.producer.key: whole}).values()
            return np.asarray(found).reshape(whole.shape)[:, rows]

        return activation

    def _made(self) -> Iterator[_Block]:
        """Blocks from all over the inputs, as many as are enough."""
        unknowns = max(self._flat.shape[1], self._weights.producer.weight.shape[1])
        needed, room, source = _enough(unknowns), BLOCKS_BYTES, self._path.consumer.source
        space = self._run.tensor(0, source).shape[2:] if self._path.consumer.layout == "conv" else ()
        size = max(BLOCK_INPUTS, BLOCK_SAMPLES // math.prod(min(extent, BLOCK_EXTENT) for extent in space))
        counts = [len(self._run.tensor(batch, source)) for batch in range(self._run.batch_count)]
        pieces = [(batch, start) for batch, count in enumerate(counts) for start in range(0, count, size)]
        for number in np.random.default_rng(0).permutation(len(pieces)).tolist():
            batch, start = pieces[number]
            block = self._block(batch, slice(start, start + size), number)
            yield block
            needed, room = needed - len(block.read), room - block.byte_count
            if needed <= 0 or room <= 0:
                break

    def _block(self, batch: int, inputs: slice, number: int) -> _Block:
        path, kept = self._path, self._weights
        u, x = (np.asarray(self._run.tensor(batch, layer.source)[inputs]) for layer in (path.producer, path.consumer))
        place = drawn_block(path, u.shape, x.shape, number) if path.consumer.layout == "conv" else None
        window = None if place is None else place.second
        if place is None:
            patches, read = (rows_of(values, values.ndim - 1)[:, own] for values, own in ((u, kept.inputs), (x, kept.rows)))
            shape: tuple[int, ...] = (len(patches),)
        else:
            patches = place.first_patches(u, kept.inputs)
            read, shape = place.second_patches(x, kept.rows), (len(u), *place.first.extents)
        current = kept.consumer.outputs(read)

        def view(tensor: np.ndarray) -> np.ndarray:
            own = np.asarray(tensor[inputs])
            return rows_of(own, path.consumer.output_axis) if place is None else own[(slice(None), slice(None), *place.outputs)]

        if place is not None:
            current = np.moveaxis(current.reshape(len(u), *place.second.extents, -1), -1, 1)
        missing = np.moveaxis(self._residual(batch, view, current)[:, kept.outputs], 1, -1).reshape(len(read), -1)
        missing = missing.astype(np.float32) * kept.output_scale
        slope = self._slope(kept.producer.outputs(patches).reshape(*shape, -1))
        patches = np.concatenate([patches, np.full((len(patches), 1), kept.moves_bias, np.float32)], 1)
        return _Block(patches, slope, read, missing, (missing != 0).astype(np.float32), window)

    def _slope(self, p: Singles) -> Singles:
        """f'(p) (N, *space, k); behind a pooling 0 but for the largest values of its windows."""
        rows = np.moveaxis(p, -1, 1).astype(self._run.tensor(0, self._path.consumer.source).dtype)
        further = (rows + np.float32(DIFFERENCE * p.std())).astype(rows.dtype)
        found = self._activation(np.concatenate([rows, further])).astype(np.float32)
        values, changed = np.split(np.moveaxis(found, 1, -1), 2)
        step = np.moveaxis(np.subtract(further, rows, dtype=np.float32), 1, -1)
        slope: Singles = np.divide(changed - values, step, out=np.zeros(p.shape, np.float32), where=step > 0)
        if self._path.pool:
            slope *= values == repeated(by_window(values, self._path.pool, np.max), self._path.pool)
        return slope


def _enough(unknowns: int) -> float:
    """Samples that a step is taken from."""
    return max(SAMPLES * enough_samples(unknowns), min(SAMPLES_PER_UNKNOWN * unknowns, SAMPLES * AMPLE_AT_MOST))


def _total(parts: Iterable[Floats]) -> Floats:
    """Their sum, one at a time."""
    iterator = iter(parts)
    total = next(iterator)
    for each in iterator:
        total += each
    return total


def _product(one: Singles, other: Singles) -> Floats:
    return np.asarray(one.T @ other, np.float64)
