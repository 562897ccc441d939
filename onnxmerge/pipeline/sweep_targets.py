"""The targets of a sweep: read, and turned into options of a compression."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxmerge.errors import OptionError
from onnxmerge.options import SEARCHED
from onnxmerge.options.checks import TARGETS, as_text, share
from onnxmerge.pipeline.compress_options import CompressOptions

Target = tuple[str, float]
"""What is asked for, and its value: ("macs", 0.5)."""

OWN_OPTIONS = (*SEARCHED, "ratio")
"""Targets that are options of their own beside `target`."""
NEEDED = f"such as macs=0.75,0.5 or params=0.5, of {', '.join((*TARGETS, *OWN_OPTIONS))}"


def read_targets(given: str | Sequence[str | Target]) -> tuple[Target, ...]:
    """'macs=0.75,0.5,params=0.5' -> (('macs', 0.75), ('macs', 0.5), ('params', 0.5)). OptionError for anything else."""
    found: list[Target] = []
    for each in given.split(",") if isinstance(given, str) else given:
        kind, value = _read(each, previous=found[-1][0] if found else "") if isinstance(each, str) else each
        if kind not in (*TARGETS, *OWN_OPTIONS) or not isinstance(value, int | float):
            raise OptionError(f"`targets` must be a list {NEEDED}, not {as_text(each)}")
        if (kind, value) in found:
            raise OptionError(f"`targets` has {target_text((kind, value))} twice")
        found.append((kind, value))
    if not found:
        raise OptionError(f"`targets` must be a list {NEEDED}, and it is empty")
    return tuple(found)


def _read(text: str, previous: str) -> Target:
    """A number alone is of the kind of the target before."""
    kind, equals, value = text.rpartition("=")
    try:
        return (kind.strip().replace("-", "_") if equals else previous), share(value.strip())
    except ValueError:
        raise OptionError(f"`targets` must be a list {NEEDED}, not {text!r}") from None


def target_text(target: Target) -> str:
    """('macs', 0.5) -> 'macs=0.5'."""
    return f"{target[0]}={target[1]:.12g}"


def options_by_target(options: CompressOptions, given: str | Sequence[str | Target]) -> dict[str, CompressOptions]:
    """The options of a sweep for each of its targets, by `target_text`. Raises the errors of `read_targets`."""
    targets = read_targets(given)
    if options.pruning.minimize is not None and all(kind not in SEARCHED for kind, _ in targets):
        needed = "fidelities and changed decisions, and `targets` has none: drop it, or add one such as fidelity=0.9"
        raise OptionError(f"`minimize` is for {needed}")
    return {target_text(target): options_for(options, target) for target in targets}


def options_for(options: CompressOptions, target: Target) -> CompressOptions:
    """The options of a sweep with one of its targets: `minimize` is that of `SEARCHED` ones alone.

    Only a latency that was asked for is measured with its point, once.
    """
    kind, value = target
    size: dict[str, Any] = {kind: value} if kind in OWN_OPTIONS else {"target": target}
    if kind not in SEARCHED:
        size["minimize"] = None
    return replace(options, pruning=replace(options.pruning, **size), bench=options.bench and kind == "latency")
