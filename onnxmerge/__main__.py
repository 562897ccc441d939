"""`python -m onnxmerge` and the script `onnxmerge`: the command line, in whatever state a process was started.

Signals, closed or full streams, and encodings that lack a character end in one line or none, never in a traceback. That holds
from the first line on, so that what takes time to import is imported last.
"""

import contextlib
import io
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Any, NoReturn

from onnxmerge.errors import OptionError

CLEANING = (
    ("execution.limited_process", "end_limited_processes"),
    ("parallel.tasks", "end_all_processes"),
    ("onnxio.work_folder", "remove_all"),
)
"""Module and function, in order, of what a process does before a signal ends it."""


class Stream(io.FileIO):
    """stdout or stderr. A reader that leaves early misses the rest, and changes nothing of what the command does."""

    def write(self, data: Any) -> int:
        """FileIO.write; where it fails, everything after it is dropped, so that one failure is told once."""
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                raise OptionError(f"the result cannot be written to stdout: {error.strerror}") from error
            return len(data)


def main() -> NoReturn:
    """Run the command line and exit."""
    end_on_signals()
    open_streams()
    warnings.formatwarning = lambda message, *_, **__: f"onnxmerge: {message}\n"
    from onnxmerge.cli.app import main  # noqa: PLC0415  a signal may come meanwhile

    main()


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process, whatever it is doing, unless they are ignored, as nohup has it.

    The process ends in the handler itself: an exception would get lost in a finalizer, and does so at the end of a run.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Clean up with those modules that are imported by now, say so, and exit with the code that a shell gives."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    for module, function in CLEANING:
        getattr(sys.modules.get(f"onnxmerge.{module}"), function, lambda: None)()
    with contextlib.suppress(OSError):
        show_cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # where a progress bar was
        os.write(2, show_cursor + b"onnxmerge: interrupted\n")
    os._exit(128 + number)


def open_streams() -> None:
    """Open what was closed, lest a file takes its number and is printed into; write what an encoding lacks as its code."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if sys.platform == "win32" and old is not None and old.isatty():
            continue  # a console, which takes all characters, but not as bytes
        buffered = io.BufferedWriter(Stream(number, "wb", closefd=False))
        encoding = old.encoding if old is not None else "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=True))


if __name__ == "__main__":
    main()
