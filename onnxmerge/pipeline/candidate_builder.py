"""Candidates of one model, built and measured; what they need to know of the model is measured once."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import CHECK_INPUTS
from onnxmerge.evaluation.benchmark import TRIAL_EFFORT, TimingEffort, time_pair
from onnxmerge.evaluation.repeated_fidelity import RepeatedFidelity
from onnxmerge.execution.sessions import ModelSource
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.options import Progress, PruningOptions
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pruning.budget import Budget, budget_of
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.sensitivity import Sensitivity, measure_sensitivities
from onnxmerge.results import LatencyComparison
from onnxmerge.statistics.reference_run import run_context_of
from onnxmerge.statistics.sharding import SHARD_INPUTS, sharded_covariances

ChannelCounts = Mapping[str, int]
"""Name of a channel group -> how many of its channels stay."""

QUICK_INPUTS = 32
"""Inputs that a quick candidate is solved on. Of ResNet-56 it costs 4 CPU seconds then, 8 with 128 inputs and 20 with all."""
QUICK_COST = 0.2
"""What a quick candidate costs, as a share of a full one on all inputs: of the same ResNet-56."""
QUICK_LOSS = 1.4
"""What a quick candidate loses, as a multiple of what a full one does: 1.3 to 1.6 for three networks at losses of 1 and 7 %."""


@dataclass(frozen=True)
class CandidateBuilder:
    """Builds candidates of one model with given channel counts, and measures them.

    Attributes
    ----------
    reference : Path
        The model's file.
    analysed : AnalysedModel
        The model; never rewritten.
    options : CompressOptions
        What was asked for.
    solving, checking : Inputs
        Inputs that layers are solved on, and that candidates are compared on.
    progress : Progress
        Told how far the work is.
    executor : Executor or None
        Takes the statistics of a large calibration set, shard by shard; None for this process.
    limit : TimeLimit
        How long searches may take.
    """

    reference: Path
    analysed: AnalysedModel
    options: CompressOptions
    solving: Inputs
    checking: Inputs
    progress: Progress
    executor: Executor | None = None
    limit: TimeLimit = field(default_factory=TimeLimit)

    @property
    def pruning(self) -> PruningOptions:
        """What is removed, and what replaces it."""
        return self.options.pruning

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may shrink."""
        return prunable_groups(self.analysed.channels, self.pruning)[0]

    @cached_property
    def layer_statistics(self) -> LayerStatistics:
        """What the layers of the reference read and write on the solving inputs."""
        threads, known = self.options.runtime.threads, None
        if not self.solving.synthetic and self.solving.count > SHARD_INPUTS:
            given, runtime = self.options.inputs, self.options.runtime
            known = sharded_covariances(self.reference, given, runtime, self.solving, self.progress, self.executor)
        return layer_statistics_of(self.analysed, self.solving, threads, self.progress, known)

    @cached_property
    def sensitivities(self) -> dict[str, tuple[Sensitivity, ...]]:
        """What the outputs lose when a part of one group is removed, by name of the group."""
        return measure_sensitivities(self.layer_statistics, self.groups, self.analysed.size.macs, self.pruning)

    @cached_property
    def budget(self) -> Budget:
        """What the channels of each group cost, and what the outputs lose without them."""
        batch, analysed_batch = self.options.runtime.batch, self.solving.call_size  # the same where the model fixes it
        repeats = 1.0 if batch is None or self.solving.batch_size else batch / analysed_batch
        return budget_of(self.layer_statistics, self.analysed, self.groups, self.sensitivities, self.pruning, repeats)

    def candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts; with method auto what pruning alone gives, where its outputs stay closer."""
        candidate = self._built(counts, self.pruning, None if self.pruning.uses_weights_only else self.layer_statistics)
        planned = candidate.kept.keys() <= {name for name, each in self.pruning.planned.items() if each.method is not None}
        return candidate if self.pruning.method != "auto" or planned else self._no_worse_than_pruned(candidate, counts)

    @property
    def quick_loss(self) -> float:
        """What a quick candidate is expected to lose, as a multiple of what a full one does."""
        return 1.0 if self.solving.count <= QUICK_INPUTS or self.pruning.uses_weights_only else QUICK_LOSS

    def quick_candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts, solved on `QUICK_INPUTS`: good enough to choose counts by."""
        if self.quick_loss == 1.0:
            return self.candidate(counts)
        return self._built(counts, self.pruning, self._quick_statistics)

    def pruned_candidate(self, counts: ChannelCounts) -> Candidate:
        """The model with these counts and nothing in the place of the removed channels, which needs no inputs."""
        return self._built(counts, replace(self.pruning, method="prune"), None)

    def measure_latency(
        self, counts: ChannelCounts, reference: ModelSource | None = None, effort: TimingEffort | None = None
    ) -> LatencyComparison:
        """Latency of a model with these counts against another one, by default the reference; weights do not matter for it."""
        models, options = (reference or self.reference, self.model_to_time(counts)), self.options
        return time_pair(*models, self.checking, options.runtime, effort=effort or TRIAL_EFFORT, seed=options.inputs.seed)

    def model_to_time(self, counts: ChannelCounts) -> ModelSource:
        """A model with these counts, whichever channels they are: its latency is that of any other one."""
        return self._built(counts, replace(self.pruning, method="prune", plan=None), None).content

    def _built(self, counts: ChannelCounts, pruning: PruningOptions, layer_statistics: LayerStatistics | None) -> Candidate:
        return candidate_of(self.analysed, decide(self.analysed, pruning, layer_statistics, counts))

    @cached_property
    def _quick_statistics(self) -> LayerStatistics:
        step = self.solving.batch_size or 1
        some = self.solving.subset(np.arange(-(-QUICK_INPUTS // step) * step), "first")
        context = run_context_of(self.analysed, some, self.options.runtime.threads, self.progress)
        return replace(self.layer_statistics, context=context)

    def fidelity_on(self, inputs: Inputs, candidate: Candidate) -> float:
        """Fidelity of the output of a candidate that suffers most."""
        return self._fidelity.worst(candidate.content, inputs)

    @cached_property
    def _fidelity(self) -> RepeatedFidelity:
        return RepeatedFidelity(self.reference, self.options.runtime.threads)

    def _no_worse_than_pruned(self, candidate: Candidate, counts: ChannelCounts) -> Candidate:
        """The candidate, or what pruning alone gives if the outputs are closer then, measured on inputs that were solved on.

        Synthetic inputs do not look like data to a network that keeps its BatchNormalization statistics (the solve matched
        them): there pruning must also be better than a constant output to be believed.
        """
        normalised = any(node.op == "BatchNormalization" for node in self.analysed.model.graph.nodes)
        least = 0.0 if normalised and self.solving.synthetic else -np.inf
        pruned, inputs = self.pruned_candidate(counts), self.solving
        some = inputs.subset(np.arange(min(inputs.count, CHECK_INPUTS)), "first") if inputs.batch_size is None else inputs
        repaired_fidelity, pruned_fidelity = (self.fidelity_on(some, each) for each in (candidate, pruned))
        if pruned_fidelity <= max(repaired_fidelity, least):
            return candidate
        note = f"pruning alone stays closer: fidelity {pruned_fidelity:.3f}, not {repaired_fidelity:.3f}"
        groups = tuple(replace(group, note=group.note or note) for group in pruned.groups)
        return replace(pruned, only_pruned=True, groups=groups)
