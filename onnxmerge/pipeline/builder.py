"""One attempt: a candidate with given counts, made, timed or measured, from one study of the model."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import CHECK_INPUTS
from onnxmerge.evaluation.benchmark import TRIAL, Effort, time_pair
from onnxmerge.evaluation.check import fidelity_of
from onnxmerge.execution.providers import CPU, provider_of
from onnxmerge.execution.sessions import ModelSource
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.options import Progress, PruningOptions
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pruning.budget import Budget, budget_of
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.plan import Plan, decide, selected
from onnxmerge.pruning.sensitivity import Sensitivity, measure_sensitivities
from onnxmerge.results import LatencyComparison
from onnxmerge.statistics.reference_run import run_context_of
from onnxmerge.statistics.sharding import SHARD_INPUTS, sharded_covariances

Counts = Mapping[str, int]

DRAFT_INPUTS = 128


@dataclass(frozen=True)
class Found:
    """A candidate, and what the user should know of how it was found. ratio: of its latency to the source's, where timed."""

    candidate: Candidate
    warnings: tuple[str, ...] = ()
    ratio: float | None = None


@dataclass(frozen=True)
class Search:
    """What every attempt needs; the understanding is that of the study and is never rewritten.

    executor: where the statistics of a large calibration set are taken.
    """

    source: Path
    analysed: AnalysedModel
    options: CompressOptions
    solving: Inputs
    checking: Inputs
    progress: Progress
    executor: Executor | None = None

    @property
    def pruning(self) -> PruningOptions:
        """What is removed, and what replaces it."""
        return self.options.pruning

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """Those that may shrink."""
        return selected(self.analysed, self.pruning)[0]

    @cached_property
    def layer_statistics(self) -> LayerStatistics:
        """One walk over the reference, when something is first decided from it."""
        threads, known = self.options.runtime.threads, None
        if not self.solving.synthetic and self.solving.count > SHARD_INPUTS:
            known = sharded_covariances(self.source, self.options.inputs, threads, self.solving, self.progress, self.executor)
        return layer_statistics_of(self.analysed, self.solving, threads, self.progress, known)

    @cached_property
    def sensitivities(self) -> dict[str, tuple[Sensitivity, ...]]:
        """What the outputs lose when a part of one group goes, by group."""
        return measure_sensitivities(self.layer_statistics, self.groups, self.analysed.size.macs, self.pruning)

    @cached_property
    def budget(self) -> Budget:
        """What each group's channels are worth."""
        return budget_of(self.layer_statistics, self.analysed, self.groups, self.sensitivities, self.pruning)

    def draft(self, counts: Counts) -> Candidate:
        """The model with these counts, solved on fewer inputs: good enough to choose counts by."""
        few = self.solving.count <= DRAFT_INPUTS or self.pruning.uses_weights_only
        return self.candidate(counts) if few else self._made(decide(self.analysed, self.pruning, self._quick, counts))

    @cached_property
    def _quick(self) -> LayerStatistics:
        step = self.solving.batch_size or 1
        some = self.solving.chosen(np.arange(-(-DRAFT_INPUTS // step) * step), "first")
        return replace(
            self.layer_statistics, context=run_context_of(self.analysed, some, self.options.runtime.threads, self.progress)
        )

    def candidate(self, counts: Counts) -> Candidate:
        """The model with these counts, or what pruning alone gives where that stays closer."""
        layer_statistics = None if self.pruning.uses_weights_only else self.layer_statistics
        made = self._made(decide(self.analysed, self.pruning, layer_statistics, counts))
        planned = made.kept.keys() <= {name for name, each in self.pruning.planned.items() if each.method is not None}
        return made if self.pruning.method != "auto" or planned else self._no_worse_than_pruned(made, counts)

    def time(self, counts: Counts, against: ModelSource | None = None, effort: Effort | None = None) -> LatencyComparison:
        """Latency of a model with these counts against the source or another outline; what its weights hold does not matter."""
        reference, inputs, provider = against or self.source, self.checking, provider_of(self.options.runtime)
        effort, seed = effort or TRIAL, self.options.inputs.seed
        return time_pair(reference, self.outline(counts), inputs, provider, self.options.runtime, effort=effort, seed=seed)

    def left(self, candidate: Candidate, kind: str) -> float:
        """Share of the parameters or MACs that a candidate has."""
        before, after = self.analysed.size, candidate.size
        pair = (after.parameters, before.parameters) if kind == "params" else (after.macs, before.macs)
        return pair[0] / max(1, pair[1])

    def fidelity(self, candidate: Candidate) -> float:
        """Of the worst output, on the check inputs."""
        return self._fidelity_on(candidate, self.checking)

    def _fidelity_on(self, candidate: Candidate, inputs: Inputs) -> float:
        """What is chosen by it must not depend on a GPU, where results differ from run to run."""
        return fidelity_of(self.source, candidate.content, inputs, CPU, self.options.runtime.threads).worst.fidelity

    def outline(self, counts: Counts) -> ModelSource:
        """A model with these counts, to be timed."""
        return self._made(decide(self.analysed, replace(self.pruning, method="prune", plan=None), None, counts)).content

    def _made(self, plan: Plan) -> Candidate:
        return candidate_of(self.analysed, plan)

    def _no_worse_than_pruned(self, candidate: Candidate, counts: Counts) -> Candidate:
        """The candidate, or what pruning alone gives if the outputs are closer then, measured on inputs that were solved on.

        Synthetic inputs do not look like data to a network that keeps its BatchNormalization statistics (the solve matched
        them): there pruning must also be better than a constant output to be believed.
        """
        normalised = any(node.op == "BatchNormalization" for node in self.analysed.model.graph.nodes)
        least = 0.0 if normalised and self.solving.synthetic else -np.inf
        pruned = self._made(decide(self.analysed, replace(self.pruning, method="prune"), None, counts))
        inputs = self.solving
        some = inputs.chosen(np.arange(min(inputs.count, CHECK_INPUTS)), "first") if inputs.batch_size is None else inputs
        reached = [self._fidelity_on(each, some) for each in (candidate, pruned)]
        if reached[1] <= max(reached[0], least):
            return candidate
        note = f"pruning alone stays closer: fidelity {reached[1]:.3f}, not {reached[0]:.3f}"
        return replace(pruned, alone=True, groups=tuple(replace(group, note=group.note or note) for group in pruned.groups))
