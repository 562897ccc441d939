"""Options that have no effect beside the others: refused, since whoever gives one expects something of it."""

from collections.abc import Iterable
from dataclasses import fields

from onnxmerge.errors import UnusedOptionError
from onnxmerge.options import CheckedOptions, InputOptions

VALUES = ("input_range", "mean", "std")
"""How pixels become values."""
READING = (*VALUES, "fit", "color")
"""How images become inputs."""
TIMING = ("batch", "cuda_graph")
"""How models are timed."""
MERGING = ("threshold", "cosine_weight")
"""How channels are merged."""


def refuse_unused(given: Iterable[CheckedOptions], names: Iterable[str], why: str, remedy: str = "drop one of the two") -> None:
    """Raise UnusedOptionError where one of some options is given, that is not the default.

    Parameters
    ----------
    given : iterable of CheckedOptions
        What the user gave.
    names : iterable of str
        Of options without effect.
    why : str
        The reason as a clause, "`bench=False` times nothing"; in it, in backticks, the option that speaks against them.
    remedy : str
        What to do.
    """
    unused = set(names)
    for part in given:
        for field in fields(part):  # type: ignore[arg-type]  # all subclasses are dataclasses
            if field.name in unused and getattr(part, field.name) != field.default:
                raise UnusedOptionError(f"{why}, so that `{field.name}` has no effect: {remedy}", field.name)


def refuse_unread(inputs: InputOptions) -> None:
    """Raise UnusedOptionError where it is said how images are read, and none are."""
    if inputs.calibration is None:
        refuse_unused([inputs], ["fit", "color"], "no images are read", "drop it, or give them as `calibration`")
