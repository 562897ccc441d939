"""The second walk: reference and compressed prefix side by side, a least squares for every consumer in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from onnxmerge.algorithms.least_squares import RIDGE, adjusted_target, fits_in_memory, solve
from onnxmerge.algorithms.moments import MomentSums
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.sessions import Session
from onnxmerge.graph.downstream import DownstreamAffine
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.pruning.consumer_update import install, mixed_priors, old_bias, spread_out
from onnxmerge.statistics.consumer_moments import SampleCache, consumer_moment_sums
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext, copy_of

REFIT_RIDGE = 1e-2  # consumers that lose no input keep closer to what they were


def solve_consumers(
    context: RunContext, statistics: ReferenceStatistics, removals: Sequence[Removal], fixed: Mapping[str, Replacement | None]
) -> dict[str, Replacement]:
    """New weights and biases, in topological order, of every consumer from the first one that loses inputs on.

    Those that lose none are fitted to what the compressed prefix now gives them; without data, not those that nothing
    follows, since synthetic inputs say little about the last layer's outputs. fixed: by key, what was decided otherwise for
    consumers that are not to be solved (None: they only lose their inputs).
    """
    stays = context.channels.kept_mask((removal.group, removal.kept) for removal in removals)
    layers = sorted(statistics.layers.values(), key=lambda layer: context.node_index[layer.key])
    losing = [context.node_index[layer.key] for layer in layers if not stays[layer.in_ids].all()]
    due = [
        layer
        for layer in layers
        if losing and context.node_index[layer.key] >= min(losing) and _is_due(context, statistics, layer, losing)
    ]
    reference = LayerwiseRun(copy_of(statistics.matched), context.batches(), context.threads, context.folder)
    compressed = LayerwiseRun(copy_of(statistics.matched), context.batches(), context.threads, context.folder)
    found: dict[str, Replacement] = {}
    for number, layer in enumerate(due):
        reference.run_until(context.node_index[layer.key])
        compressed.run_until(context.node_index[layer.key])
        consumer = _Consumer(context, statistics, layer, stays, reference, compressed)
        if layer.key not in fixed:
            found[layer.key] = consumer.solve()
        elif (new := consumer.accept(fixed[layer.key])) is not None:
            found[layer.key] = new
        context.progress("reconstruction", (number + 1) / len(due))
    return found


def _is_due(context: RunContext, statistics: ReferenceStatistics, layer: Layer, losing: list[int]) -> bool:
    if context.node_index[layer.key] in losing:
        return True
    return not statistics.is_shared(layer.key) and (not context.synthetic or statistics.downstream[layer.key].is_followed)


class _Consumer:
    """One consumer at which both walks stand."""

    def __init__(
        self,
        context: RunContext,
        statistics: ReferenceStatistics,
        layer: Layer,
        stays: np.ndarray,
        reference: LayerwiseRun,
        compressed: LayerwiseRun,
    ) -> None:
        self.context, self.layer, self.reference, self.compressed = context, layer, reference, compressed
        self.index = context.node_index[layer.key]
        self.kept = stays[layer.in_ids]
        self.covariance = statistics.covariances[layer.key]
        downstream = statistics.downstream[layer.key]
        self.downstream = (
            downstream if downstream.is_reachable(reference, compressed) else DownstreamAffine(is_followed=downstream.is_followed)
        )
        self.alpha, self.cache = layer.alpha, SampleCache()
        self.old_bias = old_bias(context.channels, layer)

    def solve(self) -> Replacement:
        """Install and return what replaces the consumer: against the reference's outputs, then once as its ReLU sees them."""
        layer = self.layer
        priors = mixed_priors(layer, self.kept, self.covariance)
        unknowns = int(self.kept[0].sum()) * layer.weight.shape[3]
        if not layer.has_patches or not fits_in_memory(unknowns):
            return self._mixed(priors)
        outputs = self.reference.session_of_node(self.index)
        ridge = REFIT_RIDGE if self.kept.all() else RIDGE
        sums = self._moments(partial(self._first_target, outputs))
        weights, bias = self._least_squares(sums, priors, ridge)
        new = self._install(weights, bias - self.old_bias)
        if self.downstream.has_relu:
            current = self.compressed.session_of_node(self.index)
            sums = self._moments(partial(self._next_target, outputs, current))
            weights, bias = self._least_squares(sums, weights, ridge)
            new = self._install(weights, bias - self.old_bias)
        return new

    def _mixed(self, priors: list[np.ndarray]) -> Replacement:
        """Channel mixing alone, with the bias that gives every output the reference's mean."""
        axis = self.layer.output_axis
        outputs = self.reference.session_of_node(self.index)
        self._install(priors, np.zeros(1))
        current = self.compressed.session_of_node(self.index)
        lost = 0.0
        for number in range(self.reference.batch_count):
            difference = self._first_target(outputs, number) - _run(current, self.compressed, number)
            others = tuple(a for a in range(difference.ndim) if a != axis)
            lost = lost + difference.mean(others, dtype=np.float64) / self.reference.batch_count
        return self._install(priors, np.asarray(lost))

    def accept(self, given: Replacement | None) -> Replacement | None:
        """Install what was decided without statistics; returns it as it was given."""
        weight = self.layer.weight if given is None else self.layer.canonical(given.weight).astype(np.float64)
        self._install([self.alpha * part[:, stay] for part, stay in zip(weight, self.kept, strict=True)], np.zeros(1))
        return given

    def _first_target(self, outputs: Session, number: int) -> np.ndarray:
        """The reference's own output, and what the other side of a join has lost."""
        output = _run(outputs, self.reference, number)
        if self.downstream.added is None:
            return output
        reached, wanted = (np.asarray(walk.tensor(number, self.downstream.added)) for walk in (self.compressed, self.reference))
        return adjusted_target(output, reached, wanted, self.downstream.scale)

    def _next_target(self, outputs: Session, current: Session, number: int) -> np.ndarray:
        """The same, forgiven where a ReLU follows and anything negative will do."""
        now = _run(current, self.compressed, number)
        reached = self.downstream.before_relu(now, self.compressed, number)
        wanted = self.downstream.before_relu(_run(outputs, self.reference, number), self.reference, number)
        return adjusted_target(now, reached, wanted, self.downstream.scale, rectified=True)

    def _moments(self, targets: Callable[[int], np.ndarray]) -> list[MomentSums]:
        return consumer_moment_sums(self.compressed, self.layer, self.kept, targets, self.cache, self.context.threads)

    def _least_squares(
        self, moments: list[MomentSums], priors: list[np.ndarray], ridge: float
    ) -> tuple[list[np.ndarray], np.ndarray]:
        return least_squares(self.layer, moments, priors, ridge, self.context.correction_exponent)

    def _install(self, weights: list[np.ndarray], bias: np.ndarray) -> Replacement:
        """Into the compressed walk, with zeros at removed places; bias (out,): what is added to the output."""
        layer = self.layer
        new = spread_out(self.context.channels, layer, self.kept, weights, bias)
        install(self.compressed, layer, new, self.old_bias)
        return new


def least_squares(
    layer: Layer, moments: Sequence[MomentSums], priors: Sequence[np.ndarray], ridge: float, correction_exponent: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """For each group of a reader (out, kept, positions), and the bias (out,) of all; moments and priors of what it keeps."""
    _, out, _, positions = layer.weight.shape
    weights, biases = [], []
    rows = layer.layout != "conv"
    for part, prior in zip(moments, priors, strict=True):
        solved, bias = solve(part, prior.transpose(0, 2, 1).reshape(out, -1), ridge, correction_exponent, rows)
        weights.append(solved.reshape(out, positions, -1).transpose(0, 2, 1))
        biases.append(bias)
    return weights, np.concatenate(biases)


def _run(session: Session, walk: LayerwiseRun, number: int) -> np.ndarray:
    """The one output of a node's session on a batch of a walk."""
    return next(iter(walk.run_session(session, number).values()))
