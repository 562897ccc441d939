"""Derivatives of what lies on a path between two layers, stage by stage, on blocks of values.

Behind a MaxPool the largest value of a window passes its derivative on, the others none. Gates are held where they are: where
they squeeze and excite (Hu, Shen, Sun, "Squeeze-and-Excitation Networks", 2018) they depend on the producer as well, but through
means over all positions, and each step is judged by what the consumer measures after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_paths import ChannelPath, ChannelWindow, PathStage
from onnxmerge.statistics.blocks import BlockPlace
from onnxmerge.statistics.channel_windows import Singles, windowed, windowed_adjoint
from onnxmerge.statistics.unfold import Window

DIFFERENCE = 2.0**-5
"""Step of the differences in the place of derivatives, in standard deviations: 50 times the spacing of float16 there."""

Inputs = tuple[int, slice]
"""Number of a batch, and which of its inputs."""


@dataclass(frozen=True)
class StageDerivative:
    """slope (N, *spatial, channels) or (rows, channels): of the function. window: of what is read of it, with its weight."""

    slope: Singles
    window: Window | None = None
    weight: Singles | None = None

    def forward(self, change: Singles) -> Singles:
        """How what the stage gives changes when what it reads changes."""
        moved = change * self.slope
        return moved if self.window is None or self.weight is None else windowed(moved, self.window, self.weight)

    def backward(self, values: Singles) -> Singles:
        """The adjoint of `forward`."""
        if self.window is not None and self.weight is not None:
            values = windowed_adjoint(values, self.window, self.weight, self.slope.shape[1:-1])
        return np.asarray(values * self.slope)

    def curvature(self) -> NDArray[np.float64]:
        """(channels, channels): what second moments of changes are multiplied with, where positions change alone."""
        flat = self.slope.reshape(-1, self.slope.shape[-1])
        found = np.asarray(flat.T @ flat, np.float64) / len(flat)
        if self.weight is not None and len(self.weight) > 1:
            found *= self.weight.T.astype(np.float64) @ self.weight
        return found


class PathDerivatives:
    """Derivatives of the stages of a path, for the kept rows of its producer.

    Parameters
    ----------
    run : LayerwiseRun
        Stands at the consumer; the gates are still there.
    path : ChannelPath
        The path.
    rows : ndarray of int
        Which rows of the producer are kept.
    """

    def __init__(self, run: LayerwiseRun, path: ChannelPath, rows: NDArray[np.int64]) -> None:
        self._run, self._path, self._rows = run, path, rows
        self._dtype = run.tensor(0, path.consumer.source).dtype
        self._functions = [self._function(stage) for stage in path.stages]

    def at(self, p: Singles, place: BlockPlace | None, inputs: Inputs) -> list[StageDerivative]:
        """Where the producer gives p (N, *spatial, k) or (rows, k); place: of the block, None for rows."""
        found = []
        for number, (stage, function) in enumerate(zip(self._path.stages, self._functions, strict=True), 1):
            values, slope = self._slope(p, function, inputs)
            if stage.window is None or place is None:
                found.append(StageDerivative(slope))
                continue
            window, (weight, bias) = place.windows[number], self._numbers(stage.window)
            p = windowed(values, window, weight, np.maximum if stage.window.is_max else np.add) + bias
            if stage.window.is_max:
                slope *= values == windowed_adjoint(p, window, weight, values.shape[1:-1])
            found.append(StageDerivative(slope, window, weight))
        return found

    def _numbers(self, window: ChannelWindow) -> tuple[Singles, Singles]:
        """Weight (kernel size or 1, k or 1) and bias (k or 1,)."""
        weight, bias = (each[self._rows] if len(each) > 1 else each for each in (window.weight, window.bias))
        return np.ascontiguousarray(weight.T, np.float32), bias.astype(np.float32)

    def _function(self, stage: PathStage) -> Callable[[np.ndarray, Inputs], np.ndarray]:
        """Gives for (n * N, k, *spatial) or (n * rows, k), n times the inputs, the function's values."""
        rows, width = self._rows, self._path.producer.out_ids.size
        if stage.activation == stage.source:
            return lambda values, inputs: values
        example = np.zeros((1, width, *[1] * len(self._path.producer.kernel_shape)), self._dtype)
        gates = {name: self._run.tensor(0, name) for name in stage.gates if name in self._run.available}  # others are constants
        session = self._run.session_between({stage.source: example, **gates}, stage.activation)

        def function(values: np.ndarray, inputs: Inputs) -> np.ndarray:
            whole = np.zeros((len(values), width, *values.shape[2:]), values.dtype)
            whole[:, rows] = values
            beside = {name: self._gate(name, inputs, len(values)) for name in gates}
            (found,) = session.run({stage.source: whole, **beside}).values()
            return np.asarray(found).reshape(whole.shape)[:, rows]

        return function

    def _gate(self, name: str, inputs: Inputs, count: int) -> np.ndarray:
        """Of the inputs, one after the other, again and again up to the count."""
        batch, own = inputs
        values = np.asarray(self._run.tensor(batch, name))
        batch_size = len(self._run.tensor(batch, self._path.consumer.source))
        taken = np.broadcast_to(values, (batch_size, *values.shape[1:]))[own]
        return np.concatenate([taken] * (count // len(taken)))

    def _slope(self, p: Singles, function: Callable[[np.ndarray, Inputs], np.ndarray], inputs: Inputs) -> tuple[Singles, Singles]:
        """f(p) and f'(p), shaped like p."""
        rows = np.moveaxis(p, -1, 1).astype(self._dtype)
        further = (rows + np.float32(DIFFERENCE * p.std())).astype(rows.dtype)
        found = function(np.concatenate([rows, further]), inputs).astype(np.float32)
        values, changed = np.split(np.moveaxis(found, 1, -1), 2)
        step = np.moveaxis(np.subtract(further, rows, dtype=np.float32), 1, -1)
        return values, np.divide(changed - values, step, out=np.zeros(p.shape, np.float32), where=step > 0)
