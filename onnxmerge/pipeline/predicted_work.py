"""The stages of a command with their predicted work, for the progress that is shown.

Seconds of one core with AVX-512, chosen for eleven networks, from perceptrons to VGG-16 and with convolutions, attention, LSTM
and one-hot embeddings. Beside other programs six commands (a MobileNetV2, a ResNet-56, a VGG-16 and a ViT, with `ratio=0.3`,
`ratio=0.7` and by default) took 0.8 to 1.5 times as many.
"""

import math
from collections.abc import Sequence

from onnxmerge.algorithms.sample_counts import enough_samples
from onnxmerge.data.first_layers import dense_first_layer
from onnxmerge.data.selection import (
    CHECK_INPUTS,
    affordable,
    elements_of_input,
    inputs_analysed,
    inputs_needed,
    oversampling,
    token_sweeps,
)
from onnxmerge.evaluation.benchmark import DEFAULT_EFFORT, TRIAL_EFFORT
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidate_builder import QUICK_COST
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.progress import Stage
from onnxmerge.pruning.group_selection import selected_groups
from onnxmerge.pruning.layer_update import is_cheap_to_choose
from onnxmerge.pruning.producer_update import path_of_group
from onnxmerge.pruning.sensitivity import PASSES

SECONDS_PER_MAC, SECONDS_PER_ELEMENT = 1 / 8e10, 1 / 4e9
"""Of a run: multiply-accumulates, and numbers in the tensors that nodes write."""
SECONDS_PER_PRODUCT = 1 / 3.5e10
"""Of least squares: a sample times two of its unknowns."""
SECONDS_PER_LAYER = 0.015
"""Of every layer that is looked at, for sessions and small arrays."""
RUNS_TO_SOLVE = 1.5
"""Runs of the whole model that the runs of its consumers' inputs take, for a candidate."""
UPDATED_PRODUCERS, CHOSEN_CHANNELS = 1.3, 0.8
"""What changing rows of producers, and on real inputs choosing channels once more, adds to a candidate where all layers are pairs
of a producer and its consumer, as shares of its work: of a ResNet-56, half of which is pairs, and a VGG-16 without 30 and 70 % of
their channels the first added 0.6 to 1.4, the second 0.1 to 0.5."""
SEARCHED_SHARE = 0.7
"""Of the channels that a candidate of a search keeps: half of the MACs."""
SECONDS_PER_NUMBER, SECONDS_PER_DENSE_NUMBER = 1.2e-7, 3e-7
"""Of making synthetic inputs, and those of a network whose first layer is dense, a third of which are noise shaped by it."""
OPTIMISED, UNOPTIMISED = 0.7, 1.5
"""What a run of the whole model takes with ONNX Runtime's optimisations and without any, as shares of one layer by layer."""
QUICK_RUNS, FULL_RUNS, TIMED_RUNS = 2.0, 1.2, 4.0
"""Candidates that searches build on average: quick ones, full ones; and those that are timed."""


ELSEWHERE = "points"
"""The stage of points that are made in other processes."""


def compress_stages(analysed: AnalysedModel, options: CompressOptions) -> list[Stage]:
    """The stages of `compress`."""
    pruning, runs = options.pruning, 1.0
    run, solving, layers, inputs = _work(analysed, options)
    stages = _measuring(analysed, options)
    if pruning.is_searched:
        runs = FULL_RUNS
        stages.append(Stage("quick reconstruction", QUICK_COST * solving, QUICK_RUNS))
    if pruning.is_latency_target:
        stages.append(Stage("timing candidates", TRIAL_EFFORT.seconds, TIMED_RUNS))
    stages.append(Stage("reconstruction", layers if pruning.uses_weights_only else solving, runs))
    checked = CHECK_INPUTS if options.inputs.samples else min(CHECK_INPUTS, 2 * inputs)
    checks = 2.0 * UNOPTIMISED * run * checked / inputs * options.verify
    timing = DEFAULT_EFFORT.seconds * (options.verify and options.bench)
    return [*stages, Stage("checking", checks + timing)]


def sweep_stages(
    analysed: AnalysedModel, points: Sequence[CompressOptions], are_here: Sequence[bool], bench: bool
) -> list[Stage]:
    """The stages of a sweep: those that are made here share what is measured of the model.

    Parameters
    ----------
    analysed : AnalysedModel
        The model.
    points : Sequence[CompressOptions]
        Options of the points, in the order in which they are made.
    are_here : Sequence[bool]
        Which of them are made in this process; the others come first.
    bench : bool
        Whether the results are timed in the end.
    """
    elsewhere, here = list[float](), list[Stage]()
    for options, is_here in zip(points, are_here, strict=True):
        stages = compress_stages(analysed, options)
        if is_here:
            known = {stage.name for stage in here} - {"quick reconstruction", "reconstruction", "timing candidates", "checking"}
            here += [stage for stage in stages if stage.name not in known]
        else:
            elsewhere.append(sum(stage.work * stage.runs for stage in stages))
    first = [Stage(ELSEWHERE, sum(elsewhere) / len(elsewhere), len(elsewhere))] if elsewhere else []
    return [*first, *here, *([Stage("timing", DEFAULT_EFFORT.seconds, len(points))] if bench else [])]


