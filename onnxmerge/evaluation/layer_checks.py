"""When two models are compared layer by layer, on which inputs, and which of the differences are failures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.evaluation.layer_comparison import compare_layers
from onnxmerge.results import LayerComparison

LAYER_INPUTS, MAX_LAYER_INPUTS = 8, 256  # inputs that layers are compared on, at least and at most
LAYER_WORK = 4_000_000  # numbers in all tensors of all runs, above which no more than LAYER_INPUTS are used
LAYER_ELEMENTS = 100_000_000  # numbers in all tensors of one run, above which layers are compared only where that was asked for

Shapes = Mapping[str, tuple[int, ...]]


def fits_in_memory(shapes: Shapes) -> bool:
    """Whether all tensors of one run are small enough to be held without the user asking for it."""
    return _elements(shapes) < LAYER_ELEMENTS


def _elements(shapes: Shapes) -> int:
    """Numbers in all tensors of one run."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def compare_some_layers(reference: Path, candidate: Path, inputs: Inputs, shapes: Shapes) -> LayerComparison:
    """Compare two models layer by layer on the first inputs, more of them where the tensors are small, one in each run."""
    batch = inputs.batch_size or 1
    count = min(inputs.count, max(LAYER_INPUTS, min(MAX_LAYER_INPUTS, LAYER_WORK // max(_elements(shapes), 1)), batch))
    some = inputs.subset(np.arange(count - count % batch), "the first ones")
    return compare_layers(reference, candidate, some.batches(1), (str(reference), str(candidate)))


def layer_failures(layers: LayerComparison | None) -> list[str]:
    """What fails: any deviation where no channel was removed, else changes that removing channels does not explain."""
    if layers is None:
        return []
    if layers.first_deviation is not None and layers.same_channel_counts:
        note = f": {layers.first_deviation.note}" if layers.first_deviation.note else ""
        return [f"no channel was removed, but the outputs deviate from {layers.first_deviation.node} on{note}"]
    return list(layers.unexplained)
