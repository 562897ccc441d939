"""Method `reconstruct`: backward elimination, then least squares consumer by consumer, on second moments of real runs.

Two walks over the network: the first takes the moments of every consumer's input in the reference, from which all groups are
decided; the second runs reference and compressed prefix side by side, so that every consumer repairs what was lost before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxmerge.graph.channels import ChannelGroup, Link
from onnxmerge.graph.io import export
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.graph.weights import consumer_columns, stored
from onnxmerge.merging.criteria import CRITERIA
from onnxmerge.merging.selection import Elimination, eliminate, kept_after, weigh
from onnxmerge.methods.by_weights import select
from onnxmerge.methods.downstream import Sensitivity, scaled
from onnxmerge.methods.reference import Engine, Progress, Statistics, observe_reference
from onnxmerge.methods.solving import solve_consumers
from onnxmerge.options import Options
from onnxmerge.runtime.providers import resolve_provider
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.readers import Reader
from onnxmerge.understanding import Understanding

BATCH_ELEMENTS, LARGEST_BATCH = 1 << 21, 128


def reconstruct(
    understood: Understanding,
    groups: Sequence[ChannelGroup],
    counts: Mapping[str, int],
    inputs: Inputs,
    options: Options,
    progress: Progress,
) -> tuple[list[Removal], dict[str, Replacement]]:
    """Decide all groups from the first walk, then solve all consumers in the second."""
    elements = sum(int(np.prod(understood.shapes[tensor.name][1:])) for tensor in understood.model.graph.inputs)
    size = int(np.clip(BATCH_ELEMENTS // max(1, elements), 1, LARGEST_BATCH))
    engine = Engine(
        channels=understood.channels,
        model=export(understood.model),
        batches=list(inputs.batches(size)),
        synthetic=options.calibration is None,
        provider=resolve_provider(options.provider),
        threads=options.threads,
        progress=progress,
    )
    statistics = observe_reference(engine)
    sensitivity = sensitivity_of(engine, statistics)
    removals = []
    for group in groups:
        elimination = elimination_of(statistics, group, sensitivity)
        count = counts[group.name]
        if options.criterion in CRITERIA or elimination is None:
            criterion = options.criterion if options.criterion in CRITERIA else "l2-norm"
            removals.append(Removal(group, select(understood.channels, group, count, criterion), "reconstruct"))
        else:
            removals.append(Removal(group, kept_after(elimination, group.size, count), "reconstruct"))
    return removals, solve_consumers(engine, statistics, removals)


def sensitivity_of(engine: Engine, statistics: Statistics) -> Sensitivity:
    """What errors at outputs do further on, with the variances of the first walk."""
    variance = {}
    for key, reader in statistics.readers.items():
        covariance, total = statistics.moments[key].xx, 0.0
        for g, weight in enumerate(scaled(reader.weight, statistics.outlooks[key])):
            inside = weight.shape[1]
            channel = reader.channel_of[g * inside : (g + 1) * inside]
            own = covariance[np.ix_(channel, channel)]
            total += sum(float(np.sum((weight[:, :, p] @ own) * weight[:, :, p])) for p in range(weight.shape[2]))
        variance[key] = max(total, np.finfo(float).tiny)
    return Sensitivity(engine.channels.flow, engine.positions, variance, statistics.outlooks)


def elimination_of(statistics: Statistics, group: ChannelGroup, sensitivity: Sensitivity | None = None) -> Elimination | None:
    """The removal order and error curve of a group, joint over its consumers; None where it has none that can be looked at."""
    consumers = []
    for link in group.consumers:
        reader = statistics.readers[link.key]
        counts = (link.places >= 0).sum(1)
        if (counts == 0).any():
            continue
        channel = reader.channel_of[link.places[:, 0]]
        covariance = statistics.moments[link.key].xx[np.ix_(channel, channel)].copy()
        if reader.groups > 1:
            block = link.places[:, 0] // (reader.weight.shape[2])
            covariance[block[:, None] != block[None, :]] = 0.0
        columns = _columns(group, link, reader)
        metric = None if sensitivity is None else sensitivity.metric(reader.weighted)
        consumers.append((covariance, weigh(columns, statistics.outlooks[reader.key].scale, metric)))
    return eliminate(consumers, group.removable, group.cells) if consumers else None


def _columns(group: ChannelGroup, link: Link, reader: Reader) -> np.ndarray:
    weight = stored(reader.weighted, reader.weight, reader.kernel)
    return consumer_columns(group, link, weight)
