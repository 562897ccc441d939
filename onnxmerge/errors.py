"""What is refused: errors that a user can act on, and refusals, which say why a part of a model stays as it is.

Our own bugs stay ordinary exceptions with a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class OnnxMergeError(Exception):
    """One clear line: what is wrong, where, what was found and needed, what to do."""

    exit_code = 2
    """What the command line ends with."""


class ModelError(OnnxMergeError):
    """The model file cannot be read, is not valid, or holds something that cannot be compressed."""


class OptionError(OnnxMergeError):
    """An option's value is out of range, or options contradict each other."""


class UnusedOptionError(OptionError):
    """An option has no effect beside the others.

    Attributes
    ----------
    option : str
        Its name.
    """

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


class InputError(OnnxMergeError):
    """Calibration data, labels or synthetic inputs do not fit the model's inputs."""


class ProviderError(OnnxMergeError):
    """The execution provider asked for does not work here, or a session fell back to another one."""


class VerificationError(OnnxMergeError):
    """The candidate differs more from the reference than was allowed; nothing is written.

    Attributes
    ----------
    result : Compression or None
        What was measured, a `Compression` with its `failures`; None where the outputs could not be compared.
    """

    exit_code = 1

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class Reason(Enum):
    """Why a layer or tensor stays as it is. The value is the text; names in braces are details of the `Refusal`."""

    # of the whole file, and what to do
    QUANTISED = "quantised: compress the float model first, then quantise the result"
    BLOCKED_LAYOUT = "in ONNX Runtime's layout for one kind of processor (nchwc): optimise at level extended at most, or later"
    # channels that meet something which cannot shrink
    GRAPH_OUTPUT = "written to the graph output {output}"
    MIXES_CHANNELS = "{operator} mixes channels"
    NOT_FOLLOWED = "channels are not followed through {operator}"
    UNKNOWN_OPERATOR = "{operator} is not in the table of operators, and may mix channels"
    READ_IN_BODY = "enters or leaves the body of {operator}"
    INSIDE_BODY = "inside the body of {operator}, {why}"
    READ_ALONE = "one of its channels is read apart from the others"
    JOINED_WITH_FIXED = "{operator} joins it with {tensor}, whose channels cannot be removed"
    SHARES_A_CHANNEL = "shares a channel with values that cannot be removed"
    ALL_AT_ONCE = "its channels can only be removed all together: an operator behind it reads them as positions"
    SINGLE_CHANNEL = "has a single output channel"
    # shapes and positions that the graph computes
    SHAPE_UNKNOWN = "the shape of {tensor} could not be observed"
    COMPUTED_WEIGHT = "the weight of {operator} is computed by the graph"
    TWO_COMPUTED_FACTORS = "{operator} multiplies two computed tensors"
    PACKED_HEADS = "{operator} with a past, a rotation, packed heads or starts in its mask is not taken apart"
    WIDTH_OF_KERNEL = "{operator} runs only with heads of query, key and value that are equally wide, in multiples of 8"
    CACHED = "{operator} keeps keys and values in caches that are inputs and outputs of the model"
    COMPUTED_AXES = "{operator} along axes that the graph computes"
    COMPUTED_SHAPE = "{operator} to a shape that the graph computes"
    MOVED_BY_SIZE = "{operator} moves channels to positions that depend on the size of the input"
    COMPUTED_SPLIT = "Split into sizes that the graph computes"
    COMPUTED_BOUNDS = "Slice of channels with bounds that the graph computes"
    SLICE_IN_STEPS = "Slice of channels in steps, and of another axis at once"
    COMPUTED_INDICES = "Gather of channels with indices that the graph computes"
    COMPUTED_REPEATS = "Tile with repeats that the graph computes"
    COMPUTED_PADS = "Pad with widths that the graph computes"
    PADS_CHANNELS = "Pad of the channel axis with anything but a constant"
    RESAMPLES_CHANNELS = "{operator} resamples the channel axis"
    OUTPUT_READ = "{operator} writes {tensor} beside its channels, and that is read too"
    SHAPE_READ = "{operator} reads how many channels there are"
    # weights and parameters
    NOT_PER_CHANNEL = "{operator} has parameters that are not one constant for each channel"
    BIAS_NOT_PER_CHANNEL = "the bias of {operator} is not one constant for each channel"
    NOT_A_MATRIX = "{operator} with a weight that is not a matrix is not supported"
    MIXES_ROWS = "{operator} sums over another axis than that of the channels"
    MIXES_POSITIONS = "sums over positions, so that it writes the channels that it reads and none of its own"
    DEPTHWISE_INPUT_FIXED = "a depthwise convolution of channels that cannot be removed"
    UNEQUAL_GROUPS = "the groups of the convolution {node} would keep different numbers of channels"
    BOUND_UNEQUALLY = "grouped convolutions ({node}) need equal numbers of channels that are not there"
    WEIGHT_READ_ELSEWHERE = "its weight {tensor} is also read by {node}"
    WEIGHT_READ_IN_TWO_WAYS = "its weight {tensor} is read by two layers in different layouts"
    WEIGHT_SHARED_WITH_FIXED = "the weight {tensor} is shared with a node whose channels cannot be removed"
    # residual streams
    NOT_A_STREAM = "{operator} normalises what is no residual stream of layers"
    READS_STREAM = "{operator} writes or reads a residual stream in another way than layers, sums and normalisations do"
    STREAM_OF_TWO_KINDS = "the normalisations of its residual stream are of two kinds, or a layer both writes and reads it"
    STREAM_SHARES_WEIGHT = (
        "{operator} shares a weight with another node, so that it cannot take in the basis of a residual stream"
    )
    STREAM_TYPE = "its residual stream is computed in {dtype}, and only one in float32 is turned into another basis"
    # merging
    NOT_HOMOGENEOUS = "{operator} is not positively homogeneous"
    FILTER_PER_CHANNEL = "{operator} has another filter for each channel"
    SLOPE_PER_CHANNEL = "{operator} has another slope for each channel"
    FILLS_IN_VALUE = "{operator} fills in another value than 0"
    AFFINE_AFTER_ACTIVATION = "{operator} scales or shifts channels behind an activation or a join"
    PART_OF_CHANNEL = "{operator} reads only a part of each channel"
    CONSTANT_NOT_PER_CHANNEL = "{operator} with a constant that is not one number for each channel"
    MULTIPLIES_CHANNELS = "{operator} multiplies channels with one another"
    SUBTRACTED_FROM_CONSTANT = "Sub subtracts channels from a constant"
    DOES_NOT_SCALE = "{operator} with values that do not scale with the channels"
    SCALED_DIFFERENTLY = "its channels reach a node with another scale than elsewhere"
    # what was asked for
    SCOPE = "`scope=chains` leaves out groups with {count} producers"
    NOT_ENTERED = "in a body that no input at hand leads into: give such inputs as `calibration`, or name it with `include`"
    NOT_INCLUDED = "not named by `include`"
    EXCLUDED = "named by `exclude`"
    ALL_KEPT = "could shrink, and what was asked for leaves it whole"
    RATIO_TOO_SMALL = "a ratio of {ratio} removes none of its channels (counts are rounded, see `round_to`)"
    DOES_NOT_RUN = "the model would not run without its channels: {error}"

    @property
    def has_cure(self) -> bool:
        """Whether another file of the same network can be compressed; the text says which."""
        return self in (Reason.QUANTISED, Reason.BLOCKED_LAYOUT)

    @property
    def order(self) -> int:
        """Which reasons come first: those with a cure, then those of operators, last those that every model has."""
        return 0 if self.has_cure else 2 if self in (Reason.GRAPH_OUTPUT, Reason.SINGLE_CHANNEL) else 1


