"""Progress on stderr: a bar on a terminal, elsewhere a line for each stage; nothing for work that is short."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onnxmerge.options import EXPECTED, silent
from onnxmerge.options import Progress as Report
from onnxmerge.report.wording import as_command_line

DELAY_SECONDS = 2.0
"""Work that ends earlier shows no bar: it would only flicker."""
LOG_DELAY_SECONDS = 5.0
"""Work that ends earlier writes no lines where there is no terminal."""
STEPS = 10
"""Lines that are written on the way to the end with `verbose`, beside one for each stage."""


SILENT_SECONDS = 15.0
"""After so long the stage that goes on writes a line again, where there is no terminal."""


@contextmanager
def progress_bar(
    console: Console | None = None,
    delay_seconds: float | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> Iterator[Report]:
    """A function that takes the name of the stage and the share done, and shows them.

    A bar is drawn when that function is called, never by a clock, which would disturb latencies that are being measured; it
    vanishes at the end. Where there is no terminal, each stage is a line with the time since the start, and a long one several.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where it is shown, stderr by default.
    delay_seconds : float, optional
        When the bar or the first lines appear; by default `DELAY_SECONDS` and `LOG_DELAY_SECONDS`.
    quiet : bool
        Show nothing.
    verbose : bool
        Write lines on a terminal too, from the start on, and also each tenth of the work.
    """
    console = console or Console(file=sys.stderr)
    if quiet:
        yield silent
    elif console.is_terminal and not verbose:
        with _bar(console, DELAY_SECONDS if delay_seconds is None else delay_seconds) as show:
            yield show
    else:
        log = _Log(console, STEPS if verbose else 0)
        delay = 0.0 if verbose else LOG_DELAY_SECONDS if delay_seconds is None else delay_seconds
        start = threading.Timer(delay, log.begin)
        start.daemon = True
        start.start()
        try:
            yield log.tell
        finally:
            start.cancel()
            start.join()


class _Log:
    """A line for each stage; those before `begin` are held back until then."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console, self._steps, self._started = console, steps, time.monotonic()
        self._shown, self._held, self._begun, self._told_at = ("", 0), list[str](), False, self._started
        self._lock = threading.Lock()

    def tell(self, stage: str, share: float) -> None:
        """Write a line where the stage, or a whole step of the work, is a new one, and where the last line is long ago."""
        now, clock = (stage, int(share * self._steps + 1e-9)), time.monotonic()
        with self._lock:
            if now == self._shown and clock - self._told_at < SILENT_SECONDS:
                return
            self._shown, self._told_at = now, clock
            minutes, seconds = divmod(int(clock - self._started), 60)
            self._held.append(f"onnxmerge: {minutes}:{seconds:02d} {share:4.0%} {as_command_line(stage)}")
            if self._begun:
                self._flush()

    def begin(self) -> None:
        """Write what was held back, and from now on at once."""
        with self._lock:
            self._begun = True
            self._flush()

    def _flush(self) -> None:
        for line in self._held:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._held.clear()


@contextmanager
def _bar(console: Console, delay_seconds: float) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, speed_estimate_period=3600.0)
    task = bar.add_task("reading the model", total=1.0)
    start = threading.Timer(delay_seconds, bar.start)
    start.daemon = True
    start.start()

    def show(stage: str, share: float) -> None:
        if stage.startswith(EXPECTED):  # stays above the bar
            console.print(f"onnxmerge: {as_command_line(stage)}", markup=False, highlight=False, soft_wrap=True)
        else:
            bar.update(task, description=stage, completed=min(max(share, 0.0), 1.0), refresh=True)

    try:
        yield show
    finally:
        start.cancel()
        start.join()
        bar.stop()
