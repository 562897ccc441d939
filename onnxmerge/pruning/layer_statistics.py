"""What one run of the reference tells: all that is decided later (which channels, how many, by which method) rests on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxmerge.algorithms.elimination import Elimination
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.data.inputs import Inputs
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.rewrite import Removal
from onnxmerge.options import Progress
from onnxmerge.pruning.downstream_metric import OutputErrorMetric
from onnxmerge.pruning.expected_error import ExpectedErrors
from onnxmerge.pruning.importance import elimination_of
from onnxmerge.pruning.product_update import group_products
from onnxmerge.statistics.reference_run import ReferenceStatistics, RunContext, collect_reference_statistics, run_context_of

EXPECTED_ERRORS_BYTES = 1 << 27
"""For matrices of expected errors, 128 MiB. Where they take more, 370 in a ResNet-50, some are made anew in two seconds."""


@dataclass(frozen=True)
class LayerStatistics:
    """The model and what was observed of it. What is computed for a group is computed once, for all candidates of a search.

    Attributes
    ----------
    context : RunContext
        The exported model and the inputs that it is run on.
    inputs : Inputs
        The inputs that the statistics were taken on.
    reference : ReferenceStatistics
        Covariances of what each layer reads, and what follows it.
    output_errors : OutputErrorMetric
        How much errors at a layer's output matter to the layers that read it.
    """

    context: RunContext
    inputs: Inputs
    reference: ReferenceStatistics
    output_errors: OutputErrorMetric
    _eliminations: dict[str, Elimination | None] = field(default_factory=dict)
    _expected_errors: dict[str, ExpectedErrors] = field(default_factory=dict)

    def elimination(self, group: ChannelGroup) -> Elimination | None:
        """The removal order and the error curve of a group; None where nothing reads it."""
        if group.name not in self._eliminations:
            self._eliminations[group.name] = elimination_of(self.context.channels, group, self.reference, self.output_errors)
        return self._eliminations[group.name]

    def can_repair(self, group: ChannelGroup) -> bool:
        """Whether what reads the group can make good what is removed of it."""
        products = group_products(self.context.channels, group, self.reference.products)
        return bool(group.consumers) or any(each.moments.factors is not None for each in products)

    def expected_error(self, removal: Removal) -> float:
        """The share of the consumers' output variance that a removal is expected to cost, see `ExpectedErrors`."""
        name, known = removal.group.name, self._expected_errors
        if name not in known:
            self.forget_expected_errors()
            known[name] = ExpectedErrors(self.context.channels, removal.group, self.reference)
        return known[name].of(removal)

    def forget_expected_errors(self) -> None:
        """Let matrices go that take more than `EXPECTED_ERRORS_BYTES`."""
        while sum(each.size_bytes for each in self._expected_errors.values()) > EXPECTED_ERRORS_BYTES:
            self._expected_errors.popitem()


def layer_statistics_of(
    analysed: AnalysedModel,
    inputs: Inputs,
    threads: int | None,
    progress: Progress,
    known: Mapping[str, Covariance] | None = None,
) -> LayerStatistics:
    """Run the reference once, layer by layer.

    Parameters
    ----------
    analysed : AnalysedModel
        The model.
    inputs : Inputs
        What it is run on.
    threads : int or None
        Threads of ONNX Runtime; None for all processors.
    progress : Progress
        Called with the stage and the share that is done.
    known : Mapping[str, Covariance] or None
        Covariances by key of the layer, where they have been taken already: then nothing is run.

    Raises
    ------
    InputError
        A layer reads NaN or infinity on these inputs.
    """
    context = run_context_of(analysed, inputs, threads, progress)
    reference = collect_reference_statistics(context, known)
    return LayerStatistics(context, inputs, reference, OutputErrorMetric(context, reference))
