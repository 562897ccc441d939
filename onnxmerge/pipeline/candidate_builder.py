"""Candidates of one model, built and measured; what they need to know of the model is measured once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxmerge.evaluation.benchmark import TRIAL_EFFORT, TimingEffort, time_pair
from onnxmerge.execution.sessions import ModelSource
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.model_measurements import QUICK_INPUTS, ModelMeasurements
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pruning.budget import Budget
from onnxmerge.pruning.decision import decide, replacements_for
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.results import LatencyComparison, OutputFidelity

ChannelCounts = Mapping[str, int]
"""Name of a channel group -> how many of its channels stay."""

QUICK_COST = 0.2
"""What a quick candidate costs, as a share of a full one on all inputs: of the same ResNet-56."""
COMPARED_INPUTS = 32
"""Inputs that a candidate and pruning alone are compared on; then, unless one loses twice as much as the other, a quarter of
those that were solved on."""
QUICK_CHECKS = 128
"""Checking inputs that a quick candidate is compared on, the first half of the synthetic ones."""
QUICK_LOSS = 1.4
"""What a quick candidate loses, as a multiple of what a full one does: 1.3 to 1.6 for three networks at losses of 1 and 7 %."""


@dataclass(frozen=True)
class CandidateBuilder:
    """Builds candidates of one model with given channel counts, and measures them.

    Attributes
    ----------
    measured : ModelMeasurements
        What is known of the model.
    options : CompressOptions
        What was asked for.
    limit : TimeLimit
        How long searches may take.
    """

    measured: ModelMeasurements
    options: CompressOptions
    limit: TimeLimit = field(default_factory=TimeLimit)

    @property
    def pruning(self) -> PruningOptions:
        """What is removed, and what replaces it."""
        return self.options.pruning

    @property
    def analysed(self) -> AnalysedModel:
        """The model."""
        return self.measured.analysed

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may shrink."""
        return self.measured.groups

    @property
    def budget(self) -> Budget:
        """What the channels of each group cost, and what the outputs lose without them."""
        return self.measured.budget

    def candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts; with method auto what pruning alone gives, where its outputs stay closer."""
        candidate = self._built(counts, self.pruning, None if self.pruning.uses_weights_only else self.measured.layer_statistics)
        planned = candidate.kept.keys() <= {name for name, each in self.pruning.planned.items() if each.method is not None}
        return candidate if self.pruning.method != "auto" or planned else self._no_worse_than_pruned(candidate, counts)

    @property
    def quick_loss(self) -> float:
        """What a quick candidate is expected to lose, as a multiple of what a full one does."""
        return 1.0 if self.measured.solving.count <= QUICK_INPUTS or self.pruning.uses_weights_only else QUICK_LOSS

    def quick_candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts, solved on `QUICK_INPUTS`: good enough to choose counts by."""
        if self.quick_loss == 1.0:
            return self.candidate(counts)
        return self._built(counts, self.pruning, self.measured.quick_statistics)

    def pruned_candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts and nothing in the place of the removed channels, which needs no inputs."""
        return self._built(counts, replace(self.pruning, method="prune"), None)

    def measure_latency(
        self, counts: ChannelCounts, reference: ModelSource | None = None, effort: TimingEffort | None = None
    ) -> LatencyComparison:
        """Latency of a model with these counts against another one, by default the reference; weights do not matter for it."""
        measured, seed = self.measured, self.options.inputs.seed
        models = reference or measured.reference, self.model_to_time(counts)
        measured.progress("timing candidates", 0.0)
        found = time_pair(*models, measured.checking, self.options.runtime, effort=effort or TRIAL_EFFORT, seed=seed)
        measured.progress("timing candidates", 1.0)
        return found

    def model_to_time(self, counts: ChannelCounts) -> ModelSource:
        """A model with these counts, whichever channels they are: its latency is that of any other one."""
        return self._built(counts, replace(self.pruning, method="prune", plan=None), None).content

    def _built(self, counts: ChannelCounts, pruning: PruningOptions, layer_statistics: LayerStatistics | None) -> Candidate:
        decision = decide(self.analysed, pruning, layer_statistics, counts)
        return candidate_of(self.analysed, decision, partial(replacements_for, layer_statistics))

    def outputs_of(self, candidate: Candidate, quickly: bool = False) -> tuple[OutputFidelity, ...]:
        """How close the outputs of a candidate are on the checking inputs; quickly: on `QUICK_CHECKS` of them."""
        checking = self.measured.checking
        return self.measured.fidelity.outputs(candidate.content, checking.first(QUICK_CHECKS) if quickly else checking)

    def _no_worse_than_pruned(self, candidate: Candidate, counts: ChannelCounts) -> Candidate:
        """The candidate, or what pruning alone gives if the outputs are closer then, measured on inputs that were solved on.

        Synthetic inputs do not look like data to a network that keeps its BatchNormalization statistics (the solve matched
        them): there pruning must also be better than a constant output to be believed.
        """
        normalised = any(node.op == "BatchNormalization" for node in self.analysed.model.graph.nodes)
        pruned, inputs = self.pruned_candidate(counts), self.measured.solving
        least = 0.0 if normalised and inputs.synthetic else -np.inf
        for count in dict.fromkeys((COMPARED_INPUTS, max(COMPARED_INPUTS, inputs.count // 4))):
            some = inputs.first(count)
            repaired_fidelity, pruned_fidelity = (
                self.measured.fidelity.worst(each.content, some) for each in (candidate, pruned)
            )
            losses = sorted((1.0 - repaired_fidelity, 1.0 - pruned_fidelity))
            if some.count == inputs.count or losses[1] >= 2.0 * losses[0]:
                break
        if pruned_fidelity <= max(repaired_fidelity, least):
            return candidate
        note = f"pruning alone stays closer: fidelity {pruned_fidelity:.3f}, not {repaired_fidelity:.3f}"
        reasons = {group.name: group.note for group in candidate.groups if group.method == "prune"}  # why it was not solved
        groups = tuple(replace(group, note=group.note or reasons.get(group.name) or note) for group in pruned.groups)
        return replace(pruned, only_pruned=True, groups=groups)
