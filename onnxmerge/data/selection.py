"""Which inputs a model is pruned on, and which a candidate is checked, verified or timed on."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from onnxmerge.algorithms import sample_counts
from onnxmerge.data import first_layers
from onnxmerge.data.balance import balanced, held
from onnxmerge.data.batching import batching, check_batch
from onnxmerge.data.fed_back import fed_back, follow_one_another, replaced_states, with_own_states
from onnxmerge.data.first_layers import InputProperties
from onnxmerge.data.given_shapes import checked_shapes
from onnxmerge.data.images import image_reading_of
from onnxmerge.data.inputs import Inputs, calibration_inputs
from onnxmerge.data.next_tokens import WINDOWS, looks_back_only, predicted_input, sweeps_for, with_predicted_tokens
from onnxmerge.data.synthetic import image_range_of
from onnxmerge.data.synthetic_inputs import synthetic_inputs
from onnxmerge.execution.batch_axes import WITHOUT_BATCH, Axes, batch_symbol, named_axes, without_axis
from onnxmerge.execution.first_run import batch_that_fits
from onnxmerge.execution.input_sizes import GivenShapes, with_given_sizes
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.execution.tensor_specs import input_specs
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions
from onnxmerge.results.fidelity import MIN_CHECK_INPUTS

CHECK_INPUTS = 256  # synthetic inputs that a candidate is compared on
INPUT_ELEMENTS = 128 * 3 * 224 * 224  # numbers in all synthetic inputs: with larger ones fewer are made, to bound the time
BATCH = 32  # inputs in one call where outputs are compared

# Synthetic inputs to prune on, chosen balanced over the classes out of this many times more; at least, and at most where a layer
# has fewer samples than unknowns: with 768 in place of 384 VGG-16 lost a fifth less, and it is as accurate with 576 (85.20 %).
CALIBRATION_INPUTS, MAX_CALIBRATION_INPUTS, OVERSAMPLING = 384, 576, 2
# More, up to `AMPLE` samples an unknown, as long as all of them together take few multiply-accumulates, a second or less: of two
# digit classifiers of 0.3 and 1.6 M, at half of their MACs, 2,048 and 1,517 inputs keep a fidelity of 0.909 and 0.900, 384 keep
# 0.904 and 0.862.
CHEAP_MACS = 2.5e9
# The same for a network whose first layer is dense: it gives only one sample an input, and costs little. With 3,072 the
# divergence of the predicted classes of five perceptrons without 50 to 80 % of their channels is a fourteenth larger.
DENSE_CALIBRATION_INPUTS, DENSE_OVERSAMPLING = 6144, 2

MIN_INPUTS_TO_SPLIT = 16  # of the user's: with fewer, pruning needs them all and the check uses the same
# Of the user's inputs `MIN_CHECK_INPUTS` are held out, at most this share; of many ones a tenth, or a quarter where a search
# decides by them: a classifier of some hundred types of files was thought to change 1.7 % of its decisions, on 32 of 225 inputs,
# and changed 11 % of others.
LARGEST_SHARE, LARGEST_SHARE_SEARCHED = 1 / 3, 1 / 2
MAX_HELD_OUT, HELD_OUT_SHARE, HELD_OUT_SHARE_SEARCHED = 128, 0.1, 0.25
FRESH = 1 << 31  # number of the first synthetic input of `verify` and `bench`: no compression draws so many

Shapes = Mapping[str, tuple[int, ...]]


def calibration_and_check_inputs(
    source: Path,
    analysed: AnalysedModel,
    options: InputOptions,
    runtime: RuntimeOptions,
    pruning: PruningOptions,
    checked: bool = True,
    tell: Callable[[float], None] | None = None,
    held_out: int | None = None,
) -> tuple[Inputs, Inputs]:
    """Inputs to prune a model on, and others to check a candidate on; the same ones whatever the execution provider.

    Parameters
    ----------
    source : Path
        File of the model.
    analysed : AnalysedModel
        The model.
    options, runtime, pruning : InputOptions, RuntimeOptions, PruningOptions
        The user's.
    checked : bool
        Whether a candidate is checked at all; with False the user's inputs are not split.
    tell : Callable or None
        Told the share of the work that is done.
    held_out : int or None
        How many of the user's inputs are for the check, where a plan says so and there are enough; None: as their number says.

    Returns
    -------
    calibration, check : Inputs
        Synthetic inputs of two seeds, or the user's, a random part of them held out for the check.

    Raises
    ------
    InputError
        Where the inputs are too few or do not match the model, or the model does not take the batch that is to be timed.
    """
    is_run = not pruning.uses_weights_only  # elsewhere it only says what the inputs are
    session = open_session(source, optimise=True, threads=runtime.threads, label=str(source), prepack=is_run).called(
        analysed.call
    )
    check_batch(source, batching(session.inputs, analysed.shapes).size, runtime.batch, analysed.shapes)
    if options.calibration is None:
        return _synthetic(session, analysed, options, runtime.max_memory, pruning.uses_weights_only, tell)
    given = inputs_for(session, analysed.shapes, options, max_memory=runtime.max_memory)
    step = given.batch_size or 1
    fits = held_out is not None and 2 * step <= given.count and 3 * held_out <= 2 * given.count  # a plan may be for more inputs
    if held_out is not None and fits and not pruning.uses_weights_only:
        return given.split(float(held_out), options.seed)
    searched = pruning.is_searched
    if not searched and (not checked or pruning.uses_weights_only):
        return given, given
    if given.count < (2 * step if searched else max(MIN_INPUTS_TO_SPLIT, 2 * step)):
        same = f"{given.description}, the same that the model was pruned on"
        return given, replace(given, description=same, is_solved_on=checked)
    most = given.count * (LARGEST_SHARE_SEARCHED if searched else LARGEST_SHARE)
    share = HELD_OUT_SHARE_SEARCHED if searched else HELD_OUT_SHARE
    number = max(given.count * share, float(min(MIN_CHECK_INPUTS, most // 1)))
    return given.split(max(1.0, min(MAX_HELD_OUT, number)), options.seed)


def _synthetic(
    session: Session,
    analysed: AnalysedModel,
    options: InputOptions,
    max_memory: int | None,
    weights_only: bool,
    tell: Callable[[float], None] | None,
) -> tuple[Inputs, Inputs]:
    properties = first_layers.input_properties(analysed.channels.facts)
    made = partial(inputs_for, session, analysed.shapes, properties=properties, max_memory=max_memory)
    check = held(made(replace(options, seed=options.seed + 1, samples=None)))
    if weights_only:
        return check, check
    dense = first_layers.dense_first_layer(analysed)
    factor, count = oversampling(analysed), inputs_needed(analysed)
    samples = None if options.samples is None else factor * options.samples
    inputs = made(replace(options, samples=samples), factor * count)
    count = options.samples or min(count, inputs.count // factor)
    if dense is not None:
        inputs = first_layers.with_first_layer_noise(inputs, *dense, options.seed)
    return balanced(held(inputs), session, count, BATCH, tell), check


def token_sweeps(analysed: AnalysedModel) -> int:
    """How often the synthetic tokens of a model of language are predicted anew; 0 for other models."""
    limits = first_layers.input_properties(analysed.channels.facts).id_limits
    tokens = predicted_input(analysed.shapes, limits, analysed.model.graph.outputs[0].name)
    return 0 if tokens is None else sweeps_for(limits[tokens])


def oversampling(analysed: AnalysedModel) -> int:
    """How many times the synthetic inputs that are needed are made, to choose from; no number of classes balances texts."""
    if first_layers.dense_first_layer(analysed) is not None:
        return DENSE_OVERSAMPLING
    return 1 if token_sweeps(analysed) else OVERSAMPLING


def inputs_analysed(analysed: AnalysedModel) -> int:
    """How many inputs the run has that gave the shapes; axis 0 of a tensor may count more than these, as (inputs * tokens, n)."""
    known = batching(analysed.call.described(input_specs(analysed.model.proto)), analysed.shapes)
    return max((analysed.shapes[name][axis] for name, axis in known.axes.items()), default=1)


def inputs_needed(analysed: AnalysedModel) -> int:
    """How many synthetic inputs give every consumer enough samples for its unknowns, within the bounds stated above."""
    if first_layers.dense_first_layer(analysed) is not None:
        return DENSE_CALIBRATION_INPUTS
    most, inputs = 0.0, inputs_analysed(analysed)  # unknowns for each sample that an input gives
    for consumer in [consumer for group in analysed.channels.groups for consumer in group.consumers]:
        samples = math.prod(analysed.shapes[consumer.key]) / consumer.layer.out_ids.size / inputs
        most = max(most, consumer.layer.inputs_per_group * consumer.layer.kernel_size / max(samples, 1.0))
    if token_sweeps(analysed):
        return math.ceil(min(max(WINDOWS, sample_counts.MINIMUM * most), MAX_CALIBRATION_INPUTS))
    needed = min(max(CALIBRATION_INPUTS, sample_counts.MINIMUM * most), MAX_CALIBRATION_INPUTS)
    return math.ceil(max(needed, min(sample_counts.AMPLE * most, CHEAP_MACS / max(analysed.size.macs, 1))))


def inputs_for(
    session: Session,
    shapes: Shapes,
    options: InputOptions,
    count: int | None = None,
    properties: InputProperties | None = None,
    max_memory: int | None = None,
    fresh: bool = False,
) -> Inputs:
    """The user's inputs where there are some, synthetic ones elsewhere.

    Parameters
    ----------
    session : Session
        The model, `called` as its first runs showed.
    shapes : Mapping[str, tuple[int, ...]]
        Shape of every tensor in one run.
    options : InputOptions
        The user's.
    count : int or None
        Number of synthetic inputs unless `options.samples` says otherwise, fewer where they are large; as many as outputs are
        compared on by default.
    properties : InputProperties or None
        What the graph says of its inputs, for synthetic ones.
    max_memory : int or None
        Bytes that runs of several inputs may take, as `batch_that_fits` has it.
    fresh : bool
        Whether synthetic inputs are others than any that a model is solved or checked on, whatever its seed was.

    Returns
    -------
    Inputs
        Their `description` says where they come from, and how many were chosen.

    Raises
    ------
    InputError
        Where the user's inputs cannot be read or do not match the model.
    """
    inputs = _inputs_for(session, shapes, options, count, properties or InputProperties())
    if fresh and inputs.synthetic:
        inputs = replace(inputs, indices=inputs.indices + FRESH, description=f"{inputs.description}, others than compress draws")
    return replace(inputs, largest_batch=batch_that_fits(shapes, inputs.feeds_with(0), max_memory))


def elements_of_input(names: Iterable[str], shapes: Shapes, axes: Axes) -> int:
    """Numbers in one input of a model with these inputs, whose batch lies on these axes, else on axis 0."""
    return sum(math.prod(without_axis(shapes.get(name, ()), axes.get(name, 0))) for name in names)


def affordable(names: Iterable[str], shapes: Shapes, axes: Axes) -> int:
    """How many synthetic inputs have `INPUT_ELEMENTS`; 8 at least. The parameters are those of `elements_of_input`."""
    return max(8, INPUT_ELEMENTS // max(1, elements_of_input(names, shapes, axes)))


def _inputs_for(
    session: Session, shapes: Shapes, options: InputOptions, count: int | None, properties: InputProperties
) -> Inputs:
    image_range, specs, call_size = image_range_of(options), session.inputs, 1
    axes = batching(specs, shapes).axes
    output_axes = named_axes(session.outputs, batch_symbol(specs, axes))
    states = fed_back(specs, session.outputs, shapes, {**axes, **output_axes})
    output_axes |= {spec.name: WITHOUT_BATCH for spec in session.outputs if spec.is_whole}
    if options.input_shape is not None:
        sizes = checked_shapes(options.input_shape, specs)
        specs = tuple(with_given_sizes(specs, GivenShapes(sizes)))
        call_size = max((sizes[name][axis] for name, axis in batching(specs, shapes).axes.items() if name in sizes), default=1)
    if options.calibration is not None:
        given = calibration_inputs(options.calibration, specs, shapes, image_range, image_reading_of(options))
        given = replace(given, call_size=call_size, output_axes=output_axes, states=states)
        given = replace(given, in_sequence=given.batch_size in (None, 1) and follow_one_another(given, session, states))
        if options.samples is None or given.count <= options.samples or given.batch_size is not None:
            return given
        return given.subset(np.linspace(0, given.count - 1, options.samples).astype(np.int64), "evenly chosen")
    made = partial(synthetic_inputs, specs, shapes, seed=options.seed, image_range=image_range, id_limits=properties.id_limits)
    made = partial(made, sounds=properties.sounds)
    tokens, one = predicted_input(shapes, properties.id_limits, session.outputs[0].name), made(count=1)
    if tokens is not None and not (one.by_row and looks_back_only(session, one.feeds_with(0), tokens)):
        tokens = None
    count = count or (CHECK_INPUTS if tokens is None else WINDOWS)
    if not options.samples:
        count = min(count, affordable((spec.name for spec in session.inputs), shapes, axes))
    made = partial(made, undrawn=replaced_states(one, states) if tokens is None else ())
    inputs = replace(made(count=options.samples or count), call_size=call_size, output_axes=output_axes, states=states)
    if tokens is not None:
        return with_predicted_tokens(inputs, session, tokens, sweeps_for(properties.id_limits[tokens]), options.seed)
    scaled = inputs if image_range is not None else first_layers.scaled_for_batchnorm(inputs, properties)
    return with_own_states(scaled, session, states)
