"""What the value of an option must be, and how it is read from text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from onnxmerge.errors import OptionError

METHOD_NAMES = ("auto", "reconstruct", "merge", "prune")
CRITERION_NAMES = ("auto", "reconstruction", "l1-norm", "l2-norm", "l2-gm")
SCOPES = ("all", "chains", "stream")
TARGETS = ("params", "macs", "latency")
PROVIDERS = ("auto", "cuda", "cpu", "tensorrt")
FITS = ("crop", "resize", "letterbox")
COLORS = ("rgb", "bgr")
CUDNN_SEARCHES = ("exhaustive", "heuristic", "default")
MOST_SAMPLES = 10**8  # their numbers alone take 800 MB
LARGEST_SIZE = 2**31 - 1  # of one axis; the product is limited by the memory of the first run
DIGITS = len(str(LARGEST_SIZE))  # Python refuses to read thousands of them as a number
MOST_THREADS = 1024  # more than the processors of any usual machine; to start 4096 takes ONNX Runtime most of a minute


@dataclass(frozen=True)
class Check:
    """What an option's value must be: in words, and as a test."""

    needed: str
    holds: Callable[[Any], bool]

    def accepts(self, value: Any) -> bool:
        """Whether a value passes; one of a type that cannot even be compared does not."""
        try:
            return self.holds(value)
        except TypeError:
            return False


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, numpy's too; booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _at_least(least: int, most: float = math.inf) -> Check:
    needed = f"a whole number of at least {least}" + (f" and at most {most}" if most < math.inf else "")
    return Check(needed, lambda value: is_whole(value) and least <= value <= most)


def _one_of(names: tuple[str, ...]) -> Check:
    return Check("one of " + ", ".join(names), lambda value: value in names)


def share(text: str) -> float:
    """'0.5' or '50%' -> 0.5. ValueError for anything else."""
    return float(text.removesuffix("%")) / 100.0 if text.endswith("%") else float(text)


def _share_or_text(text: str) -> float | str:
    """'2%' -> 0.02; text that says no share as it is."""
    try:
        return share(text.strip())
    except ValueError:
        return text


def as_text(value: Any) -> str:
    """A value as a user writes it: ('macs', 2.0) -> 'macs=2.0', (1, 0) -> '1,0'."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}:{as_text(each)}" for name, each in value.items())
    if not isinstance(value, tuple | list):
        return repr(value)
    is_pair = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Real)
    return ("=" if is_pair else ",").join(map(str, value))


def _target(text: str) -> tuple[str, float]:
    """'macs=0.5' -> ('macs', 0.5)."""
    kind, _, value = text.strip().partition("=")
    try:
        return kind.strip(), share(value)
    except ValueError:
        raise OptionError(f"`target` must be {CHECKS['target'].needed}, not {text!r}") from None


def _bytes(text: str) -> int | str:
    """'1.5GB' -> 1500000000; text that says no size as it is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    return int(float(match[1]) * 1000.0 ** " kmgt".index(match[2].lower() or " ")) if match else text


def _seconds(text: str) -> float | str:
    """'5m' -> 300.0; text that says no time as it is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text.strip())
    return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2] or "s"] if match else text


def input_shapes(given: Any) -> Any:
    """The option `input_shape` as a mapping: 'x:1,3,640,640' -> {'x': (1, 3, 640, 640)}, without a name {'': ...}."""
    if given is None or given == ():
        return None
    if isinstance(given, Mapping):
        return {name: _sizes(shape) if isinstance(shape, Sequence) else shape for name, shape in given.items()}
    if not isinstance(given, Sequence):
        return given
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) for text in texts):
        return {"": _sizes(texts)}
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        parts = [part.strip() for part in sizes.split(",")]
        if name in found or not all(part.isdecimal() and len(part) <= DIGITS and int(part) for part in parts):
            needed = f"{CHECKS['input_shape'].needed}, once for each input"
            raise OptionError(f"`input_shape` must be {needed}, not {text!r}")
        found[name] = tuple(map(int, parts))
    return found


def _sizes(given: Sequence[Any]) -> tuple[Any, ...]:
    """As Python's own numbers, which onnx and JSON need, where numpy gave them."""
    return tuple(int(size) if is_whole(size) else size for size in given)


def _are_shapes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(shape, tuple) and all(is_whole(size) and 1 <= size <= LARGEST_SIZE for size in shape)
        for name, shape in value.items()
    )


