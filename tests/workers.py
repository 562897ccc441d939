"""What worker processes run in the tests: this module is what they import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from onnxmerge.pipeline.sweep_point import PointOutcome, PointTask, compress_point

FLAG = "ONNXMERGE_TEST_FLAG"  # where the first worker says that it is about to die


def killed_once(call: Callable[[Any], Any], task: Any, flag: Path) -> Any:
    """The first process that comes here does its work and is killed before it can say so."""
    result = call(task)
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return result
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def compress_killed_once(task: PointTask) -> PointOutcome:
    """The same for points."""
    return killed_once(compress_point, task, Path(os.environ[FLAG]))


class Killing(Executor):
    """An executor one of whose workers is killed in the middle."""

    def __init__(self, inner: Executor, flag: Path) -> None:
        self.inner, self.flag = inner, flag

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> Future:
        return self.inner.submit(killed_once, call, arguments[0], self.flag)
