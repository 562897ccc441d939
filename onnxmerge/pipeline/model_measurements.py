"""What is measured of a model once, for all candidates of a search and all points of a sweep."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from onnxmerge.data.inputs import Inputs
from onnxmerge.evaluation.repeated_fidelity import RepeatedFidelity
from onnxmerge.execution.few_positions import id_inputs, position_steps
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.options import Progress
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pruning.budget import Budget, budget_of
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.layer_statistics import LayerStatistics, layer_statistics_of
from onnxmerge.pruning.sensitivity import Sensitivity, measure_sensitivities
from onnxmerge.statistics.reference_run import run_context_of
from onnxmerge.statistics.sharding import SHARD_INPUTS, sharded_covariances

QUICK_INPUTS = 32
"""Inputs that a quick candidate is solved on. Of ResNet-56 it costs 4 CPU seconds then, 8 with 128 inputs and 20 with all."""


@dataclass(frozen=True)
class ModelMeasurements:
    """The statistics of a model, made when they are first asked for; they do not depend on how small it is to become.

    Attributes
    ----------
    reference : Path
        The model's file.
    analysed : AnalysedModel
        The model; never rewritten.
    options : CompressOptions
        What was asked for, without a ratio: how small the model becomes is not read.
    solving, checking : Inputs
        Inputs that layers are solved on, and that candidates are compared on.
    progress : Progress
        Told how far the work is.
    executor : Executor or None
        Takes the statistics of a large calibration set, shard by shard; None for this process.
    """

    reference: Path
    analysed: AnalysedModel
    options: CompressOptions
    solving: Inputs
    checking: Inputs
    progress: Progress
    executor: Executor | None = None

    @property
    def held_out(self) -> int | None:
        """How many of the user's inputs nothing is solved on; None without such, or where all are solved on."""
        is_split = not self.checking.synthetic and self.checking is not self.solving and not self.checking.is_solved_on
        return self.checking.count if is_split else None

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may shrink."""
        return prunable_groups(self.analysed.channels, self.options.pruning)[0]

    @cached_property
    def layer_statistics(self) -> LayerStatistics:
        """What the layers of the reference read and write on the solving inputs."""
        threads, known = self.options.runtime.threads, None
        is_turned = self.options.pruning.scope == "stream"  # a shard is taken of the file, whose stream is not
        if not self.solving.synthetic and self.solving.count > SHARD_INPUTS and not is_turned:
            given, runtime = self.options.inputs, self.options.runtime
            whole_heads = self.options.pruning.whole_heads
            known = sharded_covariances(self.reference, given, runtime, self.solving, self.progress, self.executor, whole_heads)
        return layer_statistics_of(self.analysed, self.solving, threads, self.progress, known)

    @cached_property
    def quick_statistics(self) -> LayerStatistics:
        """The same statistics, with `QUICK_INPUTS` of the inputs to solve on."""
        context = run_context_of(self.analysed, self.solving.first(QUICK_INPUTS), self.options.runtime.threads, self._tell_quick)
        return replace(self.layer_statistics, context=context)

    def _tell_quick(self, stage: str, share: float) -> None:
        self.progress(f"quick {stage}", share)

    @cached_property
    def sensitivities(self) -> dict[str, tuple[Sensitivity, ...]]:
        """What the outputs lose when a part of one group is removed, by name of the group."""
        return measure_sensitivities(self.layer_statistics, self.groups, self.options.pruning)

    @cached_property
    def budget(self) -> Budget:
        """What the channels of each group cost, and what the outputs lose without them."""
        pruning, batch, analysed_batch = self.options.pruning, self.options.runtime.batch, self.solving.call_size
        repeats = 1.0 if batch is None or self.solving.batch_size else batch / analysed_batch  # 1 where the model fixes it
        return budget_of(self.layer_statistics, self.analysed, self.groups, self.sensitivities, pruning, repeats)

    @cached_property
    def fidelity(self) -> RepeatedFidelity:
        """Compares candidates with the reference, which is run once on the same inputs.

        On the user's inputs at all positions: of a sequence the decision that changes most counts then.
        """
        model = self.analysed.model
        outputs = [tensor.name for tensor in model.graph.outputs] if self.solving.synthetic else []
        steps = position_steps(self.analysed.shapes, id_inputs(model.graph), outputs, model.opset)
        return RepeatedFidelity(self.reference, self.options.runtime.threads, steps)


@dataclass(frozen=True)
class SharedWork:
    """What the points of a sweep share.

    Attributes
    ----------
    analysed : AnalysedModel
        The model.
    progress : Progress
        Told how far the sweep is.
    """

    analysed: AnalysedModel
    progress: Progress
    _measured: dict[bool, ModelMeasurements] = field(default_factory=dict)

    def measurements(
        self, options: CompressOptions, make: Callable[[AnalysedModel, Progress], ModelMeasurements]
    ) -> ModelMeasurements:
        """Those of an earlier point, or new ones: for a fidelity more of the user's inputs are held out."""
        is_searched = options.inputs.calibration is not None and options.pruning.is_searched
        if is_searched not in self._measured:
            self._measured[is_searched] = make(self.analysed, self.progress)
        return self._measured[is_searched]
