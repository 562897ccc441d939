"""The update of one layer: solved against the reference's outputs, and the rows of its only producer with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxmerge.algorithms.adjusted_targets import adjusted_target
from onnxmerge.algorithms.least_squares import RIDGE, RidgeSystem, fits_in_memory
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.algorithms.patch_elimination import keep_by_patches
from onnxmerge.algorithms.sample_counts import FEW
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_paths import ChannelPath
from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.pruning.consumer_update import (
    bias_of,
    full_replacement,
    kept_weights,
    mixed_replacement,
    mixed_weights,
    replace_layer,
)
from onnxmerge.pruning.producer_update import ConsumerSolution, least_missed, producer_step, revise_producer
from onnxmerge.statistics.consumer_moments import ConsumerSamples
from onnxmerge.statistics.producer_samples import View
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext

Runs = tuple[LayerwiseRun, LayerwiseRun]
"""The reference, which has run the layer, and the compressed model, which has not."""
REFIT_RIDGE = 1e-2
"""Ridge for layers that lose no input: ten times `RIDGE`, so that they stay closer to the weights that training gave them."""

LARGEST_SELECTION = 1152
"""Unknowns of all channels together up to which they are chosen again, 128 channels of 3 x 3: their price grows with the third
power. A VGG-16 without 70 % of its channels took 167 CPU seconds in the place of 22 when all were."""

UPDATED_EXPONENT = 0.25
"""Exponent of the variance correction, at most, of a layer whose producer may change, where no BatchNormalization tells
variances: less is missed there. On real images a folded ResNet-56 without 70 % of its inner channels keeps a fidelity of 0.582
with it, and 0.570 with 0.5; five perceptrons without 50 to 80 % keep 0.876, and 0.857 with 1. Language models, whose producers
stay, need 0.5."""


@dataclass(frozen=True)
class _Solution:
    """Weights of each group, the bias of all, and the share of the variance of the kept outputs that they miss."""

    samples: ConsumerSamples
    systems: list[RidgeSystem]
    weights: list[np.ndarray]
    bias: np.ndarray
    error: float


class LayerUpdate:
    """The update of one layer.

    Parameters
    ----------
    context : RunContext
        The exported model and the inputs to solve on.
    statistics : ReferenceStatistics
        Covariances of what each layer reads, for channel mixing.
    layer : Layer
        The layer.
    kept : ndarray of shape (number of ids,), bool
        The channels that stay.
    runs : tuple of LayerwiseRun
        Reference and compressed model.
    """

    def __init__(self, context: RunContext, statistics: ReferenceStatistics, layer: Layer, kept: np.ndarray, runs: Runs) -> None:
        self.context, self.layer, self.kept_ids, (self.reference, self.compressed) = context, layer, kept, runs
        self.kept = kept[layer.in_ids]  # (groups, inputs per group)
        self.index = context.node_index[layer.key]
        self.covariance = statistics.covariances.get(layer.key)
        following = statistics.downstream[layer.key]
        is_known = following.is_reachable(*runs) and self._holds_each_input(following.added)
        self.downstream = following if is_known else DownstreamAffine(is_followed=following.is_followed)
        self.own_bias = bias_of(context.channels, layer)
        self.exponent = context.correction_exponent
        self.is_matched = bool(statistics.matched)
        self.producer: Replacement | None = None
        """What `solve` has found for the rows of the producer; None where they stay."""

    def kept_channels(self, count: int, removable: np.ndarray, metric: Callable[[], np.ndarray]) -> np.ndarray | None:
        """So many of the input channels: those with which the targets, as they now are, are missed least; None with few samples.

        removable (inputs,): channels that may go. metric: gives (out, r) what errors are multiplied with.
        """
        layer, every = self.layer, np.ones_like(self.kept)
        shape = self.reference.tensor(0, layer.key).shape
        samples = ConsumerSamples(self.compressed, layer, every, shape)
        (target,) = samples.covariances(lambda batch: self._target(batch, partial(samples.view, batch)))
        if target.count < FEW * samples.unknowns:
            return None
        counted = metric() * self.kept_ids[layer.out_ids.reshape(-1), np.newaxis]
        return keep_by_patches(target.xx, target.xy @ counted, count, removable)

    def solve(self, path: ChannelPath | None = None, producer: Replacement | None = None) -> Replacement | None:
        """Solve against the reference's outputs; where a ReLU follows, solve once more for what passes it.

        path, producer: from the producer that may change too, and what it has been replaced by so far.
        """
        layer = self.layer
        if path is not None and not self.is_matched:
            self.exponent = min(self.exponent, UPDATED_EXPONENT)
        if self.covariance is None:
            return self._with_means_kept(kept_weights(layer, self.kept)) if layer.is_linear else self.accept(None)
        if not layer.is_linear:
            return self._put(mixed_replacement(layer, self.kept, self.covariance))
        mixed = mixed_weights(layer, self.kept, self.covariance)
        if not layer.has_patches or not self.kept.any() or not fits_in_memory(int(self.kept[0].sum()) * layer.kernel_size):
            return self._with_means_kept(mixed)
        solution = self._solution(mixed)
        if path is not None and solution.error > least_missed(solution.samples.unknowns):
            solution = self._with_producer(solution, mixed, path, producer)
        weights, bias = self._solved_before_relu(solution) if self.downstream.has_relu else (solution.weights, solution.bias)
        return self._replace(weights, bias - self.own_bias)

    def accept(self, replacement: Replacement | None) -> Replacement | None:
        """Go on with a replacement that was decided without statistics, or the layer's own weight; returns it as it came."""
        stored_weight = None if replacement is None else replacement.weight
        self._replace(kept_weights(self.layer, self.kept, stored_weight), np.zeros(1))
        return replacement

    def _solution(self, priors: Sequence[np.ndarray]) -> _Solution:
        """The least squares on what the compressed model gives now."""
        samples = ConsumerSamples(self.compressed, self.layer, self.kept, self.reference.tensor(0, self.layer.key).shape)
        targets = samples.covariances(lambda batch: self._target(batch, partial(samples.view, batch)))
        ridge, exponent = REFIT_RIDGE if self.kept.all() else RIDGE, self.exponent
        systems, weights, bias = _solved(self.layer, targets, priors, ridge, exponent)
        missed = np.concatenate([system.residual(target) for system, target in zip(systems, targets, strict=True)])
        counted = np.square(self._output_scale()) * self.kept_ids[self.layer.out_ids.reshape(-1)]
        variance = float(counted @ np.concatenate([target.variance_y for target in targets]))
        return _Solution(samples, systems, weights, bias, float(counted @ missed) / max(variance, np.finfo(float).tiny))

    def _solved_before_relu(self, solution: _Solution) -> tuple[list[np.ndarray], np.ndarray]:
        samples = solution.samples

        def target(batch: int) -> np.ndarray:
            current = samples.outputs(batch, solution.weights, solution.bias)
            return self._target_before_relu(batch, partial(samples.view, batch), current)

        targets = samples.covariances(target, with_xx=False)
        return _fitted(self.layer, solution.systems, targets, self.exponent)

    def _with_producer(
        self, solution: _Solution, priors: Sequence[np.ndarray], path: ChannelPath, before: Replacement | None
    ) -> _Solution:
        """Change the rows of the producer and solve again, if less is missed then."""
        consumer = ConsumerSolution(solution.weights[0], solution.bias, self._output_scale(), solution.systems[0])
        after = producer_step(self.context, self.compressed, path, before, consumer, self.kept_ids, self._residual)
        if after is None:
            return solution
        own_bias = bias_of(self.context.channels, path.producer)
        revise_producer(self.compressed, path, after, own_bias)
        solution.samples.forget()
        changed = self._solution(priors)
        if changed.error < solution.error:
            self.producer = after
            return changed
        revise_producer(self.compressed, path, before or Replacement(path.producer.stored_weight), own_bias)
        return solution

    def _residual(self, batch: int, view: View, current: np.ndarray) -> np.ndarray:
        """What the outputs miss in a view where they are `current`; behind a ReLU 0 where it lets neither run's pass."""
        if self.downstream.has_relu:
            return np.asarray(self._target_before_relu(batch, view, current) - current)
        return np.asarray(self._target(batch, view) - current)

    def _output_scale(self) -> np.ndarray:
        """(out,) what BatchNormalizations multiply the outputs with."""
        return np.ones(self.layer.out_ids.size) if self.downstream.scale is None else np.abs(self.downstream.scale)

    def _with_means_kept(self, weights: list[np.ndarray]) -> Replacement:
        """These weights with the bias that gives every output the mean of its target."""
        self._replace(weights, np.zeros(1))
        current = self.compressed.session_of_node(self.index)
        shift = np.zeros(1)
        for batch in range(self.reference.batch_count):
            (output,) = self.compressed.run_session(current, batch).values()
            difference = self._target(batch) - output
            others = tuple(axis for axis in range(difference.ndim) if axis != self.layer.output_axis)
            shift = shift + difference.mean(others, dtype=np.float64) / self.reference.batch_count
        return self._replace(weights, shift)

    def _target(self, batch: int, view: View = np.asarray) -> np.ndarray:
        """The reference's output, adjusted for what the other branches of a join have lost."""
        output = view(self.reference.tensor(batch, self.layer.key))
        reached, wanted = (self._added(run, batch, view) for run in (self.compressed, self.reference))
        return output if reached is None or wanted is None else adjusted_target(output, reached, wanted, self.downstream.scale)

    def _target_before_relu(self, batch: int, view: View, current: np.ndarray) -> np.ndarray:
        """The same for a layer before a ReLU, for which all negative values are equal; current: the layer as solved so far."""
        output = view(self.reference.tensor(batch, self.layer.key))
        reached = self.downstream.before_relu(current, self._added(self.compressed, batch, view))
        wanted = self.downstream.before_relu(output, self._added(self.reference, batch, view))
        return adjusted_target(current, reached, wanted, self.downstream.scale, rectified=True)

    def _holds_each_input(self, added: str | None) -> bool:
        """Whether the layer's output has as many rows as what is added: one that all inputs share has no target of its own."""
        return added is None or len(self.reference.tensor(0, added)) <= len(self.reference.tensor(0, self.layer.key))

    def _added(self, run: LayerwiseRun, batch: int, view: View) -> np.ndarray | None:
        """What a run adds to the layer's output, of one input or of each; None where nothing is added."""
        if self.downstream.added is None:
            return None
        return view(np.broadcast_to(run.tensor(batch, self.downstream.added), self.reference.tensor(batch, self.layer.key).shape))

    def _replace(self, weights: list[np.ndarray], bias: np.ndarray) -> Replacement:
        """Put weights of the kept inputs, and what is added to the layer's bias, into the compressed run."""
        return self._put(full_replacement(self.layer, self.kept, weights, bias))

    def _put(self, replacement: Replacement) -> Replacement:
        """Put a replacement into the compressed run."""
        replace_layer(self.compressed, self.layer, replacement, self.own_bias)
        return replacement


