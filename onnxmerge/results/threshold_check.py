"""A threshold beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ThresholdCheck:
    """A threshold, the user's or a default one, and what was measured.

    Attributes
    ----------
    measure : str
        "fidelity", "mean cosine", "top-1 agreement", "mean relative L2", "changed decisions" or "fidelity of the worst row" of an
        output, or the share left of "parameters" or "MACs".
    value : float or None
        What was measured, of the worst output; None where no output has it.
    limit : float
        The threshold.
    is_least : bool
        Whether the threshold is the least value that passes; else it is the greatest.
    is_default : bool
        Whether it holds because the user gave none of the outputs.
    output : str
        Name of the worst output; empty for sizes.
    is_required : bool
        Whether missing it is a failure. Not of what `compress` keeps by default, which `verify` holds beside a model that keeps
        what is asked of it.
    """

    measure: str
    value: float | None
    limit: float
    is_least: bool
    is_default: bool = False
    output: str = ""
    is_required: bool = True

    @property
    def passes(self) -> bool:
        """Whether the value keeps the threshold; NaN and None do not."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.is_least else self.value <= self.limit
