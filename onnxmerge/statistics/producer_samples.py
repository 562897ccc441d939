"""How the outputs of a consumer change with the weights of its producer, to first order, on blocks of neighbouring positions.

For a producer p = V u + b, a path x = f(p) that mixes no channels and a consumer y = W x + c, a change d of V and b changes the
outputs by J d = W f'(p) (d u): see `path_derivatives`. What the consumer can make good itself is taken out of J d, since it is
solved again afterwards (Golub and Pereyra, "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose
Variables Separate", 1973).

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
from onnxmerge.graph.channel_paths import ChannelPath
from onnxmerge.statistics.blocks import BLOCK_EXTENT, drawn_block, every_position
from onnxmerge.statistics.channel_windows import Singles
from onnxmerge.statistics.path_derivatives import PathDerivatives, StageDerivative
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

Floats = NDArray[np.float64]
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
    """inputs (samples of p, i + 1): patches of u, and ones for the bias, or zeros. stages: f'(p), stage by stage.

    read (samples of y, d): patches of x. residual (samples of y, outputs): scaled; active: 1 where it counts.
    """

    inputs: Singles
    stages: list[StageDerivative]
    read: Singles
    residual: Singles
    active: Singles
    window: Window | None

    @property
    def byte_count(self) -> int:
        """With two arrays more that are shaped like the residual."""
        slopes = sum(stage.slope.nbytes for stage in self.stages)
        return self.inputs.nbytes + slopes + self.read.nbytes + 4 * self.residual.nbytes


class ProducerSamples:
    """What the kept rows of a producer do to its consumer's outputs.

    Parameters
    ----------
    run : LayerwiseRun
        The compressed model, standing at the consumer; what the producer reads is still there, and so are the gates.
    path : ChannelPath
        Between the two.
    weights : PairWeights
        Of the two.
    residual : callable
        What the outputs miss. Zeros say that an output does not count there.
    system : RidgeSystem
        The consumer's least squares, solved.
    """

    def __init__(
        self, run: LayerwiseRun, path: ChannelPath, weights: PairWeights, residual: Residual, system: RidgeSystem
    ) -> None:
        self._run, self._path, self._weights, self._residual, self._system = run, path, weights, residual, system
        self._flat = weights.consumer.weight[weights.outputs] * weights.output_scale[:, np.newaxis]
        self._derivatives = PathDerivatives(run, path, weights.rows)
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
        by_position = self._flat.reshape(-1, self._weights.rows.size).astype(np.float64)
        inputs = _total(_product(block.inputs, block.inputs) for block in some)
        outputs = by_position.T @ by_position
        for stages in zip(*(block.stages for block in some), strict=True):
            outputs *= _total(stage.curvature() for stage in stages) / len(stages)
        return inputs * (samples[-1] / seen), outputs

    def change(self, step: Floats) -> list[Singles]:
        """J d of each block for d (k, i + 1), less what the consumer can make good."""
        return self._beyond_consumer([self._forward(block, step.T.astype(np.float32)) for block in self._blocks])

    def gradient(self, outputs: Sequence[Singles]) -> Floats:
        """J^T r (k, i + 1) for r of each block."""
        return _total(self._backward(*each) for each in zip(self._blocks, outputs, strict=True))

    def _forward(self, block: _Block, step: Singles) -> Singles:
        moved: Singles = (block.inputs @ step).reshape(block.stages[0].slope.shape)
        for stage in block.stages:
            moved = stage.forward(moved)
        if block.window is not None and block.window.is_pointwise:
            moved = moved.reshape(-1, moved.shape[-1])
        elif block.window is not None:
            every = np.arange(moved.shape[-1])[np.newaxis]
            (moved,) = patches_of(np.moveaxis(moved, -1, 1), block.window, every, every_position(block.window))
        return np.asarray(np.multiply(moved @ self._flat.T, block.active))

    def _backward(self, block: _Block, outputs: Singles) -> Floats:
        units = (outputs * block.active) @ self._flat
        shape = block.stages[-1].slope.shape
        if block.window is not None and not block.window.is_pointwise:
            units = np.moveaxis(folded(units, block.window, (shape[0], shape[-1], *shape[1:-1])), 1, -1)
        units = units.reshape(shape)
        for stage in reversed(block.stages):
            units = stage.backward(units)
        return _product(units.reshape(-1, units.shape[-1]), block.inputs)

    def _beyond_consumer(self, outputs: list[Singles]) -> list[Singles]:
        """The part of outputs of each block that is no affine function of what the consumer reads."""
        mean = (np.sum([each.sum(0, dtype=np.float64) for each in outputs], 0) / self.count).astype(np.float32)
        crossed = _total(_product(block.read, each) for block, each in zip(self._blocks, outputs, strict=True))
        weight = self._system.regression(crossed / self.count).astype(np.float32)
        return [each - (block.read @ weight + mean) for block, each in zip(self._blocks, outputs, strict=True)]

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
        place = drawn_block(path, u.shape, number) if path.consumer.layout == "conv" else None
        window = None if place is None else place.windows[-1]
        if place is None:
            patches, read = (rows_of(values, values.ndim - 1)[:, own] for values, own in ((u, kept.inputs), (x, kept.rows)))
            shape: tuple[int, ...] = (len(patches),)
        else:
            patches = place.first_patches(u, kept.inputs)
            read, shape = place.last_patches(x, kept.rows), (len(u), *place.windows[0].extents)
        current = kept.consumer.outputs(read)

        def view(tensor: np.ndarray) -> np.ndarray:
            own = np.asarray(tensor[inputs])
            return rows_of(own, path.consumer.output_axis) if place is None else own[(slice(None), slice(None), *place.outputs)]

        if place is not None:
            current = np.moveaxis(current.reshape(len(u), *place.windows[-1].extents, -1), -1, 1)
        missing = np.moveaxis(self._residual(batch, view, current)[:, kept.outputs], 1, -1).reshape(len(read), -1)
        missing = missing.astype(np.float32) * kept.output_scale
        stages = self._derivatives.at(kept.producer.outputs(patches).reshape(*shape, -1), place, (batch, inputs))
        patches = np.concatenate([patches, np.full((len(patches), 1), kept.moves_bias, np.float32)], 1)
        return _Block(patches, stages, read, missing, (missing != 0).astype(np.float32), window)


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
