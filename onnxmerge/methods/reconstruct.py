"""Method `reconstruct`: backward elimination, then least squares consumer by consumer, on second moments of real runs.

Two walks over the network: the first takes the moments of every consumer's input in the reference, from which all groups are
decided; the second runs reference and compressed prefix side by side, so that every consumer repairs what was lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxmerge.graph.channels import ChannelGroup, Channels, Link
from onnxmerge.graph.io import export
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.graph.weights import consumer_columns, stored, weight_of
from onnxmerge.merging.criteria import CRITERIA
from onnxmerge.merging.reconstruction import RIDGE, Centred, fits_in_memory, mixed_bias, mixed_weight, mixing, solve
from onnxmerge.merging.selection import Elimination, eliminate, kept_after
from onnxmerge.methods.by_weights import select
from onnxmerge.methods.downstream import Sensitivity, join_after, root_of
from onnxmerge.options import Options
from onnxmerge.runtime.providers import Provider, resolve_provider
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.readers import Reader, channel_moments, reader_of, solve_moments
from onnxmerge.statistics.walk import Walk
from onnxmerge.understanding import Understanding

Feeds = Mapping[str, np.ndarray]
Progress = Callable[[str, float], None]

BATCH_ELEMENTS, LARGEST_BATCH = 1 << 21, 128
SMALLEST_SCALE = 1e-3  # a BatchNormalization that scales by less cannot repair a join
REFIT_RIDGE = 1e-2  # consumers that lose no input keep closer to what they were
LOWEST_VARIANCE = 1e-4  # of the stored one: a channel that synthetic inputs leave constant must not be blown up


@dataclass(frozen=True)
class Engine:
    """What both walks need: the exported model, where its nodes stand, and what it is run on."""

    channels: Channels
    model: ModelProto
    batches: Sequence[Feeds]
    synthetic: bool
    provider: Provider
    threads: int | None
    progress: Progress

    @cached_property
    def positions(self) -> dict[str, int]:
        """First output of a node -> its position."""
        return {node.output[0]: at for at, node in enumerate(self.model.graph.node)}


@dataclass(frozen=True)
class Statistics:
    """The reference with BatchNormalization matched to the inputs, and the moments of what its consumers read, by key."""

    matched: ModelProto
    readers: dict[str, Reader]
    moments: dict[str, Centred]
    scales: dict[str, np.ndarray]


def observe_reference(engine: Engine) -> Statistics:
    """First walk: moments of the inputs of every consumer.

    On synthetic inputs every BatchNormalization gets the statistics of its own input on the way, so that each channel has the
    mean and standard deviation that training gave it.
    """
    flow, positions = engine.channels.flow, engine.positions
    consumers = [weighted for weighted in flow.weighted if weighted.in_ids.any()]
    readers = {weighted.key: reader_of(flow, weighted, positions[weighted.key]) for weighted in consumers}
    walk = Walk(_copy(engine.model), engine.batches, engine.provider, engine.threads)
    stops: dict[int, list[Reader]] = {reader.at: [] for reader in readers.values()}
    for reader in readers.values():
        stops[reader.at].append(reader)
    normal = _normalisations(engine) if engine.synthetic else {}
    moments: dict[str, Centred] = {}
    seen: dict[tuple[str, bytes], Centred] = {}
    ordered = sorted(stops.keys() | normal.keys())
    for number, at in enumerate(ordered):
        walk.advance(at)
        if at in normal:
            _match(walk, at, normal[at])
        for reader in stops.get(at, []):
            same = (reader.source, reader.columns.tobytes())
            if same not in seen:
                seen[same] = channel_moments(walk, reader, engine.provider, engine.threads).centred()
            moments[reader.key] = seen[same]
        engine.progress("statistics", (number + 1) / len(ordered))
    scales = {key: scale for key, reader in readers.items() if (scale := _scale_after(engine, walk, reader)) is not None}
    matched = walk.model
    del matched.graph.node[:]
    matched.graph.node.extend(node for nodes in walk.nodes for node in nodes)
    return Statistics(matched, readers, moments, scales)


def sensitivity_of(engine: Engine, statistics: Statistics) -> Sensitivity:
    """What errors at outputs do further on, with the variances of the first walk."""
    variance = {}
    for key, reader in statistics.readers.items():
        covariance, total = statistics.moments[key].xx, 0.0
        for g, weight in enumerate(reader.weight):
            inside = weight.shape[1]
            channel = reader.channel_of[g * inside : (g + 1) * inside]
            own = covariance[np.ix_(channel, channel)]
            total += sum(float(np.sum((weight[:, :, p] @ own) * weight[:, :, p])) for p in range(weight.shape[2]))
        variance[key] = max(total, np.finfo(float).tiny)
    return Sensitivity(engine.channels.flow, engine.positions, variance)


def elimination_of(
    statistics: Statistics, group: ChannelGroup, sensitivity: Sensitivity | None = None
) -> Elimination | None:
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
        columns = np.moveaxis(columns, 1, 2)
        metric = None if sensitivity is None else sensitivity.metric(reader.weighted)
        if metric is not None:
            scale = statistics.scales.get(reader.key, np.ones(len(metric)))
            columns = np.tensordot(root_of(metric * scale[:, None] * scale), columns, (1, 0))
        consumers.append((covariance, columns.reshape(-1, group.size)))
    return eliminate(consumers, group.removable, group.cells) if consumers else None


def _columns(group: ChannelGroup, link: Link, reader: Reader) -> np.ndarray:
    weight = stored(reader.weighted, reader.weight, reader.kernel)
    return consumer_columns(group, link, weight)


def solve_consumers(engine: Engine, statistics: Statistics, removals: Sequence[Removal]) -> dict[str, Replacement]:
    """Second walk, in topological order: new weights and biases of every consumer from the first one that loses inputs on.

    Those that lose none are fitted to what the compressed prefix now gives them.
    """
    stays = np.ones(len(engine.channels.flow.parents), bool)
    for removal in removals:
        stays[removal.group.units] = False
        stays[removal.group.units[removal.kept]] = True
    losing = [reader.at for reader in statistics.readers.values() if not stays[reader.weighted.in_ids].all()]
    readers = [reader for reader in statistics.readers.values() if losing and reader.at >= min(losing)]
    readers.sort(key=lambda reader: reader.at)
    reference = Walk(_copy(statistics.matched), engine.batches, engine.provider, engine.threads)
    compressed = Walk(_copy(statistics.matched), engine.batches, engine.provider, engine.threads)
    found: dict[str, Replacement] = {}
    for number, reader in enumerate(readers):
        reference.advance(reader.at)
        compressed.advance(reader.at)
        kept = stays[reader.weighted.in_ids]
        weight, bias = _solve(engine, statistics, reader, kept, reference, compressed)
        dtype = weight_of(engine.channels.flow, reader.weighted).dtype
        scale = float(reader.weighted.node.attrs.get("alpha", 1.0)) if reader.weighted.node.op == "Gemm" else 1.0
        new = Replacement(stored(reader.weighted, weight / scale, reader.kernel).astype(dtype), bias)
        found[reader.key] = new
        _install(compressed, reader, new, _old_bias(engine, reader))
        engine.progress("reconstruction", (number + 1) / len(readers))
    return found


def _solve(
    engine: Engine, statistics: Statistics, reader: Reader, kept: np.ndarray, reference: Walk, compressed: Walk
) -> tuple[np.ndarray, np.ndarray]:
    """Canonical weight with zeros at removed places, and what to add to the output (out,)."""
    alpha = float(reader.weighted.node.attrs.get("alpha", 1.0)) if reader.weighted.node.op == "Gemm" else 1.0
    priors, shift = _priors(reader, kept, statistics.moments[reader.key], alpha)
    groups, out, _, positions = reader.weight.shape
    weight = np.zeros(reader.weight.shape)
    unknowns = int(kept[0].sum()) * positions
    if not reader.solvable or not fits_in_memory(unknowns):
        for g in range(groups):
            weight[g][:, kept[g]] = priors[g]
        return weight, shift.reshape(-1)
    old_bias = _old_bias(engine, reader)
    bias = np.zeros((groups, out))
    lost = _lost_beside(statistics, reader, reference, compressed)
    for g, moments in enumerate(solve_moments(reference, compressed, reader, kept, lost, engine.provider, engine.threads)):
        prior = priors[g].transpose(0, 2, 1).reshape(out, -1)
        solved, bias[g], _ = solve(moments, prior, REFIT_RIDGE if kept.all() else RIDGE)
        weight[g][:, kept[g]] = solved.reshape(out, positions, -1).transpose(0, 2, 1)
    return weight, bias.reshape(-1) - old_bias


def _lost_beside(
    statistics: Statistics, reader: Reader, reference: Walk, compressed: Walk
) -> Callable[[int], np.ndarray] | None:
    """What the other side of a residual join has lost, batch by batch, in units of the reader's output.

    The reader then aims at the sum: it repairs what the skip connection lost. None where there is no join, or where the other
    side is not computed yet (then that one will aim at the sum).
    """
    join = join_after(reader.weighted)
    if join is None or join.other not in reference.live or join.other not in compressed.live:
        return None
    other = join.other
    scale = statistics.scales.get(reader.key)

    def lost(number: int) -> np.ndarray:
        difference = np.asarray(reference.tensor(number, other)) - np.asarray(compressed.tensor(number, other))
        if scale is None:
            return difference
        usable = np.abs(scale) > SMALLEST_SCALE
        factor = np.where(usable, 1.0 / np.where(usable, scale, 1.0), 0.0).astype(difference.dtype)
        return difference * factor.reshape((1, -1) + (1,) * (difference.ndim - 2))

    return lost


def _priors(reader: Reader, kept: np.ndarray, moments: Centred, alpha: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Channel mixing: for each group (out, kept, positions), and (g, out) to add to the output."""
    groups, out, inside, positions = reader.weight.shape
    weights, shifts = [], np.zeros((groups, out))
    places = reader.columns.shape[1]
    for g in range(groups):
        own = np.flatnonzero(np.isin(reader.columns[:, 0] // inside, [g]))
        local = reader.columns[own] - g * inside
        stays = kept[g][local[:, 0]]
        mixed, shift = mixing(moments.xx[np.ix_(own, own)], moments.mean_x[own], np.flatnonzero(stays))
        ordered = alpha * reader.weight[g][:, local].reshape(out, len(own), places * positions)
        prior = mixed_weight(ordered, mixed).reshape(out, int(stays.sum()), places, positions)
        flat = np.zeros((out, inside, positions))
        flat[:, local[stays]] = prior
        weights.append(flat[:, kept[g]])
        shifts[g] = mixed_bias(ordered, shift)
    return weights, shifts


def _old_bias(engine: Engine, reader: Reader) -> np.ndarray:
    """(out,) the bias inside the reference's node, as it is added to the output."""
    node, count = reader.weighted.node, reader.weight.shape[0] * reader.weight.shape[1]
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(count)
    value = engine.channels.flow.constant(node.inputs[2])
    assert value is not None
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(beta * value.astype(np.float64).reshape(-1), count)


def _install(walk: Walk, reader: Reader, new: Replacement, old_bias: np.ndarray) -> None:
    """Put the replaced consumer into a walk that stands before it; old_bias: what its own bias adds to the output."""
    node = NodeProto()
    node.CopyFrom(walk.nodes[reader.at][0])
    weight_name, bias_name, raw = (f"{reader.key}//{part}" for part in ("weight", "bias", "raw"))
    constants = {weight_name: new.weight}
    node.input[reader.weighted.weight] = weight_name
    nodes = [node]
    bias = old_bias + (0.0 if new.bias is None else new.bias)
    if node.op_type == "MatMul":
        shape = (-1, 1) if reader.weighted.weight == 0 else (-1,)
        constants[bias_name] = bias.reshape(shape).astype(new.weight.dtype)
        nodes.append(helper.make_node("Add", [raw, bias_name], [node.output[0]]))
        node.output[0] = raw
    else:
        beta = float(reader.weighted.node.attrs.get("beta", 1.0)) if node.op_type == "Gemm" else 1.0
        constants[bias_name] = (bias / beta).astype(new.weight.dtype)
        del node.input[2:]
        node.input.append(bias_name)
    walk.replace(reader.at, nodes, constants)


def _normalisations(engine: Engine) -> dict[int, np.ndarray]:
    """Position of each BatchNormalization with stored statistics -> its variance."""
    found = {}
    for node in engine.channels.flow.model.graph.nodes:
        if node.op == "BatchNormalization" and node.domain in (None, "", "ai.onnx"):
            variance = engine.channels.flow.constant(node.inputs[4])
            if variance is not None:
                found[engine.positions[node.outputs[0].name]] = variance
    return found


def _match(walk: Walk, at: int, before: np.ndarray) -> None:
    """Give a BatchNormalization the mean and variance of what it reads in this run; before: the stored variance."""
    node = NodeProto()
    node.CopyFrom(walk.nodes[at][0])
    count, total, squares = 0, np.zeros(len(before)), np.zeros(len(before))
    for number in range(len(walk.batches)):
        x = np.asarray(walk.tensor(number, node.input[0]), np.float64)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        count += x.size // x.shape[1]
        total += x.sum(axes)
        squares += np.square(x).sum(axes)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, LOWEST_VARIANCE * before.astype(np.float64))
    names = [f"{node.output[0]}//mean", f"{node.output[0]}//variance"]
    node.input[3], node.input[4] = names
    walk.replace(at, [node], {names[0]: mean.astype(before.dtype), names[1]: variance.astype(before.dtype)})


def _scale_after(engine: Engine, walk: Walk, reader: Reader) -> np.ndarray | None:
    """(out,) by which the BatchNormalizations right behind a reader multiply its output, as they are in the walk."""
    scale, tensor = None, reader.weighted.node.outputs[0]
    constants = {tensor.name: tensor for tensor in walk.model.graph.initializer}
    while len(tensor.outputs) == 1 and tensor.outputs[0].op == "BatchNormalization":
        following = tensor.outputs[0]
        gamma, variance = engine.channels.flow.constant(following.inputs[1]), engine.channels.flow.constant(following.inputs[4])
        matched = constants.get(f"{following.outputs[0].name}//variance")
        if gamma is None or variance is None:
            return scale
        variance = variance if matched is None else numpy_helper.to_array(matched)
        own = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(following.attrs.get("epsilon", 1e-5)))
        scale = own if scale is None else scale * own
        tensor = following.outputs[0]
    return scale


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


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
