"""What the program says: frozen values with their units in their names. Everything here can be printed as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from onnxmerge.errors import Refusal


@dataclass(frozen=True)
class OutputFidelity:
    """How close one output of the candidate is to the reference's, over the check inputs.

    fidelity = 1 - sum|y - y'|^2 / sum|y - mean(y)|^2, the mean taken over the inputs; sqnr_db = -10 log10(1 - fidelity).
    relative_l2 = |y - y'| / |y| and cosine = <y, y'> / |y||y'| for each input, then the mean and the worst over the inputs.
    top1 and top5 (shares, 0 to 1) only where the output looks like class scores: the share of inputs whose best class is
    the reference's, and whose best class of the candidate's is among the reference's five best.
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


@dataclass(frozen=True)
class Execution:
    """How both models were run.

    fallback: why `auto` took the CPU, "" elsewhere; settings: what was set of the provider, nothing for the CPU; reference,
    candidate: execution provider of every node of the graph as it ran, empty where this ONNX Runtime does not tell.
    """

    fallback: str
    settings: dict[str, str]
    reference: dict[str, str]
    candidate: dict[str, str]


@dataclass(frozen=True)
class Accuracy:
    """Share of the inputs whose best class is the label, of the reference (before) and of the candidate (after)."""

    before: float
    after: float


@dataclass(frozen=True)
class NodeDrift:
    """A node whose output differs from the reference's beyond rounding.

    error_in, error_out: relative L2 |y - y'| / |y| of the nearest comparable tensors in front of it (the worst) and of its
    output `tensor`; infinite for NaN. note: what of the node's own is different, where that explains it.
    """

    node: str
    operator: str
    tensor: str
    error_in: float
    error_out: float
    note: str = ""

    @property
    def jump(self) -> float:
        """How much error this node adds."""
        return self.error_out - self.error_in if self.error_out != self.error_in else 0.0


@dataclass(frozen=True)
class LayerDrift:
    """The candidate against the reference, tensor by tensor, on the CPU without optimisation.

    same_layers: no layer lost channels, so that only rounding may differ; compared: tensors of the same name and shape in
    both; not_comparable: those that lost channels; first: where the drift starts, None without any; nodes: all that drift, in
    the order they run; mistakes: what no removal of channels explains.
    """

    same_layers: bool
    compared: int
    not_comparable: int
    inputs: int
    first: NodeDrift | None
    nodes: tuple[NodeDrift, ...]
    mistakes: tuple[str, ...]


@dataclass(frozen=True)
class Fidelity:
    """All outputs of a candidate against the reference, over `input_count` inputs; `input_description` says what they were.

    same_layers: no layer lost channels, None where this was not asked; accuracy with `labels`, layers with `layers`.
    """

    outputs: tuple[OutputFidelity, ...]
    input_count: int
    input_description: str
    provider: str
    same_layers: bool | None = None
    accuracy: Accuracy | None = None
    layers: LayerDrift | None = None
    execution: Execution | None = None

    @property
    def worst(self) -> OutputFidelity:
        """The output that is furthest from the reference."""
        return min(self.outputs, key=lambda output: (output.finite, output.fidelity))


@dataclass(frozen=True)
class Verification:
    """What `verify` found: how close the candidate is, and what it fails for (nothing where it passes)."""

    reference: str
    candidate: str
    fidelity: Fidelity
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no threshold was missed and nothing else is wrong."""
        return not self.failures


@dataclass(frozen=True)
class LatencySummary:
    """Milliseconds of one call of a model; quantiles_ms: the 0th, 5th, 10th ... 100th percentile of all calls."""

    median_ms: float
    p95_ms: float
    runs: int
    quantiles_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of reference and candidate, measured in turn in the same process.

    ratio = candidate / reference (below 1 is faster); low and high are its 95 % bootstrap interval. Calls of each in warm-up are
    not in `runs`. throughput: inputs a second at the median. macs_ratio = candidate / reference, None where it was not counted;
    realised = (1 - ratio) / (1 - macs_ratio): how much of the work saved became time saved, None where none was saved.
    """

    reference: LatencySummary
    candidate: LatencySummary
    ratio: float
    ratio_low: float
    ratio_high: float
    batch: int
    provider: str
    threads: int
    warm_up_runs: int = 0
    rounds: int = 1
    reference_per_second: float | None = None
    candidate_per_second: float | None = None
    macs_ratio: float | None = None
    realised: float | None = None
    execution: Execution | None = None

    @property
    def speedup(self) -> float:
        """How many times faster the candidate is."""
        return 1.0 / self.ratio


@dataclass(frozen=True)
class Bench:
    """A comparison for each of several batch sizes."""

    batches: tuple[LatencyComparison, ...]


@dataclass(frozen=True)
class Size:
    """What a model weighs. MACs are predicted for one input of the shapes named in `shapes`."""

    parameters: int
    macs: int
    file_bytes: int


@dataclass(frozen=True)
class GroupResult:
    """One channel group: what it is and, after `compress`, what became of it.

    removable: how many of its channels could go; kept: how many stayed; parameters_share and macs_share: what part of the
    model shrinks with it, weights of its producers and consumers counted whole, so groups overlap; note: why the method was
    taken, or why channels must stay; expected_error: by method, the share of its consumers' output variance that is lost with
    it alone, before later layers repair it. sensitivity: the fidelity of the output that suffers most, by the share of this
    group's channels removed ("0.25"), all other groups whole; only what reads the group is repaired for that.
    """

    name: str
    channels: int
    removable: int
    kept: int
    method: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    parameters_share: float
    macs_share: float
    note: str = ""
    expected_error: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` tells of a model; input_description: what the sensitivity was measured on, "" where it was not."""

    model: str
    size: Size
    groups: tuple[GroupResult, ...]
    refusals: tuple[Refusal, ...]
    input_description: str = ""


@dataclass(frozen=True)
class Compression:
    """What `compress` did: the whole of it is printed by `json`.

    before and after: predicted costs and bytes; fidelity and latency: measured, None with `verify=False` or without `bench`;
    warnings: what a user should know before deploying.
    """

    model: str
    output: str
    before: Size
    after: Size
    groups: tuple[GroupResult, ...]
    refusals: tuple[Refusal, ...]
    fidelity: Fidelity | None
    latency: LatencyComparison | None
    warnings: tuple[str, ...]
    seconds: float
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True)
class SweepPoint:
    """One target of a sweep and the model that meets it.

    target: as it was asked for, "macs=0.5"; output: where it was written, "" where it was not kept; fidelity, top1_agreement: of
    the worst output on the check inputs; kept_channels: how many by group, of those that shrank; error: why there is no model
    ("" if there is one), all other fields are then None or empty.
    """

    target: str
    after: Size | None
    fidelity: float | None
    top1_agreement: float | None
    latency: LatencyComparison | None
    kept_channels: dict[str, int]
    warnings: tuple[str, ...]
    output: str = ""
    error: str = ""


@dataclass(frozen=True)
class Sweep:
    """Size and speed against fidelity, in the order of the targets; input_description: what the fidelity was measured on."""

    model: str
    before: Size
    points: tuple[SweepPoint, ...]
    input_description: str
    seed: int
    versions: dict[str, str]


REFUSAL_FIELDS = ("where", "code", "text", "obstacle")
"""What the JSON of a refusal holds."""


def as_json(value: Any) -> Any:
    """What --json prints of a result; NaN and infinity become None, since JSON has neither."""
    if isinstance(value, Refusal):
        return {name: getattr(value, name) for name in REFUSAL_FIELDS}
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
