"""Channel groups of a model; the results of `inspect`, `compress` and `sweep`."""

from dataclasses import dataclass, field

from onnxmerge.errors import Refusal
from onnxmerge.options import DEFAULT_FIDELITY
from onnxmerge.results.execution import InputShape
from onnxmerge.results.fidelity import Fidelity
from onnxmerge.results.latency import LatencyComparison
from onnxmerge.results.size import Size
from onnxmerge.results.threshold_check import ThresholdCheck


@dataclass(frozen=True)
class GroupResult:
    """A channel group and, after `compress`, what was done to it.

    Attributes
    ----------
    name : str
        The first node that produces the channels.
    channels : int
        Number of channels of the original model.
    removable : int
        How many of them could be removed.
    kept : int
        How many of them were kept.
    method : str
        How the consumers were adapted: reconstruct, merge or prune; empty in an inspection.
    producers : list of str
        Nodes that produce the channels.
    consumers : list of str
        Nodes with weights that read the channels.
    parameters_saved, macs_saved, time_saved : float
        Share of the model's parameters, MACs and predicted time on a CPU that the group saves, in an inspection at most. What a
        layer between two groups saves is shared by them, so that savings add up.
    note : str
        Why the method was taken, or why channels cannot be removed.
    expected_error : dict
        By method, the share of the consumers' output variance that is expected to be lost if only this group is compressed: for
        the method taken without the channels that were removed, for others without those that they would remove. Estimated
        from single positions; convolutions, which are solved with their neighbours, mostly lose less.
    sensitivity : dict
        By share of the group's channels removed ("0.25"), the fidelity of the worst output with all other groups whole. Only
        the group's consumers are adapted, so that `compress` mostly comes out above it.
    """

    name: str
    channels: int
    removable: int
    kept: int
    method: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    parameters_saved: float = 0.0
    macs_saved: float = 0.0
    time_saved: float = 0.0
    note: str = ""
    expected_error: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Attributes
    ----------
    model : str
        Path of the model.
    size : Size
        Size of the model.
    groups : list of GroupResult
        The channel groups that the options choose, in the order of the graph.
    refusals : list of Refusal
        Layers that keep all of their channels, and why.
    input_description : str
        What inputs the sensitivity was measured on; empty where it was not.
    inputs : list of InputShape
        Sizes of the model's inputs on which MACs are counted and the sensitivity is measured, and where they come from.
    provenance : dict
        What a model that this program made says of that: version, source_sha256, options, fidelity, inputs; empty for others.
    """

    model: str
    size: Size
    groups: tuple[GroupResult, ...]
    refusals: tuple[Refusal, ...]
    input_description: str = ""
    inputs: tuple[InputShape, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compression:
    """Result of `compress`.

    Attributes
    ----------
    model : str
        Path of the original model.
    output : str
        Path of the compressed model; nothing is written there where it has `failures`.
    before : Size
        Size of the original model.
    after : Size
        Size of the compressed model.
    groups : list of GroupResult
        The channel groups that lost channels, in the order of the graph.
    refusals : list of Refusal
        Layers that keep all of their channels, and why.
    fidelity : Fidelity or None
        How close the outputs stayed; None with `verify=False`.
    latency : LatencyComparison or None
        How fast both models are; None with `verify=False` or `bench=False`.
    warnings : list of str
        What to know before deploying the model, a line each.
    seconds : float
        How long it took.
    seed : int
        Seed of everything random.
    versions : dict
        Versions of onnxmerge, its dependencies, Python and the system, by name.
    inputs : list of InputShape
        Sizes of the model's inputs on which MACs are counted, outputs compared and both models timed, and where they come from.
    simplifications : list of str
        What was rewritten or folded without changing what the model computes, a line each.
    failures : list of str
        What was missed of thresholds and of what the outputs must keep, NaN, infinity and other defects, a line each. Empty where
        the model was written.
    unreached : str
        That the target of parameters, MACs or latency was not met, as a clause; empty where it was, or there is none.
    thresholds : list of ThresholdCheck
        The thresholds of outputs and size that were given, beside what was measured.
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
    inputs: tuple[InputShape, ...] = ()
    simplifications: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    unreached: str = ""
    thresholds: tuple[ThresholdCheck, ...] = ()


@dataclass(frozen=True)
class SweepPoint:
    """One target of a sweep and the model that meets it.

    Attributes
    ----------
    target : str
        The target as it was asked for, "macs=0.5".
    after : Size or None
        Size of the compressed model; None where there is none.
    fidelity, top1_agreement : float or None
        Of the worst output on the check inputs; None where there is no model.
    latency : LatencyComparison or None
        How fast the model is; None with `bench=False`.
    kept_by_group : dict
        Number of channels kept, by name of the group; groups that lost none are left out.
    warnings : list of str
        What to know before deploying the model, a line each.
    output : str
        Path of the compressed model; empty where it was not written.
    failure : str
        Why there is no model; empty where there is one.
    fidelity_low, fidelity_high : float or None
        Ends of the 95 % interval of `fidelity`; None as in `OutputFidelity`.
    changed_decisions, changed_decisions_low, changed_decisions_high : float or None
        Of the output with the most changed decisions, and its 95 % interval; None as in `OutputFidelity`.
    """

    target: str
    after: Size | None
    fidelity: float | None
    top1_agreement: float | None
    latency: LatencyComparison | None
    kept_by_group: dict[str, int]
    warnings: tuple[str, ...]
    output: str = ""
    failure: str = ""
    fidelity_low: float | None = None
    fidelity_high: float | None = None
    changed_decisions: float | None = None
    changed_decisions_low: float | None = None
    changed_decisions_high: float | None = None

    @property
    def is_close(self) -> bool:
        """Whether there is a model with the fidelity that was asked for, or else with the default one."""
        kind, _, asked = self.target.partition("=")
        least = float(asked) if kind == "fidelity" else DEFAULT_FIDELITY
        return self.after is not None and self.fidelity is not None and self.fidelity >= min(least, DEFAULT_FIDELITY)


@dataclass(frozen=True)
class Sweep:
    """Result of `sweep`: size and speed against fidelity.

    Attributes
    ----------
    model : str
        Path of the original model.
    before : Size
        Size of the original model.
    points : list of SweepPoint
        One entry for each target, in the order in which they were asked for.
    input_description : str
        What inputs the fidelity was measured on.
    seed : int
        Seed of everything random.
    versions : dict
        Versions of onnxmerge, its dependencies, Python and the system, by name.
    inputs : list of InputShape
        Sizes of the model's inputs on which MACs are counted, outputs compared and both models timed, and where they come from.
    """

    model: str
    before: Size
    points: tuple[SweepPoint, ...]
    input_description: str
    seed: int
    versions: dict[str, str]
    inputs: tuple[InputShape, ...] = ()

    @property
    def recommended(self) -> SweepPoint | None:
        """The fastest of the points that are close enough and measurably faster than the model; without times the smallest.

        None where no point is.
        """
        close = [each for each in self.points if each.is_close]
        timed = {each.latency.latency_ratio: each for each in close if each.latency and each.latency.verdict == "faster"}
        if any(each.latency for each in self.points):
            return timed[min(timed)] if timed else None
        return min(close, key=lambda each: each.after.macs if each.after else 0, default=None)
