"""What a user may set, split by what it is for; every check of a value on its own is here.

The verbs of the Python API take these as keywords, `compress("in.onnx", "out.onnx", ratio=0.5, seed=1)`, and `gathered` sorts
them into the classes below. In texts an option stands in backticks, `round_to`; the command line shows it as --round-to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from onnxmerge.errors import OptionError

METHOD_NAMES = ("auto", "reconstruct", "merge", "prune")
CRITERION_NAMES = ("auto", "reconstruction", "l1-norm", "l2-norm", "l2-gm")
SCOPES = ("all", "chains")
TARGETS = ("params", "macs", "latency")
SIZES = ("ratio", "target", "fidelity", "plan")
"""Ways to say how small the model becomes; at most one of them is given."""
DEFAULT_FIDELITY = 0.95
"""The default way: explain 95 % of the variance of the outputs."""
WEIGHT_ONLY_METHODS = ("prune", "merge")
"""Methods that look at nothing but weights, so that they need no inputs."""
PROVIDERS = ("auto", "cuda", "cpu", "tensorrt")
CUDNN_SEARCHES = ("exhaustive", "heuristic", "default")

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of the work that is done, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class Check:
    """What an option's value must be: in words, and as a test."""

    needed: str
    holds: Callable[[Any], bool]


def _one_of(names: tuple[str, ...]) -> Check:
    return Check("one of " + ", ".join(names), lambda value: value in names)


