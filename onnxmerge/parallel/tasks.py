"""Independent tasks on any executor: each result is handed over when it is there, and a worker that dies costs time alone."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, util
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TypeVar

# Pools of several processes that are tried before every task left gets a process for itself. A process that dies breaks its
# pool, and the tasks that were under way with it: the second pool does these unless one of them kills again.
SHARED_POOLS = 2
# Dask's exception for a task that took several workers with it, by its name, since the package may not be installed.
KILLED_WORKER = "KilledWorker"
END_SECONDS = 2.0  # for what takes milliseconds, unless a thread that was interrupted holds a lock

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LostTask:
    """A task without a result, because every process that ran it ended.

    Attributes
    ----------
    reason : str
        For the user.
    """

    reason: str


OnResult = Callable[[int, Result | LostTask], None]


def run_tasks(
    call: Callable[[Task], Result],
    tasks: Sequence[Task],
    on_result: OnResult[Result],
    executor: Executor | None = None,
    jobs: int | None = None,
) -> None:
    """Call a function for every task.

    Parameters
    ----------
    call : callable
        A function of a module, so that it can be sent to other processes. What it raises is raised, and tasks that have not
        begun are dropped.
    tasks : sequence
        What it takes; they must not depend on each other.
    on_result : callable
        Takes the index of a task and its result, here, in the order in which tasks end.
    executor : Executor, optional
        Where tasks run. What it leaves undone because it broke is done here.
    jobs : int, optional
        Without an executor, how many processes run them; one that dies is replaced. None: this process, one task after the other.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> results = {}
    >>> with ThreadPoolExecutor(2) as executor:
    ...     run_tasks(abs, [-1, 2, -3], results.__setitem__, executor)
    >>> sorted(results.items())
    [(0, 1), (1, 2), (2, 3)]
    """
    pending = dict(enumerate(tasks))

    def finish(index: int, result: Result | LostTask) -> None:
        del pending[index]
        on_result(index, result)

    if executor is not None:
        _run_on(executor, call, pending, finish)
    elif jobs is not None:
        _run_in_processes(jobs, call, pending, finish)
    for index, task in list(pending.items()):
        finish(index, call(task))


def _run_in_processes(jobs: int, call: Callable[[Task], Result], pending: dict[int, Task], finish: OnResult[Result]) -> None:
    """When a process dies, nobody can tell whose task it was: at the end each runs apart, so that only that one is lost."""
    for _ in range(SHARED_POOLS):
        if pending:
            with process_pool(min(jobs, len(pending))) as pool:
                _run_on(pool, call, pending, finish)
    for index, task in list(pending.items()):
        with process_pool(1) as pool:
            _run_on(pool, call, {index: task}, finish)
        if index in pending:
            finish(index, LostTask("its process was ended from outside each time, perhaps for want of memory"))


def _run_on(executor: Executor, call: Callable[[Task], Result], tasks: dict[int, Task], finish: OnResult[Result]) -> None:
    """Finish what the executor does; tasks that a broken one did not do stay pending."""
    futures: dict[Future[Result], int] = {}
    try:
        for index, task in tasks.items():
            try:
                futures[executor.submit(call, task)] = index
            except BrokenExecutor:
                break
        for future in as_completed(futures):
            try:
                finish(futures[future], future.result())
            except (BrokenExecutor, CancelledError):
                continue
            except Exception as error:
                if type(error).__name__ != KILLED_WORKER:
                    raise
                reason = "each worker that ran it was ended from outside, perhaps for want of memory"
                finish(futures[future], LostTask(reason))
    except BaseException:
        for future in futures:
            future.cancel()
        raise


@contextmanager
def process_pool(count: int) -> Iterator[Executor]:
    """A pool of fresh processes, since ONNX Runtime's threads do not survive a fork. They end at once where work is given up."""
    before = set(active_children())
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_interruption_to_parent)
    try:
        yield pool
    except BaseException:
        _end_processes(set(active_children()) - before)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def end_all_processes() -> None:
    """End the processes that this one started, before it ends without Python's own cleaning up."""
    children = active_children()
    _end_processes(children)
    if children:  # their semaphores are given back, lest a process that watches these complains
        giving_back = Thread(target=util._exit_function, daemon=True)  # type: ignore[attr-defined]
        giving_back.start()
        giving_back.join(END_SECONDS)


def _end_processes(children: Iterable[BaseProcess]) -> None:
    for child in children:
        child.terminate()
        child.join()


def _leave_interruption_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
