"""Inputs to solve on and inputs to check on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from onnxmerge.graph.weights import canonical, weight_of
from onnxmerge.methods.by_weights import BY_WEIGHTS
from onnxmerge.options import Options
from onnxmerge.proof import BATCH, CHECK_INPUTS, check_batch, inputs_for
from onnxmerge.runtime.sessions import open_session
from onnxmerge.statistics.balance import balanced
from onnxmerge.statistics.hints import hints_of
from onnxmerge.statistics.inputs import Inputs, batching
from onnxmerge.statistics.shaped import dense_first_layer, with_shaped_noise
from onnxmerge.understanding import Understanding

SOLVE_INPUTS, POOL_SHARE = 384, 5  # synthetic inputs, out of a pool so many times larger
MOST_INPUTS = 768  # out of the same pool, where a layer has fewer samples than unknowns: VGG-16 loses a fifth less so
DENSE_INPUTS, DENSE_POOL_SHARE = 3072, 2  # a dense network gives one sample an input, and costs little
SMALLEST_SPLIT = 16
FEWEST_CHECKED = 32  # where a fidelity is searched on them
HELD_BACK, HELD_BACK_SHARE = 128, 0.1


def solving_and_checking(source: Path, understood: Understanding, options: Options) -> tuple[Inputs, Inputs]:
    """Other seeds of synthetic inputs to check on, or a part held back of the user's; the same ones whatever the provider.

    Raises InputError where there are too few, or where the model takes another number a call than is to be timed.
    """
    session = open_session(source, optimise=True, threads=options.threads, label=str(source))
    check_batch(source, batching(session.inputs, understood.shapes).size, options.batch)
    if options.calibration is None:
        hints = hints_of(understood.channels)
        check = inputs_for(session, understood.shapes, replace(options, seed=options.seed + 1, samples=None), CHECK_INPUTS, hints)
        if options.method in BY_WEIGHTS:
            return check, check
        dense = dense_first_layer(understood.channels)
        usual, share = (SOLVE_INPUTS, POOL_SHARE) if dense is None else (DENSE_INPUTS, DENSE_POOL_SHARE)
        samples = None if options.samples is None else share * options.samples
        pool = inputs_for(session, understood.shapes, replace(options, samples=samples), share * usual, hints)
        wanted = options.samples or min(usual if dense is not None else _enough(understood), pool.count // 2)
        if dense is not None:
            pool = with_shaped_noise(pool, *dense, options.seed)
        return balanced(pool, session, wanted, BATCH), check
    given = inputs_for(session, understood.shapes, options)
    searched = options.fidelity is not None
    if not searched and (not options.verify or options.method in BY_WEIGHTS):
        return given, given
    step = given.batch_size or 1
    if given.count < (2 * step if searched else max(SMALLEST_SPLIT, 2 * step)):
        return given, replace(given, source=f"{given.source}, the same that were solved on")
    held_back = max(given.count * HELD_BACK_SHARE, float(min(FEWEST_CHECKED, given.count // 2)) if searched else 0.0)
    return given.split(max(1.0, min(HELD_BACK, held_back)))


def _enough(understood: Understanding) -> int:
    """As many inputs as give every layer that may be solved a sample an unknown, between SOLVE_INPUTS and MOST_INPUTS."""
    flow, needed = understood.channels.flow, float(SOLVE_INPUTS)
    for link in [link for group in understood.channels.groups for link in group.consumers]:
        _, _, inside, positions = canonical(link.weighted, weight_of(flow, link.weighted)).shape
        shape = understood.shapes[link.key]
        samples = math.prod(shape[1:]) / link.weighted.out_ids.size
        needed = max(needed, inside * positions / max(samples, 1.0))
    return min(math.ceil(needed), MOST_INPUTS)
