"""What a plan says of one channel group."""

from dataclasses import dataclass

from onnxmerge.errors import OptionError
from onnxmerge.options.checks import METHOD_NAMES, is_whole


@dataclass(frozen=True)
class PlannedGroup:
    """What a plan says of one channel group.

    Attributes
    ----------
    kept : int
        How many of its channels stay.
    kept_channels : tuple[int, ...] or None
        Which ones, ascending; None where they are still to be chosen.
    method : str or None
        What replaces the others; None where that is still to be chosen.
    """

    kept: int
    kept_channels: tuple[int, ...] | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("kept", self.kept), *(("kept_channels", each) for each in self.kept_channels or ())):
            if not is_whole(value) or value < 0:
                raise OptionError(f"{name} of a planned group must be whole numbers of channels, not {value!r}")
        if self.kept_channels is not None:
            object.__setattr__(self, "kept_channels", tuple(sorted(map(int, self.kept_channels))))
            if len(set(self.kept_channels)) != self.kept:
                raise OptionError(f"kept is {self.kept} but kept_channels holds {len(set(self.kept_channels))}")
        if self.method not in (None, *METHOD_NAMES):
            raise OptionError(f"method of a planned group must be one of {', '.join(METHOD_NAMES)}, not {self.method!r}")