@dataclass(frozen=True)
class Refusal:
    """Why a layer, or a tensor, stays as it is.

    Attributes
    ----------
    where : str
        Name of the node or tensor that stays; "" where a reason holds for all that meet it.
    reason : Reason
        Why it stays.
    details : tuple of (str, str)
        What is filled into the reason's text, (name, value) pairs.
    obstacle : str
        Name of the node or tensor that stands in the way, where it is another than `where`.
    parameters_share : float
        Share of the model's parameters that the node reads, 0 to 1; what several such nodes read in equal parts.
    """

    where: str
    reason: Reason
    details: tuple[tuple[str, str], ...] = ()
    obstacle: str = ""
    parameters_share: float = 0.0

    @property
    def code(self) -> str:
        """The reason as a word for programs: "mixes-channels"."""
        return self.reason.name.lower().replace("_", "-")

    @property
    def text(self) -> str:
        """The reason in words, without the places."""
        return self.reason.value.format(**dict(self.details))


def refusal(where: str, reason: Reason, obstacle: str = "", **details: object) -> Refusal:
    """A `Refusal` with its details as keywords."""
    return Refusal(where, reason, tuple((name, str(value)) for name, value in details.items()), obstacle)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text without line breaks, cut where it gets longer than so many characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + "..."
