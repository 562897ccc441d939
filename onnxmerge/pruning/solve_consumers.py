"""The least squares of `reconstruct`, layer by layer in topological order.

Reference and compressed model are run side by side. At every consumer the inputs come from the compressed model, as far as it has
been solved, and the targets from the reference, so that every consumer makes good what was lost before it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from onnxmerge.algorithms.adjusted_targets import adjusted_target
from onnxmerge.algorithms.least_squares import RIDGE, RidgeSystem, fits_in_memory
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Removal, Replacement, gone_nodes
from onnxmerge.onnxio.traversal import tensors_read
from onnxmerge.pruning.consumer_update import (
    bias_of,
    full_replacement,
    kept_weights,
    mixed_replacement,
    mixed_weights,
    remove_states,
    replace_layer,
)
from onnxmerge.pruning.masked_means import mask_means, mean_masks, means_over
from onnxmerge.pruning.product_update import output_mixes
from onnxmerge.statistics.consumer_moments import ConsumerSamples
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext

Runs = tuple[LayerwiseRun, LayerwiseRun]
"""The reference, which has run the layer, and the compressed model, which has not."""
View = Callable[[np.ndarray], np.ndarray]
"""Tensor shaped like a layer's output -> the part of it that is looked at."""
REFIT_RIDGE = 1e-2
"""Ridge for layers that lose no input: ten times `RIDGE`, so that they stay closer to the weights that training gave them."""


def solve_consumers(
    context: RunContext, statistics: ReferenceStatistics, removals: Sequence[Removal], unsolved: Mapping[str, Replacement | None]
) -> dict[str, Replacement]:
    """New weights and biases of all layers from the first one that loses inputs on.

    Layers that lose none are fitted to what the compressed model now gives them; on synthetic inputs not the last ones, since
    these inputs say little about the outputs that follow.

    Parameters
    ----------
    context : RunContext
        The exported model and the inputs to solve on.
    statistics : ReferenceStatistics
        Covariances of what each layer reads, for channel mixing.
    removals : Sequence[Removal]
        What is removed from each group.
    unsolved : Mapping[str, Replacement or None]
        By key, consumers that are not to be solved and what replaces them; None: they only lose their inputs.

    Returns
    -------
    dict[str, Replacement]
        By key of the layer.

    Notes
    -----
    Targets from the reference, inputs from the compressed model: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep
    Neural Networks", 2017. A second solve for what passes a ReLU: Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional
    Networks for Classification and Detection", 2015.
    """
    kept = context.channels.kept_mask((removal.group, removal.kept) for removal in removals)
    mixes = output_mixes(context.channels, removals, statistics.products)
    known = {**statistics.layers, **{key: mix.layer for key, mix in mixes.items()}}
    layers = sorted(known.values(), key=lambda layer: context.node_index[layer.key])
    first = next((at for at, layer in enumerate(layers) if layer.key in mixes or not kept[layer.in_ids].all()), len(layers))
    gone = gone_nodes(removals)
    layers = [layer for layer in layers[first:] if layer.key in mixes or _is_updated(context, statistics, layer, kept)]
    changed = {layer.key for layer in layers if layer.key in mixes or not kept[layer.in_ids].all()}
    affected = _affected(context, statistics, changed) - gone
    layers = [layer for layer in layers if layer.key in affected]
    if not layers:
        return {}
    runs = context.new_run(statistics.matched), context.new_run(statistics.matched)
    remove_states(runs[1], context.channels, kept, [layer for layer in context.channels.layers if not kept[layer.out_ids].all()])
    masked = means_over(context.channels, (removal.group for removal in removals))
    mask_means(runs[1], mean_masks(context.channels, kept, masked))
    replacements: dict[str, Replacement] = {}
    for number, layer in enumerate(layers):
        index = context.node_index[layer.key]
        runs[0].run_until(index + 1, keep=layer.key)
        runs[1].run_until(index)
        replacement, mix = None, mixes.get(layer.key)
        if layer.key in statistics.layers and _is_updated(context, statistics, layer, kept):
            update = _LayerUpdate(context, statistics, layer, kept[layer.in_ids], runs)
            replacement = update.accept(unsolved[layer.key]) if layer.key in unsolved else update.solve()
        if mix is not None:
            mixed = mix.applied(context.channels, replacement)
            replace_layer(runs[1], layer, mixed, bias_of(context.channels, layer))
            replacement = mixed if mix.blocks else replacement
        if replacement is not None:
            replacements[layer.key] = replacement
        context.progress("reconstruction", (number + 1) / len(layers))
    return replacements


