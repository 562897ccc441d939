"""Tasks of worker processes that need nothing of the program, so that a process starts at once."""

import os
import signal


def square(number: int) -> int:
    """A task that is done at once."""
    return number * number


def square_or_die(number: int) -> int:
    """3 ends its process each time."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def square_or_raise(number: int) -> int:
    """3 is a bug."""
    return 1 // (number - 3) if number == 3 else number * number