def inspect_stages(analysed: AnalysedModel, options: CompressOptions) -> list[Stage]:
    """The stages of `inspect` with sensitivities."""
    return _measuring(analysed, options, is_allocated=True)


def _measuring(analysed: AnalysedModel, options: CompressOptions, *, is_allocated: bool = False) -> list[Stage]:
    """The stages that are done once for all candidates."""
    run, _, layers, inputs = _work(analysed, options)
    pruning = options.pruning
    is_allocated = is_allocated or pruning.target is not None or pruning.is_searched
    made = 0.0
    if options.inputs.calibration is None:
        numbers = inputs * elements_of_input(_input_names(analysed), analysed.shapes, analysed.call.axes)
        is_dense = dense_first_layer(analysed) is not None
        seconds = SECONDS_PER_DENSE_NUMBER if is_dense else SECONDS_PER_NUMBER
        made = oversampling(analysed) * (OPTIMISED * run + numbers * seconds)
        made += 2 * token_sweeps(analysed) * OPTIMISED * run  # for inputs to solve on, and to check on
    stages = [Stage("inputs", layers + made)]
    if not pruning.uses_weights_only or is_allocated:
        stages.append(Stage("statistics", 3.0 * run + layers))
    if is_allocated:
        stages.append(Stage("sensitivities", (1.0 + PASSES) * run + layers))
    return stages


def _input_names(analysed: AnalysedModel) -> list[str]:
    return [str(tensor.name) for tensor in analysed.model.graph.inputs]


def _work(analysed: AnalysedModel, options: CompressOptions) -> tuple[float, float, float, int]:
    """Seconds of the reference on all inputs, of a candidate, and of looking at all layers; and the number of inputs."""
    channels, shapes = analysed.channels, analysed.shapes
    made = affordable(_input_names(analysed), shapes, analysed.call.axes)
    inputs = options.inputs.samples or min(inputs_needed(analysed), made // oversampling(analysed))
    outputs = [shapes[tensor.name] for node in analysed.model.graph.nodes for tensor in node.outputs if tensor.name in shapes]
    elements = sum(math.prod(shape) for shape in outputs) / max(inputs_analysed(analysed), 1)
    run = inputs * (analysed.size.macs * SECONDS_PER_MAC + elements * SECONDS_PER_ELEMENT)
    layers = SECONDS_PER_LAYER * len(channels.layers)
    solving = RUNS_TO_SOLVE * run + 2.0 * layers
    products, updated = _products(analysed, options, inputs)
    return run, (solving + 2.0 * products * SECONDS_PER_PRODUCT) * (1.0 + updated), layers, inputs


def _products(analysed: AnalysedModel, options: CompressOptions, inputs: int) -> tuple[float, float]:
    """Products of the least squares of a candidate, and what changing and choosing its pairs of layers adds, as a share."""
    channels, shapes, pruning = analysed.channels, analysed.shapes, options.pruning
    groups = selected_groups(channels, pruning, entered_only=False)[0]
    shrinking = {each.key for group in groups for each in group.consumers}
    order = {layer.key: number for number, layer in enumerate(channels.layers)}
    pairs = {path.consumer.key for group in groups if (path := path_of_group(channels, group, order)) is not None}
    products, whole, added, kept = 0.0, 0.0, 0.0, _kept_share(pruning)
    for layer in channels.layers:
        if layer.has_patches and layer.in_ids.any():
            every, positions = layer.inputs_per_group * layer.kernel_size, math.prod(shapes[layer.key][2:])
            unknowns = every * (kept if layer.key in shrinking else 1.0)
            products += layer.groups * min(enough_samples(int(unknowns)), inputs * positions) * unknowns**2
            own = layer.groups * min(enough_samples(every), inputs * positions) * float(every) ** 2
            chosen = CHOSEN_CHANNELS * (options.inputs.calibration is not None and is_cheap_to_choose(layer))
            whole, added = whole + own, added + own * (layer.key in pairs) * (UPDATED_PRODUCERS + chosen)
    return products, added / max(whole, 1.0)


def _kept_share(pruning: PruningOptions) -> float:
    """The share of the channels that a candidate keeps, as far as it is known; MACs and parameters go with its square."""
    if pruning.ratio is not None:
        return 1.0 - pruning.ratio
    return SEARCHED_SHARE if pruning.target is None else math.sqrt(pruning.target[1])
