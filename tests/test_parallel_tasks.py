"""Tasks on executors: every result arrives once, and a process that dies costs no other task its result."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import active_children, get_context

import pytest
from squares import square, square_or_die, square_or_raise

from onnxmerge.parallel.tasks import LostTask, run_tasks


@contextmanager
def broken():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(square_or_die, 3).exception(timeout=30) is not None
        yield pool


@pytest.mark.parametrize("executor", [nullcontext(), ThreadPoolExecutor(2), broken()], ids=["here", "threads", "broken"])
def test_results_are_in_order(executor):
    done = {}
    with executor as pool:
        run_tasks(square, range(5), done.__setitem__, pool)
    assert done == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


def test_only_the_task_that_kills_is_lost():
    found = {}
    run_tasks(square_or_die, [1, 3, 2], found.__setitem__, jobs=2)
    assert (found[0], found[2]) == (1, 4)
    assert isinstance(found[1], LostTask)


@pytest.mark.parametrize("settings", [{}, {"jobs": 1}, {"executor": ThreadPoolExecutor(1)}], ids=["here", "processes", "threads"])
def test_a_bug_is_raised(settings):
    before = active_children()
    with pytest.raises(ZeroDivisionError):
        run_tasks(square_or_raise, [1, 3, 2], lambda number, result: None, **settings)
    assert active_children() == before
