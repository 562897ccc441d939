"""A limit of the time that a search may take: whether another candidate can still be built within it."""

import time
from dataclasses import dataclass, field

clock = time.time  # comparable between processes, as the points of a sweep need it


@dataclass
class TimeLimit:
    """Time from the start of a command, to be asked before each candidate.

    Attributes
    ----------
    seconds : float or None
        What the user allows; None for no limit.
    started : float
        When the command began, in seconds since the epoch.
    """

    seconds: float | None = None
    started: float = field(default_factory=lambda: clock())
    _asked: float | None = field(init=False, default=None)

    def is_over(self, times_as_long: float = 1.0) -> bool:
        """Whether the next candidate would end too late if it took so many times as long as all since the last question.

        Before the first candidate: whether the time has run out.
        """
        now = clock()
        last, self._asked = 0.0 if self._asked is None else now - self._asked, now
        return self.seconds is not None and now + times_as_long * last >= self.started + self.seconds

    def warning(self, reached: str) -> str:
        """That the limit cut the search, and what was reached."""
        return f"the time limit of {self.seconds:g} s cut the search short: {reached}"