def _is_target(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    kind, share = value
    return kind in TARGETS and isinstance(share, Real) and 0.0 < float(share) <= 1.0


def _is_multiple(value: Any) -> bool:
    return value in ("auto", "measured") or (is_whole(value) and value >= 1)


def _is_calibration(value: Any) -> bool:
    arrays = value.values() if isinstance(value, Mapping) else [value]
    return isinstance(value, Path) or all(hasattr(array, "__array__") for array in arrays)


SHARES = (
    *("ratio", "fidelity", "max_changed_decisions", "min_fidelity", "min_top1_agreement", "max_relative_l2"),
    *("max_params", "max_macs"),
)
"""Options that are shares of something, given as 0.5 or "50%"; `target` and `targets` take their values so too."""

READ_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "target": _target,
    "round_to": lambda text: int(text) if text.isdecimal() else text,
    "calibration": Path,
    "plan": Path,
    "time_limit": _seconds,
    "max_memory": _bytes,
    **dict.fromkeys(SHARES, _share_or_text),
}
"""Options that may be given as text -> what reads it."""

SINGLE_VALUES: dict[str, type] = {"mean": Real, "std": Real, "include": str, "exclude": str}
"""Options that hold several values -> the type of a single one that may be given in their place."""

_SHARE = Check("between 0 and 1, such as 0.9 or 90%", lambda value: 0.0 <= value <= 1.0)

CHECKS = {
    "target": Check(
        f"one of {', '.join(TARGETS)}, and the share that may remain, above 0 and at most 1, such as macs=0.5 or macs=50%",
        _is_target,
    ),
    "max_changed_decisions": Check("at least 0 and below 1, such as 0.02 or 2%", lambda value: 0.0 <= value < 1.0),
    "fidelity": Check("above 0 and below 1, such as 0.9 or 90%", lambda value: 0.0 < value < 1.0),
    "minimize": _one_of(TARGETS),
    "round_to": Check("a whole number of at least 1, auto or measured", _is_multiple),
    "time_limit": Check("a time above 0, such as 300 (seconds), 90s, 5m or 1h", lambda value: 0.0 < value < math.inf),
    "ratio": Check(
        "at least 0 and below 1 (the share of channels to remove), such as 0.5 or 50%", lambda value: 0.0 <= value < 1.0
    ),
    "method": _one_of(METHOD_NAMES),
    "criterion": _one_of(CRITERION_NAMES),
    "scope": _one_of(SCOPES),
    "provider": _one_of(PROVIDERS),
    "cudnn_search": _one_of(CUDNN_SEARCHES),
    "threshold": Check("between -1 and 1 (a cosine)", lambda value: -1.0 <= value <= 1.0),
    "cosine_weight": Check("between 0 and 1", lambda value: 0.0 <= value <= 1.0),
    "calibration": Check("a path, an array, or a mapping from the model's input names to arrays", _is_calibration),
    "input_shape": Check("sizes of at least 1, such as 1,3,640,640 or NAME:1,3,640,640", _are_shapes),
    "fit": _one_of(FITS),
    "color": _one_of(COLORS),
    "samples": _at_least(2, MOST_SAMPLES),
    "seed": _at_least(0),
    "threads": _at_least(1, MOST_THREADS),
    "max_memory": Check("a size of at least 1MB, such as 4GB", lambda value: value >= 1_000_000),
    "batch": _at_least(1),
    "mean": Check("a number, or one for each channel", lambda value: all(isinstance(number, Real) for number in value)),
    "std": Check("a number above 0, or one for each channel", lambda value: all(number > 0 for number in value)),
    "input_range": Check(
        "two numbers, the lower first", lambda value: len(value) == 2 and -math.inf < value[0] < value[1] < math.inf
    ),
    "min_fidelity": Check("at most 1, such as 0.9 or 90%", lambda value: value <= 1.0),
    "min_cosine": Check("at most 1", lambda value: value <= 1.0),
    "min_top1_agreement": _SHARE,
    "max_relative_l2": Check("at least 0, such as 0.1 or 10%", lambda value: value >= 0.0),
    "max_params": _SHARE,
    "max_macs": _SHARE,
    "min_speedup": Check("above 0", lambda value: 0.0 < value < math.inf),
}
"""Name of an option -> what its value must be."""
