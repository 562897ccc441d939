"""How many threads compute: of ONNX Runtime by default, and of numpy's linear algebra while results must be reproducible."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np  # noqa: F401  loads the library whose threads are counted
from threadpoolctl import ThreadpoolController


def default_threads() -> int:
    """The number of CPUs that this process may use, or OMP_NUM_THREADS where that is less: more only wait for each other."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP takes a list, one number a level
    return min(usable, int(asked[:9])) if asked.isdecimal() and int(asked[:9]) else usable


@cache
def _blas() -> ThreadpoolController:
    """The library that numpy computes with; to find it, all libraries of the process are read, which takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


class _BlasThreads:
    """The number of BLAS threads belongs to the process: those who need the same number share it, others wait for them.

    The first to come changes the number, and the last to leave restores what the first one found.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = threading.local()  # `count`: the number that this thread is using
        self._users = 0
        self._count = 0
        self._first: Any = None  # of threadpoolctl, which has no types

    @contextmanager
    def limited_to(self, count: int) -> Iterator[None]:
        held = getattr(self._held, "count", None)
        if held is not None and held != count:  # within a use of its own thread, which cannot end before this one
            with _blas().limit(limits=count):
                yield
            return
        limits = self._enter(count)
        self._held.count = count
        try:
            yield
        finally:
            self._held.count = held
            self._leave(limits)

    def _enter(self, count: int) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._count == count)
            limits = _blas().limit(limits=count)
            _let_others_set()
            if not self._users:
                self._first, self._count = limits, count
            self._users += 1
            return limits

    def _leave(self, limits: Any) -> None:
        with self._changed:
            self._users -= 1
            if limits is not self._first:
                limits.restore_original_limits()  # matters where each thread has a number of its own, as with OpenMP
            if not self._users and self._first is not None:
                self._first.restore_original_limits()
                self._changed.notify_all()
            _let_others_set()


def _let_others_set() -> None:
    """threadpoolctl reserves OpenBLAS for the thread that last set its number, until a `with` block of that thread ends."""
    with _blas().limit(limits=None):
        pass


_blas_threads = _BlasThreads()


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Limit numpy's linear algebra to a number of threads: with others its results differ in the last bits.

    The number that was set before returns when the last of several overlapping uses ends. A use with another number, in another
    thread, waits until then.

    Parameters
    ----------
    threads : int or None
        None stands for `default_threads`.
    """
    with _blas_threads.limited_to(threads or default_threads()):
        yield
