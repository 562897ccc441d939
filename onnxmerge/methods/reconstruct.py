"""Method `reconstruct`: backward elimination, then least squares consumer by consumer, on second moments of real runs.

Two walks over the network: the first takes the moments of every consumer's input in the reference, from which all groups are
decided; the second runs reference and compressed prefix side by side, so that every consumer repairs what was lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxmerge.graph.channels import ChannelGroup, Channels, Link
from onnxmerge.graph.io import export
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.graph.weights import consumer_columns, stored, weight_of
from onnxmerge.merging.criteria import CRITERIA
from onnxmerge.merging.reconstruction import Centred, fits_in_memory, mixed_bias, mixed_weight, mixing, solve
from onnxmerge.merging.selection import Elimination, eliminate, kept_after
from onnxmerge.methods.by_weights import select
from onnxmerge.options import Options
from onnxmerge.runtime.providers import Provider, resolve_provider
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.readers import Reader, channel_moments, reader_of, solve_moments
from onnxmerge.statistics.walk import Walk
from onnxmerge.understanding import Understanding

Feeds = Mapping[str, np.ndarray]
Progress = Callable[[str, float], None]

BATCH_ELEMENTS, LARGEST_BATCH = 1 << 21, 128
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

    @property
    def positions(self) -> dict[str, int]:
        """First output of a node -> its position."""
        return {node.output[0]: at for at, node in enumerate(self.model.graph.node)}


@dataclass(frozen=True)
class Statistics:
    """The reference with BatchNormalization matched to the inputs, and the moments of what its consumers read, by key."""

    matched: ModelProto
    readers: dict[str, Reader]
    moments: dict[str, Centred]


def observe_reference(engine: Engine, groups: Sequence[ChannelGroup]) -> Statistics:
    """First walk: moments of the inputs of every consumer of the groups.

    On synthetic inputs every BatchNormalization gets the statistics of its own input on the way, so that each channel has the
    mean and standard deviation that training gave it.
    """
    flow, positions = engine.channels.flow, engine.positions
    wanted = {link.key: link.weighted for group in groups for link in group.consumers}
    readers = {key: reader_of(flow, weighted, positions[key]) for key, weighted in wanted.items()}
    walk = Walk(_copy(engine.model), engine.batches, engine.provider, engine.threads)
    stops: dict[int, list[Reader]] = {reader.at: [] for reader in readers.values()}
    for reader in readers.values():
        stops[reader.at].append(reader)
    normal = [at for at, node in enumerate(engine.model.graph.node) if _matchable(engine.model, node)] if engine.synthetic else []
    moments: dict[str, Centred] = {}
    seen: dict[tuple[str, bytes], Centred] = {}
    ordered = sorted(stops.keys() | set(normal))
    for number, at in enumerate(ordered):
        walk.advance(at)
        if at in normal:
            _match(walk, at)
        for reader in stops.get(at, []):
            same = (reader.source, reader.columns.tobytes())
            if same not in seen:
                seen[same] = channel_moments(walk, reader, engine.provider, engine.threads).centred()
            moments[reader.key] = seen[same]
        engine.progress("statistics", (number + 1) / len(ordered))
    matched = walk.model
    del matched.graph.node[:]
    matched.graph.node.extend(node for nodes in walk.nodes for node in nodes)
    return Statistics(matched, readers, moments)


def elimination_of(statistics: Statistics, group: ChannelGroup) -> Elimination | None:
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
        consumers.append((covariance, np.moveaxis(columns, 1, 2).reshape(-1, group.size)))
    return eliminate(consumers, group.removable, group.cells) if consumers else None


def _columns(group: ChannelGroup, link: Link, reader: Reader) -> np.ndarray:
    weight = stored(reader.weighted, reader.weight, reader.kernel)
    return consumer_columns(group, link, weight)


def solve_consumers(engine: Engine, statistics: Statistics, removals: Sequence[Removal]) -> dict[str, Replacement]:
    """Second walk: new weights and biases of every consumer that loses inputs, in topological order."""
    stays = np.ones(len(engine.channels.flow.parents), bool)
    for removal in removals:
        stays[removal.group.units] = False
        stays[removal.group.units[removal.kept]] = True
    readers = [r for r in statistics.readers.values() if not stays[r.weighted.in_ids].all()]
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
        _install(compressed, reader, new)
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
    for g, moments in enumerate(solve_moments(reference, compressed, reader, kept, engine.provider, engine.threads)):
        prior = priors[g].transpose(0, 2, 1).reshape(out, -1)
        solved, bias[g], _ = solve(moments, prior)
        weight[g][:, kept[g]] = solved.reshape(out, positions, -1).transpose(0, 2, 1)
    return weight, bias.reshape(-1) - old_bias


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


def _install(walk: Walk, reader: Reader, new: Replacement) -> None:
    """Put the replaced consumer into a walk that stands before it."""
    node = NodeProto()
    node.CopyFrom(walk.nodes[reader.at][0])
    constants = {f"{reader.key}//weight": new.weight}
    node.input[reader.weighted.weight] = f"{reader.key}//weight"
    nodes, bias = [node], new.bias
    if bias is not None and node.op_type == "MatMul":
        shape = (-1, 1) if reader.weighted.weight == 0 else (-1,)
        constants[f"{reader.key}//bias"] = bias.reshape(shape).astype(new.weight.dtype)
        raw = f"{reader.key}//raw"
        nodes.append(helper.make_node("Add", [raw, f"{reader.key}//bias"], [node.output[0]]))
        node.output[0] = raw
    elif bias is not None:
        beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0) if node.op_type == "Gemm" else 1.0
        has_bias = len(node.input) > 2 and bool(node.input[2])
        old = numpy_helper.to_array(walk.initializer(node.input[2])) if has_bias else np.zeros(1)
        constants[f"{reader.key}//bias"] = (old.astype(np.float64) + bias / beta).astype(new.weight.dtype)
        del node.input[2:]
        node.input.append(f"{reader.key}//bias")
    walk.replace(reader.at, nodes, constants)


def _matchable(model: ModelProto, node: NodeProto) -> bool:
    """BatchNormalization with stored statistics."""
    stored_names = {tensor.name for tensor in model.graph.initializer}
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") and set(node.input[3:5]) <= stored_names


def _match(walk: Walk, at: int) -> None:
    """Give a BatchNormalization the mean and variance of what it reads in this run."""
    node = NodeProto()
    node.CopyFrom(walk.nodes[at][0])
    count, total, squares = 0, 0.0, 0.0
    for number in range(len(walk.batches)):
        x = np.asarray(walk.tensor(number, node.input[0]), np.float64)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        count += x.size // x.shape[1]
        total = total + x.sum(axes)
        squares = squares + np.square(x).sum(axes)
    mean = total / count
    before = numpy_helper.to_array(walk.initializer(node.input[4]))
    variance = np.maximum(squares / count - mean**2, LOWEST_VARIANCE * before.astype(np.float64))
    names = [f"{node.output[0]}//mean", f"{node.output[0]}//variance"]
    node.input[3], node.input[4] = names
    walk.replace(at, [node], {names[0]: mean.astype(before.dtype), names[1]: variance.astype(before.dtype)})


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
    statistics = observe_reference(engine, groups)
    removals = []
    for group in groups:
        elimination = elimination_of(statistics, group)
        count = counts[group.name]
        if options.criterion in CRITERIA or elimination is None:
            criterion = options.criterion if options.criterion in CRITERIA else "l2-norm"
            removals.append(Removal(group, select(understood.channels, group, count, criterion), "reconstruct"))
        else:
            removals.append(Removal(group, kept_after(elimination, group.size, count), "reconstruct"))
    return removals, solve_consumers(engine, statistics, removals)
