"""Method `reconstruct`: backward elimination, then least squares consumer by consumer, on second moments of real runs.

Two walks over the network: the first takes the moments of every consumer's input in the reference, from which all groups are
decided; the second runs reference and compressed prefix side by side, so that every consumer repairs what was lost before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxmerge.graph.channels import ChannelGroup, Link
from onnxmerge.graph.io import export
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.graph.weights import consumer_columns, stored
from onnxmerge.merging.criteria import CRITERIA
from onnxmerge.merging.reconstruction import mixing
from onnxmerge.merging.selection import Elimination, eliminate, kept_after, weigh
from onnxmerge.methods.by_weights import Decision, merge, prune, replacements, select
from onnxmerge.methods.downstream import Sensitivity, scaled
from onnxmerge.methods.reference import Engine, Progress, Statistics, observe_reference
from onnxmerge.methods.solving import solve_consumers
from onnxmerge.options import Options
from onnxmerge.runtime.providers import resolve_provider
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.readers import Reader
from onnxmerge.statistics.shaped import dense_first_layer
from onnxmerge.statistics.walk import shallow_first
from onnxmerge.understanding import Understanding

BATCH_ELEMENTS, LARGEST_BATCH = 1 << 21, 128
CONSTANT = 1e-10  # a variance below this share of the second moments is rounding


def reconstruct(
    understood: Understanding,
    groups: Sequence[ChannelGroup],
    counts: Mapping[str, int],
    inputs: Inputs,
    options: Options,
    progress: Progress,
) -> tuple[list[Removal], dict[str, Replacement]]:
    """Decide all groups from the first walk, then solve all consumers in the second.

    With --method auto, a group whose expected error is lower with merge or prune gets that instead.
    """
    engine = engine_of(understood, inputs, options, progress)
    statistics = observe_reference(engine)
    sensitivity = sensitivity_of(engine, statistics)
    decisions = [_decide(engine, statistics, sensitivity, group, counts[group.name], options) for group in groups]
    by_weights = replacements(engine.channels, [decision for decision in decisions if decision.removal.method != "reconstruct"])
    removals = [decision.removal for decision in decisions]
    solved = {link.key for removal in removals if removal.method == "reconstruct" for link in removal.group.consumers}
    fixed = {link.key for removal in removals for link in removal.group.consumers} - solved
    return removals, solve_consumers(engine, statistics, removals, {key: by_weights.get(key) for key in fixed})


def engine_of(understood: Understanding, inputs: Inputs, options: Options, progress: Progress) -> Engine:
    """The model and the inputs, ready to be walked."""
    elements = sum(int(np.prod(understood.shapes[tensor.name][1:])) for tensor in understood.model.graph.inputs)
    size = int(np.clip(BATCH_ELEMENTS // max(1, elements), 1, LARGEST_BATCH))
    model = export(understood.model)
    shallow_first(model)
    return Engine(
        channels=understood.channels,
        model=model,
        batches=partial(inputs.batches, size),
        synthetic=options.calibration is None,
        repair=_repair(understood, options),
        provider=resolve_provider(options.provider),
        threads=options.threads,
        progress=progress,
    )


def _repair(understood: Understanding, options: Options) -> float:
    """Exponent of the standard-deviation repair: real inputs need none, networks that are dense from the start the most."""
    if options.calibration is not None:
        return 0.0
    return 0.5 if dense_first_layer(understood.channels) is None else 1.0


def _decide(
    engine: Engine, statistics: Statistics, sensitivity: Sensitivity, group: ChannelGroup, count: int, options: Options
) -> Decision:
    """The method with the lowest expected error, or what --method asks for; weights that several nodes share stay shared."""
    candidates = [prune(engine.channels, group, count, options), merge(engine.channels, group, count, options)]
    by_weights = [candidate for candidate in candidates if isinstance(candidate, Decision)]
    expected = {each.removal.method: expected_error(statistics, group, each) for each in by_weights}
    least = min(by_weights, key=lambda each: expected[each.removal.method])
    if any(statistics.is_shared(link.key) for link in group.consumers):
        return replace(least, removal=replace(least.removal, expected_error=expected, note="its readers share one weight"))
    elimination = elimination_of(statistics, group, sensitivity)
    kept = least.removal.kept if elimination is None else kept_after(elimination, group.size, count)
    if options.criterion in CRITERIA:
        kept = select(engine.channels, group, count, options.criterion)
    ours = Decision(Removal(group, kept, "reconstruct"))
    expected["reconstruct"] = expected_error(statistics, group, ours)
    chosen = ours if options.method == "reconstruct" or expected["reconstruct"] <= expected[least.removal.method] else least
    return replace(chosen, removal=replace(chosen.removal, expected_error=expected))


def expected_error(statistics: Statistics, group: ChannelGroup, decision: Decision) -> float:
    """Mean over the consumers of E|W x - W Z x[kept] - c|^2 as a share of the variance of W x, c the best constant.

    Z is the scaling matrix of merge, the least squares over channels for reconstruct, and keeps alone for prune.
    """
    kept, shares = decision.removal.kept, []
    gone = np.setdiff1d(np.arange(group.size), kept)
    for link in group.consumers:
        covariance = _covariance(statistics, group, link)
        columns = _columns(group, link, statistics.readers[link.key])
        flat = np.moveaxis(columns, 1, 2).reshape(-1, group.size)
        reading = flat.T @ flat
        left = covariance[np.ix_(gone, gone)]
        scaling = decision.scaling
        if decision.removal.method == "reconstruct":
            scaling = mixing(covariance, np.zeros(group.size), kept)[0]
        if scaling is not None:
            made = scaling[gone]
            crossed = made @ covariance[np.ix_(kept, gone)]
            left = left - crossed - crossed.T + made @ covariance[np.ix_(kept, kept)] @ made.T
        total = max(float(np.sum(reading * covariance)), np.finfo(float).tiny)
        shares.append(float(np.sum(reading[np.ix_(gone, gone)] * left)) / total)
    return float(np.mean(shares)) if shares else 0.0


def sensitivity_of(engine: Engine, statistics: Statistics) -> Sensitivity:
    """What errors at outputs do further on, with the variances of the first walk; readers that give constants do not count."""
    variance = {}
    for key, reader in statistics.readers.items():
        moments, total, power = statistics.moments[key], 0.0, 0.0
        for g, weight in enumerate(scaled(reader.weight, statistics.outlooks[key])):
            inside = weight.shape[1]
            channel = reader.channel_of[g * inside : (g + 1) * inside]
            own = moments.xx[np.ix_(channel, channel)]
            total += sum(float(np.sum((weight[:, :, p] @ own) * weight[:, :, p])) for p in range(weight.shape[2]))
            power += float(np.square(weight).sum((0, 2)) @ (np.diag(own) + moments.mean_x[channel] ** 2))
        if total > CONSTANT * power:
            variance[key] = total
    return Sensitivity(engine.channels.flow, engine.positions, variance, statistics.outlooks)


def elimination_of(statistics: Statistics, group: ChannelGroup, sensitivity: Sensitivity | None = None) -> Elimination | None:
    """The removal order and error curve of a group, joint over its consumers; None where nothing reads it."""
    consumers = []
    for link in group.consumers:
        metric = None if sensitivity is None else sensitivity.metric(link.weighted)
        columns = _columns(group, link, statistics.readers[link.key])
        weights = weigh(columns, statistics.outlooks[link.key].scale, metric)
        consumers.append((_covariance(statistics, group, link), weights))
    return eliminate(consumers, group.removable, group.cells) if consumers else None


def _covariance(statistics: Statistics, group: ChannelGroup, link: Link) -> np.ndarray:
    """(n, n) of the units as a consumer reads them, averaged over the places where one stands several times.

    Zero for those it does not read, and between groups of a convolution.
    """
    reader, total = statistics.readers[link.key], np.zeros((group.size, group.size))
    channels = np.where(link.places < 0, -1, reader.channel_of[link.places])
    columns, counts = np.unique(channels.T, axis=0, return_counts=True)
    for channel, count in zip(columns, counts, strict=True):
        covariance = statistics.moments[link.key].xx[np.ix_(channel, channel)]
        total += np.where((channel[:, None] >= 0) & (channel >= 0), covariance, 0.0) * (count / counts.sum())
    places = link.places.max(1)
    block = np.where(places < 0, -1 - np.arange(group.size), places // reader.weight.shape[2])
    return np.where((block[:, None] == block) & (places >= 0), total, 0.0)


def _columns(group: ChannelGroup, link: Link, reader: Reader) -> np.ndarray:
    weight = stored(reader.weighted, reader.weight, reader.kernel)
    return consumer_columns(group, link, weight)