class _Checked:
    """Options whose values are read from text where they are given so, then checked against `CHECKS`."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # all subclasses are dataclasses
            value = getattr(self, field.name)
            if isinstance(value, str) and field.name in READ_FROM_TEXT:
                value = READ_FROM_TEXT[field.name](value)
                object.__setattr__(self, field.name, value)
            check = CHECKS.get(field.name)
            if check is not None and value is not None and not check.holds(value):
                raise OptionError(f"`{field.name}` must be {check.needed}, not {value}")


@dataclass(frozen=True)
class PlannedGroup:
    """What a plan says of one channel group.

    Attributes
    ----------
    kept : how many of its channels stay
    channels : which ones, ascending; None where they are still to be chosen
    method : what replaces the others; None where that is still to be chosen
    """

    kept: int
    channels: tuple[int, ...] | None = None
    method: str | None = None


@dataclass(frozen=True, kw_only=True)
class PruningOptions(_Checked):
    """What is removed, and what replaces it.

    Attributes
    ----------
    ratio : share of the channels that is removed from every group, 0 <= ratio < 1
    target : what is limited (one of `TARGETS`) and the share of it that may remain, ("macs", 0.5) or "macs=0.5"
    fidelity : the least fidelity of the worst output; the model becomes as small as that allows
    plan : a file written by `save_plan`, or a mapping from a group's name to how many channels stay, or to a `PlannedGroup`
    round_to : channel counts in multiples of this number, or "auto"
    method : one of `METHOD_NAMES`
    criterion : one of `CRITERION_NAMES`: which channels go first
    threshold : for merge, the cosine similarity below which a channel is dropped
    cosine_weight : for merge, the paper's lambda: how much the cosine distance counts beside the bias distance
    scope : "all", or "chains" for the groups that one layer writes
    include, exclude : patterns (fnmatch) of the names of the nodes that write a group
    """

    ratio: float | None = None
    target: tuple[str, float] | None = None
    fidelity: float | None = None
    plan: Path | Mapping[str, PlannedGroup] | None = None
    round_to: int | str | None = None
    method: str = "auto"
    criterion: str = "auto"
    threshold: float = 0.1
    cosine_weight: float = 0.85
    scope: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.plan, Mapping):
            plan = {name: PlannedGroup(each) if isinstance(each, int) else each for name, each in self.plan.items()}
            object.__setattr__(self, "plan", plan)
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"`{given[0]}` and `{given[1]}` both say how small the model becomes: drop one of the two")
        if isinstance(self.plan, Path) and self.round_to is not None:
            raise OptionError("`plan` says how many channels stay, so that `round_to` has nothing to round: drop one of the two")

    @property
    def planned(self) -> Mapping[str, PlannedGroup]:
        """The plan by name of the group, empty where there is none. A plan file must have been read."""
        return self.plan if isinstance(self.plan, Mapping) else {}

    @property
    def uses_weights_only(self) -> bool:
        """Whether the method needs no inputs."""
        return self.method in WEIGHT_ONLY_METHODS

    @property
    def is_latency_target(self) -> bool:
        """Whether a latency is asked for."""
        return self.target is not None and self.target[0] == "latency"

    def sized(self) -> PruningOptions:
        """The same, with the default fidelity where nothing says how small the model becomes."""
        return self if any(getattr(self, name) is not None for name in SIZES) else replace(self, fidelity=DEFAULT_FIDELITY)


@dataclass(frozen=True, kw_only=True)
class InputOptions(_Checked):
    """What the models are run on.

    Attributes
    ----------
    calibration : unlabelled inputs: a .npz or .npy file, or a folder of images or .npy files; None for synthetic inputs
    input_range : (low, high): what pixels 0 and 255 become, by default (0, 1)
    mean, std : then subtracted and divided by, one number for all channels or one for each
    samples : how many synthetic inputs, or at most how many calibration inputs, are used
    seed : of everything that is drawn at random: the same seed gives the same bytes
    """

    calibration: Path | None = None
    input_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    samples: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(_Checked):
    """How ONNX Runtime runs and times the models.

    Attributes
    ----------
    provider : one of `PROVIDERS`
    threads : threads of one operator, by default all processors at hand
    batch : inputs in one call where models are timed, by default 1
    tf32, cudnn_search, cuda_graph : settings of CUDA, refused where the CPU is used; cuda_graph is for timing alone
    """

    provider: str = "auto"
    threads: int | None = None
    batch: int | None = None
    tf32: bool | None = None
    cudnn_search: str | None = None
    cuda_graph: bool = False


@dataclass(frozen=True, kw_only=True)
class Thresholds(_Checked):
    """What the outputs must keep; the worst output counts, and None asks for nothing.

    Attributes
    ----------
    min_fidelity : least share of an output's variance that is explained
    min_cosine : least mean cosine similarity
    min_top1_agreement : least share of inputs whose best class stays
    max_relative_l2 : greatest mean relative L2 error
    """

    min_fidelity: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    max_relative_l2: float | None = None

    @property
    def given(self) -> bool:
        """Whether any threshold was set."""
        return any(getattr(self, field.name) is not None for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """All that `compress` is told.

    Attributes
    ----------
    pruning, inputs, runtime, thresholds : its parts
    verify : whether the result is compared with the model before it is written
    bench : whether both are timed too
    """

    pruning: PruningOptions
    inputs: InputOptions
    runtime: RuntimeOptions
    thresholds: Thresholds
    verify: bool = True
    bench: bool = True

    def __post_init__(self) -> None:
        if not self.verify and self.thresholds.given:
            raise OptionError("`verify=False` measures nothing, so that thresholds cannot be held: drop one of the two")

    @classmethod
    def of(cls, options: Mapping[str, Any], *, verify: bool = True, bench: bool = True) -> CompressOptions:
        """From keywords by the names of the fields of the parts."""
        pruning, inputs, runtime, thresholds = gathered(options, PruningOptions, InputOptions, RuntimeOptions, Thresholds)
        return cls(pruning=pruning, inputs=inputs, runtime=runtime, thresholds=thresholds, verify=verify, bench=bench)


Part = TypeVar("Part", bound=_Checked)


def gathered(options: Mapping[str, Any], *kinds: type[Part]) -> tuple[Any, ...]:
    """One object of each kind of options, from keywords by the names of their fields.

    Raises TypeError, as Python does, for a keyword that none of them has, and OptionError for a value that cannot be.
    """
    names = {field.name: kind for kind in kinds for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(options.keys() - names.keys())
    if unknown:
        raise TypeError(f"unexpected option {unknown[0]!r}; known are {', '.join(sorted(names))}")
    return tuple(kind(**{name: value for name, value in options.items() if names[name] is kind}) for kind in kinds)


def _target(text: str) -> tuple[str, float]:
    """'macs=0.5' -> ('macs', 0.5)."""
    kind, _, value = text.partition("=")
    try:
        return kind.strip(), float(value)
    except ValueError:
        raise OptionError(
            f"`target` must be one of {', '.join(TARGETS)}, = and a share, such as macs=0.5, not {text!r}"
        ) from None


def _is_target(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    kind, share = value
    return kind in TARGETS and isinstance(share, int | float) and 0.0 < share <= 1.0


def _multiple(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


READ_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "target": _target,
    "round_to": _multiple,
    "calibration": Path,
    "plan": Path,
}
"""Options that may be given as text -> what reads it."""

TARGET_NEEDED = f"one of {', '.join(TARGETS)}, and the share that may remain, above 0 and at most 1, such as macs=0.5"
_AT_MOST_ONE = Check("at most 1", lambda value: value <= 1.0)
_SHARE = Check("between 0 and 1", lambda value: 0.0 <= value <= 1.0)

CHECKS = {
    "target": Check(TARGET_NEEDED, _is_target),
    "fidelity": Check("above 0 and below 1", lambda value: 0.0 < value < 1.0),
    "round_to": Check("a number of at least 1, or auto", lambda value: value == "auto" or (type(value) is int and value >= 1)),
    "ratio": Check("at least 0 and below 1 (the share of channels to remove)", lambda value: 0.0 <= value < 1.0),
    "method": _one_of(METHOD_NAMES),
    "criterion": _one_of(CRITERION_NAMES),
    "scope": _one_of(SCOPES),
    "provider": _one_of(PROVIDERS),
    "cudnn_search": _one_of(CUDNN_SEARCHES),
    "threshold": Check("between -1 and 1 (a cosine)", lambda value: -1.0 <= value <= 1.0),
    "cosine_weight": _SHARE,
    "samples": Check("at least 2", lambda value: value >= 2),
    "seed": Check("at least 0", lambda value: value >= 0),
    "threads": Check("at least 1", lambda value: value >= 1),
    "batch": Check("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    "std": Check("above 0", lambda value: all(number > 0 for number in value)),
    "input_range": Check("two numbers, the lower first", lambda value: len(value) == 2 and value[0] < value[1]),
    "min_fidelity": _AT_MOST_ONE,
    "min_cosine": _AT_MOST_ONE,
    "min_top1_agreement": _SHARE,
    "max_relative_l2": Check("at least 0", lambda value: value >= 0.0),
}
"""Name of an option -> what its value must be."""
