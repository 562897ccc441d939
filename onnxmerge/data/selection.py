"""Which inputs solve, which check a candidate, and which verify or time it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxmerge.algorithms import sample_counts
from onnxmerge.data.balance import balanced
from onnxmerge.data.first_layer_noise import dense_first_layer, with_shaped_noise
from onnxmerge.data.input_hints import Hints, hints_of, spread
from onnxmerge.data.inputs import Inputs, batching, calibration_inputs, check_batch, synthetic_inputs
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions

CHECK_INPUTS = 256
INPUT_ELEMENTS = 128 * 3 * 224 * 224  # large inputs are checked with fewer of them
BATCH = 32
SOLVE_INPUTS, POOL_SHARE = 384, 5  # synthetic inputs, out of a pool so many times larger
MOST_INPUTS = 768  # out of the same pool, where a layer has fewer samples than unknowns: VGG-16 loses a fifth less so
DENSE_INPUTS, DENSE_POOL_SHARE = 3072, 2  # a dense network gives one sample an input, and costs little
SMALLEST_SPLIT = 16
FEWEST_CHECKED = 32  # where a fidelity is searched on them
HELD_BACK, HELD_BACK_SHARE = 128, 0.1

Shapes = Mapping[str, tuple[int, ...]]


def solving_and_checking(
    source: Path,
    analysed: AnalysedModel,
    options: InputOptions,
    runtime: RuntimeOptions,
    pruning: PruningOptions,
    checked: bool = True,
) -> tuple[Inputs, Inputs]:
    """Other seeds of synthetic inputs to check on, or a part held back of the user's; the same ones whatever the provider.

    Raises InputError where there are too few, or where the model takes another number a call than is to be timed.
    """
    session = open_session(source, optimise=True, threads=runtime.threads, label=str(source))
    check_batch(source, batching(session.inputs, analysed.shapes).size, runtime.batch)
    if options.calibration is None:
        hints = hints_of(analysed.channels)
        check = inputs_for(session, analysed.shapes, replace(options, seed=options.seed + 1, samples=None), CHECK_INPUTS, hints)
        if pruning.uses_weights_only:
            return check, check
        dense = dense_first_layer(analysed.channels)
        usual, share = (SOLVE_INPUTS, POOL_SHARE) if dense is None else (DENSE_INPUTS, DENSE_POOL_SHARE)
        samples = None if options.samples is None else share * options.samples
        pool = inputs_for(session, analysed.shapes, replace(options, samples=samples), share * usual, hints)
        wanted = options.samples or min(usual if dense is not None else _enough(analysed), pool.count // 2)
        if dense is not None:
            pool = with_shaped_noise(pool, *dense, options.seed)
        return balanced(pool, session, wanted, BATCH), check
    given = inputs_for(session, analysed.shapes, options)
    searched = pruning.fidelity is not None
    if not searched and (not checked or pruning.uses_weights_only):
        return given, given
    step = given.batch_size or 1
    if given.count < (2 * step if searched else max(SMALLEST_SPLIT, 2 * step)):
        return given, replace(given, source=f"{given.source}, the same that were solved on")
    held_back = max(given.count * HELD_BACK_SHARE, float(min(FEWEST_CHECKED, given.count // 2)) if searched else 0.0)
    return given.split(max(1.0, min(HELD_BACK, held_back)), options.seed)


def _enough(analysed: AnalysedModel) -> int:
    """As many inputs as give every layer that may be solved a sample an unknown, between SOLVE_INPUTS and MOST_INPUTS."""
    needed = float(SOLVE_INPUTS)
    for link in [link for group in analysed.channels.groups for link in group.consumers]:
        shape = analysed.shapes[link.key]
        samples = math.prod(shape[1:]) / link.layer.out_ids.size
        unknowns = link.layer.inputs_per_group * link.layer.kernel_size
        needed = max(needed, sample_counts.MINIMUM * unknowns / max(samples, 1.0))
    return min(math.ceil(needed), MOST_INPUTS)


def inputs_for(
    session: Session, shapes: Shapes, options: InputOptions, count: int = CHECK_INPUTS, hints: Hints | None = None
) -> Inputs:
    """Calibration inputs where the user gave some, synthetic ones elsewhere; hints: what the graph says of its inputs."""
    hints = hints or Hints()
    image_range = _image_range(options)
    if options.calibration is not None:
        given = calibration_inputs(options.calibration, session.inputs, shapes, image_range)
        if options.samples is None or given.count <= options.samples or given.batch_size is not None:
            return given
        return given.chosen(np.linspace(0, given.count - 1, options.samples).astype(np.int64), "evenly chosen")
    count = options.samples or min(count, _affordable(shapes, session))
    made = synthetic_inputs(session.inputs, shapes, count, options.seed, image_range, hints.limits)
    return made if image_range is not None else spread(made, hints)


def _image_range(options: InputOptions) -> ImageRange | None:
    """None where nothing was said of pixels."""
    if options.input_range is None and options.mean is None and options.std is None:
        return None
    low, high = options.input_range or (0.0, 1.0)
    return ImageRange(low, high, options.mean or (0.0,), options.std or (1.0,))


def _affordable(shapes: Shapes, session: Session) -> int:
    elements = sum(int(np.prod(shapes.get(spec.name, ())[1:])) for spec in session.inputs)
    return max(8, INPUT_ELEMENTS // max(1, elements))
