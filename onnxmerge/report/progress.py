"""A progress bar on stderr, only where that is a terminal and only for work that takes longer than two seconds."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onnxmerge.options import Progress as Report

DELAY_SECONDS = 2.0
"""Work that ends earlier shows no bar: it would only flicker."""


@contextmanager
def progress_bar(console: Console | None = None, delay_seconds: float = DELAY_SECONDS) -> Iterator[Report]:
    """A function that takes the name of the stage and the share done, and shows them; the bar vanishes at the end.

    The bar is drawn when that function is called, never by a clock, which would disturb latencies that are being measured.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where the bar is drawn, stderr by default.
    delay_seconds : float
        When the bar first appears.
    """
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda stage, share: None
        return
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
    try:
        yield lambda stage, share: bar.update(task, description=stage, completed=min(max(share, 0.0), 1.0), refresh=True)
    finally:
        start.cancel()
        start.join()
        bar.stop()
