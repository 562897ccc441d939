"""How much each group matters to the model's outputs: a few removals of each, measured, the rest of the model as it is.

A probe removes a share of one group's channels from the reference, compensates by channel mixing (or as `--method` says) and
runs what follows; where that is affordable also with the readers solved for it, on other inputs, and the better one counts. Only
the part behind the group's first reader is run, on inputs that have been walked up to there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxmerge.evaluation.fidelity import compare_outputs
from onnxmerge.execution.layerwise import Walk
from onnxmerge.execution.sessions import batch_size
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.readers import Reader
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.graph.weights import canonical
from onnxmerge.options import Options
from onnxmerge.pruning.consumer_update import alpha_of, install, mixed_priors, old_bias, replaced, spread_out
from onnxmerge.pruning.layer_statistics import Study
from onnxmerge.pruning.plan import kept_count
from onnxmerge.pruning.reconstruct import decision_of
from onnxmerge.pruning.trial_solves import Key, Trial, trial_solves
from onnxmerge.pruning.weight_methods import replacements
from onnxmerge.statistics.reference_run import Feeds, copy_of

LEVELS = (0.25, 0.5, 0.75)
MOST_INPUTS, FEWEST_INPUTS = 64, 8
MAC_BUDGET = 4e11  # of all probes together, about ten seconds on two cores
LOST = 1e3  # damage of outputs that are not finite any more


@dataclass(frozen=True)
class Probe:
    """One group at one level: removed is the share asked for; damage = 1 - fidelity of the output that suffers most."""

    removed: float
    kept: int
    damage: float


def probe(study: Study, groups: Sequence[ChannelGroup], macs: int, options: Options) -> dict[str, tuple[Probe, ...]]:
    """By group, probes of ascending shares removed. macs: of one input, decides how many inputs are afforded."""
    engine = study.engine
    count = int(np.clip(MAC_BUDGET / max(1, macs * len(groups) * len(LEVELS)), FEWEST_INPUTS, MOST_INPUTS))
    batches = _first(study.inputs.batches(count), count)
    walk = Walk(copy_of(study.statistics.matched), batches, engine.threads)
    reading = [group for group in groups if group.consumers]
    trials = {group.name: _trials(study, group, options) for group in reading}
    solving = [each for of_group in trials.values() for _, each in of_group if _is_solved(each)]
    solved = {} if _far_from_data(study) else trial_solves(study, solving, macs, count)
    found: dict[str, tuple[Probe, ...]] = {group.name: () for group in groups}
    for number, group in enumerate(sorted(reading, key=lambda each: _start(study, each))):
        walk.advance(_start(study, group))
        opened = _Opened(study, group, walk, [batch_size(feeds) for feeds in batches], solved)
        found[group.name] = tuple(opened.probe(level, trial) for level, trial in trials[group.name])
        engine.progress("probes", (number + 1) / len(reading))
    return found


def _trials(study: Study, group: ChannelGroup, options: Options) -> list[tuple[float, Trial]]:
    """One for each level at which something goes."""
    made: dict[int, tuple[float, Trial]] = {}
    for level in LEVELS:
        count = kept_count(group, level)
        if count < group.size and count not in made:
            made[count] = level, Trial(group, decision_of(study, group, count, options))
    return list(made.values())


def _is_solved(trial: Trial) -> bool:
    return trial.decision.removal.method == "reconstruct"


def _far_from_data(study: Study) -> bool:
    """Synthetic inputs, and no BatchNormalization to say how large channels are on real ones: solves promise too much there.

    On calibration images allocations by solves lost more than those by channel mixing (digits-resnet, half of the MACs: 0.129
    instead of 0.083; ResNet-56 folded: the same).
    """
    return study.engine.synthetic and not any(node.op_type == "BatchNormalization" for node in study.engine.model.graph.node)


def _first(batches: Iterable[Feeds], count: int) -> list[Feeds]:
    """Batches until there are `count` inputs."""
    found: list[Feeds] = []
    for feeds in batches:
        found.append(feeds)
        if sum(map(batch_size, found)) >= count:
            break
    return found


def _start(study: Study, group: ChannelGroup) -> int:
    return min(study.statistics.readers[link.key].at for link in group.consumers)


class _Opened:
    """The rest of the model from a group's first reader on, with the weights of its readers as inputs."""

    def __init__(
        self, study: Study, group: ChannelGroup, walk: Walk, sizes: Sequence[int], solved: Mapping[Key, Replacement]
    ) -> None:
        self.study, self.group, self.walk, self.sizes, self.solved = study, group, walk, sizes, solved
        self.readers = {link.key: study.statistics.readers[link.key] for link in group.consumers}
        opened = {name: value for reader in self.readers.values() for name, value in self._open(reader).items()}
        self.session = walk.ending(opened)
        self.expected = [walk.run(self.session, number, opened) for number in range(walk.count)]

    def probe(self, level: float, trial: Trial) -> Probe:
        """What the outputs lose with so much of the group gone."""
        damage = self._damage(trial, {})
        if any(trial.key(key) in self.solved for key in self.readers):
            damage = min(damage, self._damage(trial, self.solved))
        return Probe(level, len(trial.decision.removal.kept), damage)

    def _damage(self, trial: Trial, solved: Mapping[Key, Replacement]) -> float:
        absorbed = replacements(self.study.engine.channels, [trial.decision])
        opened: dict[str, np.ndarray] = {}
        for key, reader in self.readers.items():
            kept = trial.kept(self.study, reader)
            if _is_solved(trial):
                new = solved.get(trial.key(key)) or self._mixed(reader, kept)
            else:
                new = self._bare(reader, kept, absorbed.get(key))
            opened |= self._constants(reader, new)
        runs = ((self.sizes[n], self.expected[n], self.walk.run(self.session, n, opened)) for n in range(self.walk.count))
        outputs, _ = compare_outputs(runs, self.session.output_names)
        return max(float(np.clip(1.0 - output.fidelity, 0.0, LOST)) for output in outputs)

    def _mixed(self, reader: Reader, kept: np.ndarray) -> Replacement:
        """Channel mixing, with the bias that keeps the means."""
        moments = self.study.statistics.moments[reader.key]
        weights = mixed_priors(reader, kept, moments)
        means = moments.mean_x[reader.channel_of].reshape(reader.groups, -1)
        lost = [
            (alpha_of(reader) * full.sum(-1)) @ mean - weight.sum(-1) @ mean[stay]
            for full, weight, mean, stay in zip(reader.weight, weights, means, kept, strict=True)
        ]
        return spread_out(self.study.engine.channels.flow, reader, kept, weights, np.concatenate(lost))

    def _bare(self, reader: Reader, kept: np.ndarray, given: Replacement | None) -> Replacement:
        """Removed inputs dropped from the weight as given, or as it was."""
        weight = reader.weight if given is None else canonical(reader.weighted, given.weight).astype(np.float64)
        parts = [alpha_of(reader) * part[:, stay] for part, stay in zip(weight, kept, strict=True)]
        return spread_out(self.study.engine.channels.flow, reader, kept, parts, np.zeros(1))

    def _constants(self, reader: Reader, new: Replacement) -> dict[str, np.ndarray]:
        """The constants of a reader, named as in the walk."""
        before = old_bias(self.study.engine.channels.flow, reader)
        return replaced(self.walk.nodes[reader.at][0], reader, new, before)[1]

    def _open(self, reader: Reader) -> dict[str, np.ndarray]:
        """Put the reader into the walk as it is, with constants of its own."""
        flow = self.study.engine.channels.flow
        parts = [alpha_of(reader) * part for part in reader.weight]
        same = spread_out(flow, reader, np.ones(reader.weighted.in_ids.shape, bool), parts, np.zeros(1))
        install(self.walk, reader, same, old_bias(flow, reader))
        return self._constants(reader, same)