def is_cheap_to_choose(layer: Layer) -> bool:
    """Whether `LayerUpdate.kept_channels` is worth its price: for a convolution without groups, of few channels."""
    return layer.layout == "conv" and layer.groups == 1 and layer.in_ids.size * layer.kernel_size <= LARGEST_SELECTION


def _solved(
    layer: Layer, targets: Sequence[Covariance], priors: Sequence[np.ndarray], ridge: float, correction_exponent: float
) -> tuple[list[RidgeSystem], list[np.ndarray], np.ndarray]:
    """Solve a layer for every group of a grouped convolution.

    Parameters
    ----------
    layer : Layer
        The layer.
    targets : Sequence[Covariance]
        For each group, of its kept inputs, laid out (kernel position, input), with its targets.
    priors : sequence of ndarray of shape (out, kept inputs, kernel size)
        For each group what the solution is pulled towards.
    ridge : float
        Strength of the pull, relative to the mean variance of the inputs.
    correction_exponent : float
        Exponent of the variance correction, 0 for none.

    Returns
    -------
    systems : list of RidgeSystem
        For each group, to be solved for other targets.
    weights : list of ndarray
        For each group, shaped as the priors.
    bias : ndarray of shape (out,)
        Of all groups, the layer's own included.
    """
    is_conv = layer.layout == "conv"
    systems = [
        RidgeSystem(target.xx, target.count, prior.transpose(0, 2, 1).reshape(len(prior), -1), ridge, not is_conv)
        for target, prior in zip(targets, priors, strict=True)
    ]
    return systems, *_fitted(layer, systems, targets, correction_exponent)


def _fitted(
    layer: Layer, systems: Sequence[RidgeSystem], targets: Sequence[Covariance], correction_exponent: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Weights and bias as `_solved` returns them."""
    found = [system.solve(target, correction_exponent) for system, target in zip(systems, targets, strict=True)]
    shape = len(found[0][0]), layer.kernel_size, -1
    return [weight.reshape(shape).transpose(0, 2, 1) for weight, _ in found], np.concatenate([bias for _, bias in found])