def _is_updated(context: RunContext, statistics: ReferenceStatistics, layer: Layer, kept: np.ndarray) -> bool:
    """Whether a layer behind the first removal loses inputs or is refitted."""
    is_refitted = not context.synthetic or statistics.downstream[layer.key].is_followed
    return not kept[layer.in_ids].all() or (is_refitted and layer.is_linear and layer.key not in statistics.shared_weight_keys)


def _affected(context: RunContext, statistics: ReferenceStatistics, changed: set[str]) -> set[str]:
    """Keys of changed layers, and of those that read what depends on them, or to whose outputs that is added."""
    names = set(changed)
    for node in context.model.graph.node:
        if not names.isdisjoint(tensors_read(node)):
            names.update(node.output)
    following = statistics.downstream.items()
    return changed | {key for key, each in following if names & {statistics.layers[key].source, each.added}}


class _LayerUpdate:
    """The update of one layer; kept (groups, inputs per group) bool: the inputs that it keeps."""

    def __init__(self, context: RunContext, statistics: ReferenceStatistics, layer: Layer, kept: np.ndarray, runs: Runs) -> None:
        self.context, self.layer, self.kept, (self.reference, self.compressed) = context, layer, kept, runs
        self.index = context.node_index[layer.key]
        self.covariance = statistics.covariances.get(layer.key)
        following = statistics.downstream[layer.key]
        is_known = following.is_reachable(*runs) and self._holds_each_input(following.added)
        self.downstream = following if is_known else DownstreamAffine(is_followed=following.is_followed)
        self.own_bias = bias_of(context.channels, layer)

    def solve(self) -> Replacement | None:
        """Solve against the reference's outputs; where a ReLU follows, solve once more for what passes it."""
        layer = self.layer
        if self.covariance is None:
            return self._with_means_kept(kept_weights(layer, self.kept)) if layer.is_linear else self.accept(None)
        if not layer.is_linear:
            return self._put(mixed_replacement(layer, self.kept, self.covariance))
        mixed = mixed_weights(layer, self.kept, self.covariance)
        if not layer.has_patches or not self.kept.any() or not fits_in_memory(int(self.kept[0].sum()) * layer.kernel_size):
            return self._with_means_kept(mixed)
        samples = ConsumerSamples(self.compressed, layer, self.kept, self.reference.tensor(0, layer.key).shape)
        ridge, exponent = REFIT_RIDGE if self.kept.all() else RIDGE, self.context.correction_exponent

        def target(batch: int) -> np.ndarray:
            return self._target(batch, partial(samples.view, batch))

        systems, weights, bias = _solved(layer, samples.covariances(target), mixed, ridge, exponent)
        if self.downstream.has_relu:

            def target_before_relu(batch: int) -> np.ndarray:
                return self._target_before_relu(batch, partial(samples.view, batch), samples.outputs(batch, *solved))

            solved = weights, bias
            weights, bias = _fitted(layer, systems, samples.covariances(target_before_relu, with_xx=False), exponent)
        return self._replace(weights, bias - self.own_bias)

    def accept(self, replacement: Replacement | None) -> Replacement | None:
        """Go on with a replacement that was decided without statistics, or the layer's own weight; returns it as it came."""
        stored_weight = None if replacement is None else replacement.weight
        self._replace(kept_weights(self.layer, self.kept, stored_weight), np.zeros(1))
        return replacement

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
