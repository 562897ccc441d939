"""How close a candidate is to its reference, output by output; the result of `verify`."""

from dataclasses import dataclass

from onnxmerge.results.examples import ExampleInput
from onnxmerge.results.execution import Execution, InputShape
from onnxmerge.results.layer_comparison import LayerComparison
from onnxmerge.results.size import Size
from onnxmerge.results.threshold_check import ThresholdCheck

MIN_CHECK_INPUTS = 32
"""Inputs below which a fidelity says little: two candidates at 0.964 and 0.904 on 6 inputs had 0.899 and 0.954 on 32."""
ROW_FIDELITY = 0.5
"""Fidelity below which a row of an output is lost, such as the scores of a class."""


@dataclass(frozen=True)
class OutputFidelity:
    """How close one output y' of the candidate is to the reference's output y, over the check inputs.

    Attributes
    ----------
    name : str
        Name of the graph output.
    fidelity : float
        Share of the reference's variance that is explained, 1 - sum|y - y'|^2 / sum|y - mean(y)|^2, the mean taken over the
        inputs. 1 is identical, 0 as good as a constant, below 0 worse.
    sqnr_db : float
        Signal-to-quantisation-noise ratio in decibels, -10 log10(1 - fidelity); infinite where nothing differs.
    relative_l2_mean : float
        Mean over the inputs of |y - y'| / |y|.
    relative_l2_worst : float
        The largest |y - y'| / |y| of an input.
    cosine_mean : float
        Mean over the inputs of the cosine similarity <y, y'> / (|y| |y'|).
    cosine_worst : float
        The smallest cosine similarity of an input.
    max_abs_error : float
        Largest |y - y'| of a single element.
    worst_input : int
        Index, from 0, of the input with the largest relative L2, among all inputs that were given or made.
    top1_agreement : float or None
        Share of the inputs with the same best class in both models; None where the output does not look like class scores.
    top5_agreement : float or None
        Share of the inputs whose best class of the candidate is among the reference's five best; None as above.
    finite : bool
        False where the candidate's output holds NaN or infinity.
    compared : int
        Number of values that were compared; a string output counts one for each input.
    left_out : int
        Number of values that could not be compared, since the reference's output holds NaN or infinity there.
    fidelity_low, fidelity_high : float or None
        Ends of the 95 % interval of `fidelity` for other inputs of the same kind; None where a single input was compared, or
        where nothing differs.
    is_constant : bool
        Whether the reference gave the same for every input but for rounding: the variance is then taken over the elements.
    variation : float
        Root mean square of the reference's deviations from its mean over the inputs, as a share of that of its values.
    rows, lost_rows : int
        Rows along the first axis of an output such as (N, 84, 8400), of (N, 8400, 84) along the last, and how many of them keep
        a fidelity below 0.5 of their own; 0 for vectors.
    worst_row_fidelity : float
        The least fidelity of a row; 1 where there are none.
    holds : str
        "probabilities", "scores" (before a softmax), "ids" (or texts: fidelity and cosine are the share of them that is equal),
        "features" (no classes for certain), "sigmoid" (the probability of one of two classes for each input), or "" where it is
        not known what it holds.
    neighbours_kept : float or None
        Of at least 16 vectors without classes the share whose nearest other one, by cosine, is in the candidate's five nearest.
    unmeasured : str
        Why it could not be compared, as a clause; its fidelity is minus infinity then. Empty where it was.
    has_one_decision : bool
        Whether the reference's best class was the same for all inputs, so that no change of decisions can be told.
    changed_decisions : float or None
        Share of the best classes that are expected to change, each counted by the reference's lead, which is the probability of
        its best class less that of its second best; of a sequence the step that changes most. None where the output holds no
        classes for certain, or always the same one. About twice the accuracy that is lost.
    changed_decisions_low, changed_decisions_high : float or None
        Ends of the 95 % interval of `changed_decisions` for other inputs of the same kind; None where nothing changes, and for
        synthetic inputs.
    median_input : int
        Index, as that of `worst_input`, of an input with the median relative L2.
    relative_l2_quantiles : list of float
        The 0th, 5th, 10th ... 100th percentile over the inputs of |y - y'| / |y|, each that of an input; empty where nothing was
        compared.
    """

    name: str
    fidelity: float
    sqnr_db: float
    relative_l2_mean: float
    relative_l2_worst: float
    cosine_mean: float
    cosine_worst: float
    max_abs_error: float
    worst_input: int
    top1_agreement: float | None
    top5_agreement: float | None
    finite: bool
    compared: int
    left_out: int
    fidelity_low: float | None = None
    fidelity_high: float | None = None
    is_constant: bool = False
    changed_decisions: float | None = None
    changed_decisions_low: float | None = None
    changed_decisions_high: float | None = None
    has_one_decision: bool = False
    variation: float = 1.0
    rows: int = 0
    lost_rows: int = 0
    worst_row_fidelity: float = 1.0
    holds: str = ""
    neighbours_kept: float | None = None
    unmeasured: str = ""
    median_input: int = 0
    relative_l2_quantiles: tuple[float, ...] = ()

    @property
    def relative_l2_median(self) -> float:
        """That of `median_input`."""
        quantiles = self.relative_l2_quantiles
        return quantiles[len(quantiles) // 2] if quantiles else 0.0

    @property
    def has_decisions(self) -> bool:
        """Whether the output holds best classes, be they the same for all inputs."""
        return self.changed_decisions is not None or self.has_one_decision

    @property
    def defect(self) -> str:
        """Why the output fails whatever the thresholds are, as a sentence; empty where it was compared as a whole."""
        if self.left_out:
            total = self.compared + self.left_out
            return f"output '{self.name}' of the reference holds NaN or infinity: {self.left_out:,} of {total:,} values"
        if not self.finite:
            return f"output '{self.name}' holds NaN or infinity"
        return f"how close output '{self.name}' stayed could not be measured: {self.unmeasured}" if self.unmeasured else ""


@dataclass(frozen=True)
class Accuracy:
    """Share of the inputs whose best class is their label.

    Attributes
    ----------
    reference : float
        Accuracy of the reference.
    candidate : float
        Accuracy of the candidate.
    """

    reference: float
    candidate: float


@dataclass(frozen=True)
class Fidelity:
    """How close all outputs of a candidate are to the reference's.

    Attributes
    ----------
    outputs : list of OutputFidelity
        One entry for each graph output.
    input_count : int
        Number of check inputs.
    input_description : str
        What the check inputs were.
    provider : str
        Execution provider of both models.
    same_channel_counts : bool or None
        True where no layer lost channels; None where this was not examined.
    accuracy : Accuracy or None
        Accuracy of both models, with `labels`.
    layer_comparison : LayerComparison or None
        Comparison tensor by tensor, with `layers`.
    execution : Execution or None
        Where and how both models ran.
    inputs_not_finite : list of str
        Names of the model inputs that hold NaN or infinity in a check input.
    examples : list of ExampleInput
        The worst and a median input of the worst output.
    processor : str
        Name of the processor, or of the GPU, that both models ran on; empty where it is not known.
    """

    outputs: tuple[OutputFidelity, ...]
    input_count: int
    input_description: str
    provider: str
    same_channel_counts: bool | None = None
    accuracy: Accuracy | None = None
    layer_comparison: LayerComparison | None = None
    execution: Execution | None = None
    inputs_not_finite: tuple[str, ...] = ()
    examples: tuple[ExampleInput, ...] = ()
    processor: str = ""

    @property
    def worst(self) -> OutputFidelity:
        """The output with the lowest fidelity, one that is not finite before all others."""
        return min(self.outputs, key=lambda output: (output.finite, output.fidelity))

    @property
    def most_changed(self) -> OutputFidelity | None:
        """The output with the most changed decisions; None where no output holds decisions."""
        decided = [output for output in self.outputs if output.changed_decisions is not None]
        return max(decided, key=lambda output: output.changed_decisions or 0.0, default=None)


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes
    ----------
    reference : str
        Path of the reference.
    candidate : str
        Path of the candidate.
    fidelity : Fidelity
        How close the outputs are.
    failures : list of str
        Why the candidate fails, a line each: thresholds missed, NaN, infinity and other defects. Empty where it passes.
    before, after : Size or None
        Sizes of reference and candidate; None for a model that runs but cannot be analysed.
    inputs : list of InputShape
        Sizes of the model's inputs on which the outputs were compared, and where they come from.
    warnings : list of str
        What to know before relying on the figures, a line each.
    thresholds : list of ThresholdCheck
        What was asked for, beside what was measured: the user's thresholds, of the outputs the default ones where none is given.
    """

    reference: str
    candidate: str
    fidelity: Fidelity
    failures: tuple[str, ...] = ()
    before: Size | None = None
    after: Size | None = None
    inputs: tuple[InputShape, ...] = ()
    warnings: tuple[str, ...] = ()
    thresholds: tuple[ThresholdCheck, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether `failures` is empty."""
        return not self.failures
