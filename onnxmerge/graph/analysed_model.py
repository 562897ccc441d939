"""A file understood: the model, its tensors' shapes in a tiny run, its channel groups and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxmerge.errors import ModelError
from onnxmerge.execution.shapes import Observations, observe_twice, random_values
from onnxmerge.graph.analysis import analyse
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.cost import total_macs, total_parameters
from onnxmerge.graph.layers import label
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.model_files import external_bytes, load
from onnxmerge.results import Size


@dataclass(frozen=True)
class AnalysedModel:
    """The model, ready to be decided on.

    observed: every tensor in the tiny run, elsewhere: in a run with other dynamic sizes, None where there is none.
    """

    model: Model
    channels: Channels
    observed: Observations
    size: Size
    elsewhere: Observations | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> concrete shape."""
        return {name: seen.shape for name, seen in self.observed.items()}

    def feeds(self, seen: Observations) -> dict[str, np.ndarray]:
        """Random inputs of the shapes of a run."""
        generator = np.random.default_rng(0)
        inputs = [tensor.name for tensor in self.model.graph.inputs]
        return {name: random_values(generator, seen[name].shape, seen[name].dtype) for name in inputs}


def analyse_model(path: Path) -> AnalysedModel:
    """Load, run once or twice on tiny inputs, follow the channels. Raises ModelError with one clear line."""
    model = load(path)
    first, second = observe_twice(path, label=path.name)
    shapes = {name: seen.shape for name, seen in first.items()}
    others = None if second is None else {name: seen.shape for name, seen in second.items()}
    values = {name: seen.value for name, seen in first.items() if seen.value is not None}
    channels = analyse(model, shapes, others, values)
    for layer in channels.flow.layers:
        if not np.isfinite(layer.stored_weight).all():
            raise ModelError(f"{path}: the weight of {label(layer.node)} holds NaN or infinity; export the model anew")
    size = measure(model, shapes, path.stat().st_size + external_bytes(model.proto))
    return AnalysedModel(model, channels, first, size, second)


def measure(model: Model, shapes: dict[str, tuple[int, ...]], file_bytes: int) -> Size:
    """Parameters, MACs for the shapes given, bytes."""
    return Size(total_parameters(model), total_macs(model, shapes), file_bytes)
