"""What makes a candidate fail: thresholds missed, and mistakes that no removal of channels explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxmerge.drift import LayerDrift
from onnxmerge.options import Options
from onnxmerge.results import Fidelity
from onnxmerge.runtime.fidelity import check_thresholds
from onnxmerge.runtime.layers import compare_layers
from onnxmerge.statistics.inputs import Inputs

DEFAULT_COSINE = 0.9  # `verify` without thresholds
ROUNDING = {"DOUBLE": 1e-10, "FLOAT": 1e-4, "FLOAT16": 1e-2, "BFLOAT16": 5e-2}  # mean relative L2 at the outputs
LAYER_INPUTS, MOST_LAYER_INPUTS = 8, 256
LAYER_WORK = 4_000_000  # more inputs than the fewest only where a run holds few numbers
LAYER_ELEMENTS = 100_000_000  # of one run: beyond, layers are compared only where that was asked

Shapes = Mapping[str, tuple[int, ...]]


def missed_thresholds(fidelity: Fidelity, options: Options) -> list[str]:
    """What `compress` fails for: the user's thresholds, and NaN."""
    return check_thresholds(
        fidelity, options.min_fidelity, options.min_cosine, options.min_top1_agreement, options.max_relative_l2
    )


def failures_of(fidelity: Fidelity, options: Options, float_types: frozenset[str]) -> list[str]:
    """What `verify` fails for. Without thresholds, a model that lost channels may turn its outputs a little, another not at all.

    float_types: ONNX's names of the types that the candidate's weights are stored in.
    """
    if thresholds_wished(options):
        return missed_thresholds(fidelity, options)
    if not fidelity.same_layers:
        return missed_thresholds(fidelity, replace(options, min_cosine=DEFAULT_COSINE))
    coarsest = max((ROUNDING[kind] for kind in float_types & ROUNDING.keys()), default=ROUNDING["FLOAT"])
    why = "no channel was removed, so that only rounding may differ; a threshold of your own allows more"
    failures = missed_thresholds(fidelity, replace(options, max_relative_l2=coarsest))
    return [*failures[:-1], f"{failures[-1]} ({why})"] if failures else []


def thresholds_wished(options: Options) -> bool:
    """Whether the user set a threshold."""
    wished = (options.min_fidelity, options.min_cosine, options.min_top1_agreement, options.max_relative_l2)
    return any(threshold is not None for threshold in wished)


def small_enough(shapes: Shapes) -> bool:
    """Whether all tensors of a run may be held without being asked for."""
    return _elements(shapes) < LAYER_ELEMENTS


def _elements(shapes: Shapes) -> int:
    """Numbers in all tensors of one run."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def layer_drift(reference: Path, candidate: Path, inputs: Inputs, shapes: Shapes) -> LayerDrift:
    """On a few inputs, more of small ones, one a run: the tensors of one run of both models are in memory at a time."""
    wanted = max(LAYER_INPUTS, min(MOST_LAYER_INPUTS, LAYER_WORK // max(_elements(shapes), 1)), inputs.batch_size or 1)
    number = min(inputs.count, wanted)
    some = inputs.chosen(np.arange(number - number % (inputs.batch_size or 1)), "first")
    return compare_layers(reference, candidate, some.batches(1), (str(reference), str(candidate)))


def mistakes_of(layers: LayerDrift | None) -> list[str]:
    """What the layer-wise comparison found wrong: any drift where no channel was removed, else what removal does not explain."""
    if layers is None:
        return []
    if layers.first is not None and layers.same_layers:
        note = f": {layers.first.note}" if layers.first.note else ""
        return [f"no channel was removed, but the outputs drift from {layers.first.node} on{note}"]
    return list(layers.mistakes)
