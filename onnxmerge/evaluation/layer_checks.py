"""When models are compared layer by layer, on which inputs, and which of the differences are mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.evaluation.layer_comparison import compare_layers
from onnxmerge.results import LayerComparison

LAYER_INPUTS, MOST_LAYER_INPUTS = 8, 256
LAYER_WORK = 4_000_000  # more inputs than the fewest only where a run holds few numbers
LAYER_ELEMENTS = 100_000_000  # of one run: beyond, layers are compared only where that was asked

Shapes = Mapping[str, tuple[int, ...]]


def fits_in_memory(shapes: Shapes) -> bool:
    """Whether all tensors of a run may be held without being asked for."""
    return _elements(shapes) < LAYER_ELEMENTS


def _elements(shapes: Shapes) -> int:
    """Numbers in all tensors of one run."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def compare_some_layers(reference: Path, candidate: Path, inputs: Inputs, shapes: Shapes) -> LayerComparison:
    """On a few inputs, more of small ones, one a run: the tensors of one run of both models are in memory at a time."""
    wanted = max(LAYER_INPUTS, min(MOST_LAYER_INPUTS, LAYER_WORK // max(_elements(shapes), 1)), inputs.batch_size or 1)
    number = min(inputs.count, wanted)
    some = inputs.subset(np.arange(number - number % (inputs.batch_size or 1)), "first")
    return compare_layers(reference, candidate, some.batches(1), (str(reference), str(candidate)))


def layer_failures(layers: LayerComparison | None) -> list[str]:
    """What the layer-wise comparison found wrong: any drift where no channel was removed, else what removal does not explain."""
    if layers is None:
        return []
    if layers.first_deviation is not None and layers.same_channel_counts:
        note = f": {layers.first_deviation.note}" if layers.first_deviation.note else ""
        return [f"no channel was removed, but the outputs drift from {layers.first_deviation.node} on{note}"]
    return list(layers.unexplained)
