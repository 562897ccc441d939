"""The kept rows of producers, changed so that their consumers give more nearly what they should.

The least squares of `solve_consumers` change what reads the kept channels and leave these as training made them. Here a
Gauss-Newton step changes them too, for what the consumer still misses; then it is solved again, and if that measures no smaller
error the step is taken back. Searches do it for quick candidates as well. Without 70 % of its channels a network took 1.3
(ResNet-56) to 1.6 (VGG-16) times the CPU seconds of consumers alone; without half a MobileNetV2 takes 1.3 times on 64 inputs of
224 x 224, and twice as many on 500 of 32 x 32, where a second is all.

Weights of depthwise convolutions on the way stay: changed in the same step they gained 0.004 of a fidelity of 0.85 and no
decision in a MobileNetV2 and an EfficientNet, alone a fifth of what rows gain. So do rows before a mean over all positions:
fitted to one sample an input, they took a MobileNetV2's fidelity from 0.86 to 0.85, and on synthetic inputs from 0.76 to 0.72.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.algorithms.gauss_newton import KroneckerFactors, conjugate_step
from onnxmerge.algorithms.least_squares import OVERLAPPING_RIDGE, RIDGE, RidgeSystem, fits_in_memory
from onnxmerge.algorithms.sample_counts import enough_samples
from onnxmerge.execution.layerwise import LayerwiseRun, dependents
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_paths import ChannelPath, channel_path
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import has_input
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.onnxio.edits import in_range
from onnxmerge.onnxio.traversal import tensors_read
from onnxmerge.pruning.consumer_update import bias_of, kept_weights, replacement_nodes
from onnxmerge.statistics.producer_samples import Affine, Floats, PairWeights, ProducerSamples, Residual
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext

DIRECTIONS = 3
"""Conjugate directions of a step: eight gave no more."""

LEAST_FALL = 0.01
"""Share of what is missed that a step must be expected to save: each costs another least squares."""

LEAST_MISSED, DEAR = 0.02, 4e11
"""Share of the variance that a consumer must miss for a step whose least squares takes this many multiply-accumulates or more,
some ten CPU seconds in all; less in proportion for cheaper ones. A VGG-16 without 30 % of its channels misses less nearly
everywhere: with all steps it took half as long again, and was no better."""


@dataclass(frozen=True)
class ConsumerSolution:
    """A consumer as it has been solved.

    Attributes
    ----------
    weight : ndarray of shape (out, kept inputs, kernel size)
        Its weight.
    bias : ndarray of shape (out,)
        Its bias, its own included.
    output_scale : ndarray of shape (out,)
        What errors of the outputs are multiplied with.
    system : RidgeSystem
        Its least squares.
    """

    weight: np.ndarray
    bias: np.ndarray
    output_scale: np.ndarray
    system: RidgeSystem


def updated_pairs(
    context: RunContext, statistics: ReferenceStatistics, removals: Sequence[Removal], excluded: Collection[str]
) -> dict[str, ChannelPath]:
    """By key of the consumer, the pairs of which the producer may change: at most one in a group that shrinks.

    excluded: keys of layers that other rules decide about.
    """
    left_out = {*excluded, *statistics.too_wide, *statistics.shared_weight_keys}
    found = {}
    for removal in removals:
        is_solved = removal.method == "reconstruct" and len(removal.kept)
        path = path_of_group(context.channels, removal.group, context.node_index) if is_solved else None
        if path is not None and not left_out & {path.producer.key, path.consumer.key} and path.consumer.key in statistics.layers:
            found[path.consumer.key] = path
    return found


def path_of_group(channels: Channels, group: ChannelGroup, order: Mapping[str, int]) -> ChannelPath | None:
    """From a producer of a group to its last consumer, where these write and read the same channels; order: by key, of layers."""
    producers, consumers = ([each.layer for each in side if each.key in order] for side in (group.producers, group.consumers))
    if not consumers:
        return None
    last = max(consumers, key=lambda layer: order[layer.key])
    paths = (channel_path(channels, each, last) for each in producers if _can_change(each, last))
    return next((path for path in paths if path is not None), None)


def _can_change(producer: Layer, consumer: Layer) -> bool:
    fits = not producer.is_filled and fits_in_memory(producer.inputs_per_group * producer.kernel_size)
    return fits and np.array_equal(producer.out_ids, consumer.in_ids)


def read_between(context: RunContext, path: ChannelPath) -> set[str]:
    """Names of what nodes between a producer and its consumer read, beside what depends on the producer."""
    first, last = (context.node_index[layer.key] for layer in (path.producer, path.consumer))
    nodes = context.model.graph.node[first:last]
    changed = dependents(nodes)
    return set().union(*(tensors_read(node) for node in nodes if not changed.isdisjoint(node.output))) - changed


def least_missed(unknowns: int) -> float:
    """The share of the variance that a consumer with so many unknowns must miss for its producer to change."""
    return LEAST_MISSED * min(1.0, enough_samples(unknowns) * unknowns**2 / DEAR)


def producer_step(
    context: RunContext,
    run: LayerwiseRun,
    path: ChannelPath,
    before: Replacement | None,
    consumer: ConsumerSolution,
    kept: np.ndarray,
    residual: Residual,
) -> Replacement | None:
    """New rows of a producer.

    Parameters
    ----------
    context : RunContext
        The model.
    run : LayerwiseRun
        The compressed model, standing at the consumer; what the producer reads is still there, and so are the gates.
    path : ChannelPath
        Between the two.
    before : Replacement or None
        What the producer has been replaced by; None for its own weight.
    consumer : ConsumerSolution
        The consumer as it has been solved for `before`.
    kept : ndarray of shape (number of ids,), bool
        The channels that stay.
    residual : callable
        What the consumer's outputs miss.

    Returns
    -------
    Replacement or None
        None where less than `LEAST_FALL` would be saved.
    """
    producer, current = path.producer, before or Replacement(path.producer.stored_weight)
    inputs, rows, outputs = (
        np.flatnonzero(kept[ids.reshape(-1)]) for ids in (producer.in_ids, producer.out_ids, path.consumer.out_ids)
    )
    (weight,) = kept_weights(producer, kept[producer.in_ids], current.weight)
    bias = bias_of(context.channels, producer) + (0.0 if current.bias is None else current.bias)
    scale = consumer.output_scale[outputs].astype(np.float32)
    has_bias = current.bias is not None or (producer.takes_bias and has_input(producer.node, 2))  # sizes foresee no other one
    weights = _affine(weight[rows], bias[rows]), _affine(consumer.weight, consumer.bias)
    pair = PairWeights(*weights, inputs, rows, outputs, scale, has_bias)
    samples = ProducerSamples(run, path, pair, residual, consumer.system)
    missed = samples.square_sum()
    step, fall = _step(samples)
    if not np.isfinite(step).all() or not fall > LEAST_FALL * missed:
        return None
    new = producer.canonical(current.weight).astype(np.float64)
    change = step[:, :-1].reshape(len(rows), producer.kernel_size, len(inputs)).transpose(0, 2, 1)
    new[0][np.ix_(rows, inputs)] += change / producer.alpha
    added = (0.0 if current.bias is None else current.bias) + np.zeros(producer.out_ids.size)
    added[rows] += step[:, -1]
    return Replacement(in_range(producer.stored(new), producer.stored_weight.dtype), added if has_bias else None)


def _step(samples: ProducerSamples) -> tuple[Floats, float]:
    """The change (k, i + 1) of rows and biases, and by how much what is missed falls to first order.

    The ridge is that of the least squares, relative to the mean curvature.
    """
    inputs, outputs = samples.second_moments()
    curvature = float(np.trace(inputs) / len(inputs) * np.trace(outputs) / len(outputs))
    ridge = max(RIDGE, OVERLAPPING_RIDGE * len(inputs) / samples.count) * curvature

    def product(direction: Floats) -> tuple[float, Callable[[], Floats]]:
        change = samples.change(direction)
        square = sum(float(np.vdot(each, each)) for each in change)
        return square + ridge * float(np.vdot(direction, direction)), lambda: samples.gradient(change) + ridge * direction

    gradient = samples.gradient(samples.residuals())
    return conjugate_step(gradient, product, KroneckerFactors(inputs, outputs).solve, DIRECTIONS)


def revise_producer(run: LayerwiseRun, path: ChannelPath, replacement: Replacement, own_bias: np.ndarray) -> None:
    """Put new rows of a producer into a run that stands at its consumer; own_bias: `bias_of` the producer."""
    index = run.node_index[path.producer.key]
    nodes, constants = replacement_nodes(run.model.graph.node[index], path.producer, replacement, own_bias)
    run.revise_node(index, nodes, constants, (path.producer.source, path.consumer.source))


def _affine(weight: np.ndarray, bias: np.ndarray) -> Affine:
    """weight (out, inputs, kernel size), bias (out,)."""
    return Affine(np.moveaxis(weight, 1, 2).reshape(len(weight), -1).astype(np.float32), bias.astype(np.float32))
