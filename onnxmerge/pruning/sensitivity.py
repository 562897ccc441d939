"""How much each group matters to the model's outputs: a few removals of each, measured, the rest of the model as it is.

A probe removes a share of one group's channels from the reference, compensates by channel mixing (or as `method` says) and
runs what follows; where that is affordable also with the readers solved for it, on other inputs, and the better one counts. Only
the part behind the group's first reader is run, on inputs that have been walked up to there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.tensor_specs import batch_size
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.consumer_update import install, mixed_priors, old_bias, replaced, spread_out
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.plan import kept_count
from onnxmerge.pruning.reconstruct import decision_of
from onnxmerge.pruning.trial_solves import Key, Trial, trial_solves
from onnxmerge.pruning.weight_methods import replacements
from onnxmerge.statistics.reference_run import Feeds, copy_of

LEVELS = (0.25, 0.5, 0.75)
MOST_INPUTS, FEWEST_INPUTS = 64, 8
MAC_BUDGET = 4e11  # of all probes together, about ten seconds on two cores
LOST = 1e3  # loss of outputs that are not finite any more


@dataclass(frozen=True)
class Sensitivity:
    """One group at one level: removed is the share asked for; loss = 1 - fidelity of the output that suffers most."""

    removed: float
    kept: int
    loss: float


def measure_sensitivities(
    layer_statistics: LayerStatistics, groups: Sequence[ChannelGroup], macs: int, options: PruningOptions
) -> dict[str, tuple[Sensitivity, ...]]:
    """By group, probes of ascending shares removed. macs: of one input, decides how many inputs are afforded."""
    context = layer_statistics.context
    count = int(np.clip(MAC_BUDGET / max(1, macs * len(groups) * len(LEVELS)), FEWEST_INPUTS, MOST_INPUTS))
    batches = _first(layer_statistics.inputs.batches(count), count)
    walk = LayerwiseRun(copy_of(layer_statistics.reference.matched), batches, context.threads, context.folder)
    reading = [group for group in groups if group.consumers]
    trials = {group.name: _trials(layer_statistics, group, options) for group in reading}
    solving = [each for of_group in trials.values() for _, each in of_group if _is_solved(each)]
    solved = {} if _far_from_data(layer_statistics) else trial_solves(layer_statistics, solving, macs, count)
    found: dict[str, tuple[Sensitivity, ...]] = {group.name: () for group in groups}
    for number, group in enumerate(sorted(reading, key=lambda each: _start(layer_statistics, each))):
        walk.run_until(_start(layer_statistics, group))
        opened = _Opened(layer_statistics, group, walk, [batch_size(feeds) for feeds in batches], solved)
        found[group.name] = tuple(opened.measure_sensitivities(level, trial) for level, trial in trials[group.name])
        context.progress("sensitivities", (number + 1) / len(reading))
    return found


def _trials(layer_statistics: LayerStatistics, group: ChannelGroup, options: PruningOptions) -> list[tuple[float, Trial]]:
    """One for each level at which something goes."""
    made: dict[int, tuple[float, Trial]] = {}
    for level in LEVELS:
        count = kept_count(group, level)
        if count < group.size and count not in made:
            made[count] = level, Trial(group, decision_of(layer_statistics, group, count, options))
    return list(made.values())


def _is_solved(trial: Trial) -> bool:
    return trial.decision.removal.method == "reconstruct"


def _far_from_data(layer_statistics: LayerStatistics) -> bool:
    """Synthetic inputs, and no BatchNormalization to say how large channels are on real ones: solves promise too much there.

    On calibration images allocations by solves lost more than those by channel mixing (digits-resnet, half of the MACs: 0.129
    instead of 0.083; ResNet-56 folded: the same).
    """
    return layer_statistics.context.synthetic and not any(
        node.op_type == "BatchNormalization" for node in layer_statistics.context.model.graph.node
    )


def _first(batches: Iterable[Feeds], count: int) -> list[Feeds]:
    """Batches until there are `count` inputs."""
    found: list[Feeds] = []
    for feeds in batches:
        found.append(feeds)
        if sum(map(batch_size, found)) >= count:
            break
    return found


def _start(layer_statistics: LayerStatistics, group: ChannelGroup) -> int:
    return min(layer_statistics.context.node_index[link.key] for link in group.consumers)


class _Opened:
    """The rest of the model from a group's first reader on, with the weights of its readers as inputs."""

    def __init__(
        self,
        layer_statistics: LayerStatistics,
        group: ChannelGroup,
        walk: LayerwiseRun,
        sizes: Sequence[int],
        solved: Mapping[Key, Replacement],
    ) -> None:
        self.layer_statistics, self.group, self.walk, self.sizes, self.solved = layer_statistics, group, walk, sizes, solved
        self.layers = {link.key: layer_statistics.reference.layers[link.key] for link in group.consumers}
        opened = {name: value for layer in self.layers.values() for name, value in self._open(layer).items()}
        self.session = walk.session_to_outputs(opened)
        self.expected = [walk.run_session(self.session, number, opened) for number in range(walk.batch_count)]

    def measure_sensitivities(self, level: float, trial: Trial) -> Sensitivity:
        """What the outputs lose with so much of the group gone."""
        loss = self._loss(trial, {})
        if any(trial.key(key) in self.solved for key in self.layers):
            loss = min(loss, self._loss(trial, self.solved))
        return Sensitivity(level, len(trial.decision.removal.kept), loss)

    def _loss(self, trial: Trial, solved: Mapping[Key, Replacement]) -> float:
        absorbed = replacements(self.layer_statistics.context.channels, [trial.decision])
        opened: dict[str, np.ndarray] = {}
        for key, layer in self.layers.items():
            kept = trial.kept(self.layer_statistics, layer)
            if _is_solved(trial):
                new = solved.get(trial.key(key)) or self._mixed(layer, kept)
            else:
                new = self._bare(layer, kept, absorbed.get(key))
            opened |= self._constants(layer, new)
        runs = (
            (self.sizes[n], self.expected[n], self.walk.run_session(self.session, n, opened))
            for n in range(self.walk.batch_count)
        )
        outputs, _ = compare_outputs(runs, self.session.output_names)
        return max(float(np.clip(1.0 - output.fidelity, 0.0, LOST)) for output in outputs)

    def _mixed(self, layer: Layer, kept: np.ndarray) -> Replacement:
        """Channel mixing, with the bias that keeps the means."""
        moments = self.layer_statistics.reference.covariances[layer.key]
        weights = mixed_priors(layer, kept, moments)
        means = moments.mean_x[layer.channel_of].reshape(layer.groups, -1)
        lost = [
            (layer.alpha * full.sum(-1)) @ mean - weight.sum(-1) @ mean[stay]
            for full, weight, mean, stay in zip(layer.weight, weights, means, kept, strict=True)
        ]
        return spread_out(self.layer_statistics.context.channels, layer, kept, weights, np.concatenate(lost))

    def _bare(self, layer: Layer, kept: np.ndarray, given: Replacement | None) -> Replacement:
        """Removed inputs dropped from the weight as given, or as it was."""
        weight = layer.weight if given is None else layer.canonical(given.weight).astype(np.float64)
        parts = [layer.alpha * part[:, stay] for part, stay in zip(weight, kept, strict=True)]
        return spread_out(self.layer_statistics.context.channels, layer, kept, parts, np.zeros(1))

    def _constants(self, layer: Layer, new: Replacement) -> dict[str, np.ndarray]:
        """The constants of a reader, named as in the walk."""
        before = old_bias(self.layer_statistics.context.channels, layer)
        return replaced(self.walk.nodes[self.walk.node_index[layer.key]][0], layer, new, before)[1]

    def _open(self, layer: Layer) -> dict[str, np.ndarray]:
        """Put the reader into the walk as it is, with constants of its own."""
        channels = self.layer_statistics.context.channels
        parts = [layer.alpha * part for part in layer.weight]
        same = spread_out(channels, layer, np.ones(layer.in_ids.shape, bool), parts, np.zeros(1))
        install(self.walk, layer, same, old_bias(channels, layer))
        return self._constants(layer, same)
