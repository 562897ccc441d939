"""Independent tasks on any executor: the results come in the order of the tasks, and a worker that dies costs time alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import TypeVar

FULL_POOLS = 2  # of our own, before each task that is left gets one for itself
KILLED = "KilledWorker"  # Dask's exception for a task that took several workers with it; the package may not be there

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """A task that ended every process it ran in."""

    reason: str


Keep = Callable[[int, Result | Lost], None]  # takes the number of a task, and what became of it


def spread(
    call: Callable[[Task], Result],
    tasks: Sequence[Task],
    done: Keep[Result],
    executor: Executor | None = None,
    jobs: int | None = None,
) -> None:
    """call(task) for every task: on the executor, else in so many processes of our own, else here, one after the other.

    done: takes each result here as soon as it is there, in the order in which tasks end; none is kept.

    call must be a function of a module, so that it can be sent. What an executor that breaks leaves over is done here; a process
    of our own is replaced. The exception of a call is raised, and what has not begun is dropped.
    """
    ended: set[int] = set()

    def left() -> dict[int, Task]:
        return {number: task for number, task in enumerate(tasks) if number not in ended}

    def keep(number: int, result: Result | Lost) -> None:
        ended.add(number)
        done(number, result)

    if executor is not None:
        _gather(executor, call, left(), keep)
    elif jobs is not None:
        _in_processes(jobs, call, left, keep)
    for number, task in left().items():
        keep(number, call(task))


def _in_processes(jobs: int, call: Callable[[Task], Result], left: Callable[[], dict[int, Task]], keep: Keep[Result]) -> None:
    """When a process dies, nobody can tell which task it was: at the end each runs apart, so that only the guilty one is lost."""
    for _ in range(FULL_POOLS):
        if left():
            with processes(min(jobs, len(left()))) as workers:
                _gather(workers, call, left(), keep)
    for number, task in left().items():
        with processes(1) as workers:
            _gather(workers, call, {number: task}, keep)
        if number in left():
            keep(number, Lost("its process was ended from outside each time, perhaps for want of memory"))


def _gather(executor: Executor, call: Callable[[Task], Result], tasks: dict[int, Task], keep: Keep[Result]) -> None:
    """Keep what the executor gives; tasks that a broken one did not do are left."""
    futures: dict[Future[Result], int] = {}
    try:
        for number, task in tasks.items():
            try:
                futures[executor.submit(call, task)] = number
            except BrokenExecutor:
                break
        for future in as_completed(futures):
            try:
                keep(futures[future], future.result())
            except (BrokenExecutor, CancelledError):
                continue
            except Exception as error:
                if type(error).__name__ != KILLED:
                    raise
                keep(futures[future], Lost("each worker that ran it was ended from outside, perhaps for want of memory"))
    except BaseException:
        for future in futures:
            future.cancel()
        raise


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Fresh processes: ONNX Runtime's threads do not survive a fork. They end at once where the work is given up."""
    before = set(active_children())
    workers = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_interruption_to_parent)
    try:
        yield workers
    except BaseException:
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        workers.shutdown(cancel_futures=True)


def _leave_interruption_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
