"""A progress bar on stderr, only where that is a terminal, and only when the work takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[str, float], None]  # name of the stage, share of it that is done
PATIENCE_SECONDS = 2.0


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Report]:
    """What the pipeline calls to say how far it is; gone without a trace at the end.

    It is drawn when the pipeline says something, never by a clock of its own, which would disturb what is being timed.
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
    with _patient(bar) as show:
        yield show


@contextmanager
def _patient(bar: Progress) -> Iterator[Report]:
    task: TaskID = bar.add_task("reading the model", total=1.0)
    lock, over = threading.Lock(), threading.Event()

    def start() -> None:
        with lock:
            if not over.is_set():
                bar.start()
                bar.refresh()

    def show(stage: str, share: float) -> None:
        bar.update(task, description=stage, completed=min(max(share, 0.0), 1.0))
        with lock:
            if bar.live.is_started:
                bar.refresh()

    timer = threading.Timer(PATIENCE_SECONDS, start)
    timer.daemon = True
    timer.start()
    try:
        yield show
    finally:
        timer.cancel()
        with lock:
            over.set()
            bar.stop()
