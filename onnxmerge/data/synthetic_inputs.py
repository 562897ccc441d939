"""Inputs made without data for all inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxmerge.data.batching import Shapes, batching
from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.synthetic import UNKNOWN_IDS, ImageRange, Sampler, sampler
from onnxmerge.data.synthetic_kinds import MADE_OF
from onnxmerge.errors import InputError
from onnxmerge.execution.batch_axes import without_axis
from onnxmerge.execution.tensor_specs import TensorSpec

Values = Callable[[Indices, int], np.ndarray]
"""Of one model input, given the numbers of some inputs and of the call."""


def synthetic_inputs(
    specs: Sequence[TensorSpec],
    shapes: Shapes,
    count: int,
    seed: int,
    image_range: ImageRange | None = None,
    id_limits: Mapping[str, int] | None = None,
    sounds: Collection[str] = (),
    undrawn: Collection[str] = (),
) -> Inputs:
    """Make inputs without data.

    Values of row i of the model's k-th input come from a generator of their own, SeedSequence(seed, spawn_key=(k, i)).

    Parameters
    ----------
    specs : the model's inputs, as `Call.described` gives them where the model has been run
    shapes : shape of every input in one run
    count : number of inputs, rounded up to whole batches
    seed : of the random numbers
    image_range : how pixels become values; None for images of zero mean and unit variance, as networks for normalised images
        expect them
    id_limits : exclusive upper bound of integers by input; 2 for others
    sounds : inputs (N, samples) of sound
    undrawn : inputs that something else will be put in the place of: zeros, though described as they would be drawn

    Raises
    ------
    InputError
        For no inputs, and for model inputs that are no tensors.
    """
    model_batching = batching(specs, shapes)
    if count < 1:
        raise InputError(f"{count} synthetic inputs: at least 1 is needed")
    rounded = -(-count // model_batching.size) * model_batching.size if model_batching.size else count
    limits, axes = id_limits or {}, model_batching.axes
    settings = {spec.name for spec in specs if spec.is_setting and spec.name not in axes}  # as in the first run, in every call
    samplers, values = dict[str, Sampler](), dict[str, Values]()
    for position, spec in enumerate(specs):
        name, shape, axis = spec.name, shapes[spec.name], axes.get(spec.name)
        if name in settings:
            values[name] = partial(_setting, spec, shape)
            continue
        samplers[name] = sampler(spec, _batch_first(shape, axis or 0), image_range, limits.get(name), is_sound=name in sounds)
        zeros, drawn = partial(_zeros, spec, shape, axis), partial(_drawn, samplers[name], shape, axis, (seed, position))
        values[name] = zeros if name in undrawn else drawn

    def take(indices: Indices) -> dict[str, np.ndarray]:
        run = int(indices[0]) if model_batching.size else 0
        return {name: values_of(indices, run) for name, values_of in values.items()}

    description = f"{rounded} synthetic {_kinds(samplers)} (seed {seed})"
    is_all = len(axes) + len(settings) == len(specs)
    by_row = bool(axes) and (model_batching.size is None or (model_batching.size == 1 and is_all))
    unknown = tuple(name for name, each in samplers.items() if each.kind == UNKNOWN_IDS)
    assumed = {name: each.assumed for name, each in samplers.items()}
    made = Inputs(rounded, description, model_batching.size, np.arange(rounded), take, by_row=by_row, axes=axes)
    untold = tuple(spec.name for spec in specs if spec.name in settings and spec.setting is None)
    return replace(made, assumed=assumed, unknown_ids=unknown, untold_settings=untold)


def _setting(spec: TensorSpec, shape: tuple[int, ...], indices: Indices, run: int) -> np.ndarray:
    return spec.set_to(shape)


def _zeros(spec: TensorSpec, shape: tuple[int, ...], axis: int | None, indices: Indices, run: int) -> np.ndarray:
    return np.zeros([len(indices) if at == axis else size for at, size in enumerate(shape)], spec.dtype)


def _drawn(
    made: Sampler, shape: tuple[int, ...], axis: int | None, key: tuple[int, int], indices: Indices, run: int
) -> np.ndarray:
    """Random values of these rows, or of this call where no axis is the batch; key: the seed, and which of the inputs it is."""
    seed, position = key
    rows = _whole(shape, run) if axis is None else indices
    seeds = [np.random.SeedSequence(seed, spawn_key=(position, int(row))) for row in rows]
    drawn = made.draw([np.random.default_rng(each) for each in seeds])
    drawn = drawn.reshape(shape) if axis is None else np.moveaxis(drawn, 0, axis)
    return np.require(drawn, requirements="C")


def _batch_first(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (shape[axis], *without_axis(shape, axis)) if shape else shape


def _whole(shape: tuple[int, ...], run: int) -> Indices:
    """The rows that make up an input that is given whole to the run of this number."""
    size = shape[0] if shape else 1
    return np.arange(run * size, (run + 1) * size)


def _kinds(samplers: Mapping[str, Sampler]) -> str:
    kinds = list(dict.fromkeys(each.kind for each in samplers.values()))
    return kinds[0] if len(kinds) == 1 and kinds[0] in MADE_OF and kinds != ["noise"] else f"inputs: {', '.join(kinds)}"
