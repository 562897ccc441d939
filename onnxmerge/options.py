"""What a user may set, in one frozen value; every check of a value on its own is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxmerge.errors import OptionError

METHOD_NAMES = ("auto", "reconstruct", "merge", "prune")
CRITERION_NAMES = ("auto", "reconstruction", "l1-norm", "l2-norm", "l2-gm")
SCOPES = ("all", "chains")
TARGETS = ("params", "macs", "latency")
SIZES = ("ratio", "target", "fidelity", "plan", "counts")  # ways to say how small
DEFAULT_FIDELITY = 0.95
TARGET_NEEDED = f"one of {', '.join(TARGETS)}, and the share that may remain, above 0 and at most 1, such as macs=0.5"
WEIGHT_ONLY_METHODS = ("prune", "merge")  # look at nothing but weights
PROVIDERS = ("auto", "cuda", "cpu", "tensorrt")
CUDNN_SEARCHES = ("exhaustive", "heuristic", "default")


Tell = Callable[[str, float], None]  # name of the stage, share of it that is done


def silent(stage: str, share: float) -> None:
    """Nobody asked how far it is."""


@dataclass(frozen=True)
class Options:
    """Options of `compress`; the names are those of the command line.

    ratio: share of the channels removed from every group. target: what is limited (TARGETS) and the share of it that may
    remain, also as text, "macs=0.5". fidelity: the least that the worst output keeps, in as small a model as that allows. Of
    SIZES at most one is given; without any, DEFAULT_FIDELITY holds. round_to: channel counts in multiples of it, or "auto".
    plan: a file of `--save-plan`. threshold: cosine similarity below which merge drops a channel.
    cosine_weight: the paper's lambda, how much the cosine distance counts beside the bias distance. include, exclude: globs
    of node names, of the producers of a group. input_range (low, high), mean, std: how image pixels become model inputs.
    samples: how many synthetic inputs, or at most how many calibration inputs, are used. counts: kept channels by group name,
    in place of the ratio; kept: the channels themselves, methods: what auto is to take, both by group name. tf32,
    cudnn_search, cuda_graph (of timing alone): settings of CUDA,
    refused where the CPU is used. batch: inputs in one call where models are timed. labels, save_worst,
    layers: of `verify` alone.
    """

    ratio: float | None = None
    target: tuple[str, float] | None = None
    fidelity: float | None = None
    round_to: int | str | None = None
    plan: Path | None = None
    method: str = "auto"
    criterion: str = "auto"
    threshold: float = 0.1
    cosine_weight: float = 0.85
    scope: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    kept: tuple[tuple[str, tuple[int, ...]], ...] = ()
    methods: tuple[tuple[str, str], ...] = ()
    calibration: Path | None = None
    input_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    samples: int | None = None
    provider: str = "auto"
    seed: int = 0
    threads: int | None = None
    batch: int | None = None
    verify: bool = True
    bench: bool = True
    min_fidelity: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    max_relative_l2: float | None = None
    tf32: bool | None = None
    cudnn_search: str | None = None
    cuda_graph: bool = False
    labels: Path | None = None
    save_worst: Path | None = None
    layers: bool = False

    def __post_init__(self) -> None:
        for name, read in READ_FROM_TEXT.items():
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, read(getattr(self, name)))
        for field in fields(self):
            value, check = getattr(self, field.name), CHECKS.get(field.name)
            if check is not None and value is not None and not check.holds(value):
                raise OptionError(f"--{field.name.replace('_', '-')} must be {check.needed}, not {value}")
        given = [name for name in SIZES if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise OptionError(f"--{given[0]} and --{given[1]} both say how small the model becomes: drop one of the two")
        if self.plan is not None and self.round_to is not None:
            raise OptionError("--plan says how many channels stay, so that --round-to has nothing to round: drop one of the two")
        if self.labels is not None and self.calibration is None:
            raise OptionError("--labels belong to inputs of yours: give these as --calibration")
        if self.save_worst is not None and self.save_worst.suffix.lower() != ".npz":
            raise OptionError(f"--save-worst writes a .npz file, so that {self.save_worst} cannot be its name")
        thresholds = (self.min_fidelity, self.min_cosine, self.min_top1_agreement, self.max_relative_l2)
        if not self.verify and any(value is not None for value in thresholds):
            raise OptionError("--no-verify measures nothing, so that thresholds cannot be held: drop one of the two")

    def sized(self) -> Options:
        """With the default fidelity where nothing says how small the model becomes."""
        return self if any(getattr(self, name) not in (None, ()) for name in SIZES) else replace(self, fidelity=DEFAULT_FIDELITY)


@dataclass(frozen=True)
class Check:
    """What an option's value must be."""

    needed: str
    holds: Callable[[Any], bool]


def _one_of(names: tuple[str, ...]) -> Check:
    return Check("one of " + ", ".join(names), lambda value: value in names)


def _target(text: str) -> tuple[str, float]:
    """'macs=0.5' -> ('macs', 0.5)."""
    kind, _, value = text.partition("=")
    try:
        return kind.strip(), float(value)
    except ValueError:
        raise OptionError(
            f"--target must be one of {', '.join(TARGETS)}, = and a share, such as macs=0.5, not {text!r}"
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
    "labels": Path,
    "save_worst": Path,
}

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
