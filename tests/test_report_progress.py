"""Progress on stderr: a bar on a terminal, lines elsewhere, nothing of short work."""

import io
import re
import time

import pytest
from rich.console import Console

from onnxmerge.options import EXPECTED
from onnxmerge.report import progress
from onnxmerge.report.progress import progress_bar


def test_progress_without_a_terminal_is_a_line_a_stage():
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=False), delay_seconds=0.0) as show:
        for stage, share in (("inputs", 0.0), ("solving", 0.25), ("solving", 0.5), ("checking [1]", 0.9)):
            show(stage, share)
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["0% inputs", "25% solving", "90% checking [1]"]
    assert all(re.match(r"onnxmerge: 0:0\d ", line) for line in lines)


def test_a_long_stage_tells_that_it_goes_on_without_a_terminal(monkeypatch):
    stream, clock = io.StringIO(), iter([0.0, 1.0, 2.0, 17.0, 18.0, 40.0])
    with progress_bar(Console(file=stream, force_terminal=False), delay_seconds=0.0) as show:
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        for step in range(6):
            show("comparing outputs", step / 6)
        time.sleep(0.02)
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["0%", "50%", "83%"]


@pytest.mark.parametrize("settings", [{}, {"quiet": True, "delay_seconds": 0.0}], ids=["short work", "quiet"])
def test_progress_that_is_not_shown(settings):
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=False), **settings) as show:
        show("solving", 0.5)
    assert stream.getvalue() == ""


def test_verbose_progress_tells_every_step_on_a_terminal_too():
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=True), verbose=True) as show:
        time.sleep(0.02)
        for step in range(5):
            show("solving", step / 10)
    assert len(stream.getvalue().splitlines()) == 5


@pytest.mark.parametrize("terminal", [True, False])
def test_how_long_it_takes_stays_in_sight(terminal):
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=terminal, width=80), delay_seconds=0.0) as show:
        for stage in (f"{EXPECTED} 9 minutes; `time_limit=2m` ends the search", "inputs"):
            time.sleep(0.01)
            show(stage, 0.0)
    assert f"{EXPECTED} 9 minutes; --time-limit 2m ends the search\n" in stream.getvalue().replace("\r", "")


def test_progress_says_nothing_of_short_work():
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=True)) as show:
        show("solving", 0.5)
    assert "solving" not in stream.getvalue()


def test_progress_is_shown_when_it_takes_longer():
    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=True, width=80), delay_seconds=0.0) as show:
        for step in range(100):
            show("solving", step / 50 - 0.5)
    assert "solving" in stream.getvalue()
    assert "100 %" in stream.getvalue()
