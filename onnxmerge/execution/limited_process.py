"""A module of this package run as a process of its own, within limits of time and memory, so that it cannot harm this one.

ONNX Runtime writes to stdout and stderr past Python, takes what memory a file asks for, and may end the process it is in. On
Linux the system refuses memory beyond the limit. Elsewhere this process looks at the other one every `WATCH_SECONDS`, and ends
it. Where this process is killed, the other one ends itself: as soon as it can, and in any case when its time is over.
"""

import ctypes
import faulthandler
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

WATCH_SECONDS = 0.1  # what a process can allocate in between is a few hundred MB
MOST_THREADS = 8  # the stack of each counts as memory
GRACE_SECONDS = 1.0  # after the time in which this process ends it
LIMITS_OF_SYSTEM = sys.platform == "linux"


_running: set[subprocess.Popen[bytes]] = set()


class ProcessFailure(Exception):
    """Why the process gave no answer; one line that continues "it"."""


def answer_of(module: str, arguments: list[str], seconds: float, memory_bytes: int | None = None) -> Any:
    """Run a module with arguments; what it prints last, a line of JSON.

    Parameters
    ----------
    module : str
        Name of the module.
    arguments : list of str
        Of its command line; where there is a limit of memory, `limit_own_memory` finds it in front of them.
    seconds : float
        It is ended after this time.
    memory_bytes : int or None
        What it may take beside its libraries.

    Raises
    ------
    ProcessFailure
        Where it was ended, or ended without an answer.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise ProcessFailure("cannot be tried without a Python interpreter")
    # -P: modules of the current folder must not take the place of installed ones
    command = [sys.executable, "-P", "-m", __name__, str(seconds), module]
    command += [*([] if memory_bytes is None else [str(memory_bytes)]), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise ProcessFailure(f"cannot be tried: {error}") from error
        _running.add(process)
        try:
            _wait(process, seconds, memory_bytes)
        finally:
            process.kill()  # also where this process is interrupted; one that ended is left alone
            process.communicate()
            _running.discard(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    try:
        return json.loads(text.splitlines()[-1])
    except (IndexError, ValueError):
        raise ProcessFailure(_ending(process.returncode)) from None


def end_limited_processes() -> None:
    """End those that run, since this process is about to end."""
    for process in _running:
        process.kill()


def limit_own_memory(memory_bytes: int) -> None:
    """Called by the module itself, once its libraries are loaded: from here on it may take so much more."""
    if LIMITS_OF_SYSTEM:
        import resource  # noqa: PLC0415  Windows has none

        with open("/proc/self/statm") as status:
            taken = int(status.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + memory_bytes, taken + memory_bytes))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:MOST_THREADS])


def run_limited(seconds: str, module: str) -> None:
    """The side of the other process: run the module with the rest of the command line."""
    # A thread of C ends it, where a library keeps Python from running; this process comes first where it lives.
    faulthandler.dump_traceback_later(float(seconds) + GRACE_SECONDS, exit=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """Wait for the end of stdin, a pipe into which nobody writes, and which the system closes when the other side ends."""
    os.read(0, 1)
    os._exit(1)


def _wait(process: subprocess.Popen[bytes], seconds: float, memory_bytes: int | None) -> None:
    deadline = time.monotonic() + seconds
    watched = memory_bytes is not None and not LIMITS_OF_SYSTEM
    while True:
        try:
            process.wait(WATCH_SECONDS if watched else max(0.0, deadline - time.monotonic()))
            return
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise ProcessFailure(f"does not end within {seconds:.3g} s") from None
        if watched and memory_bytes is not None and resident_bytes(process) > memory_bytes:
            raise ProcessFailure("takes more memory than that")


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Memory that a process has in use, 0 where that is not known."""
    if sys.platform == "win32":
        counters = (ctypes.c_size_t * 10)()  # PROCESS_MEMORY_COUNTERS: two 32-bit numbers in the first place, then sizes
        asked = ctypes.windll.kernel32.K32GetProcessMemoryInfo(int(process._handle), counters, ctypes.sizeof(counters))  # type: ignore[attr-defined]
        return counters[2] if asked else 0
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return 1024 * int(shown) if shown.strip().isdigit() else 0


def _ending(code: int) -> str:
    if code >= 0:
        return f"ends the process with code {code}"
    try:
        return f"ends the process with {signal.Signals(-code).name}"
    except ValueError:
        return f"ends the process with signal {-code}"


if __name__ == "__main__":
    run_limited(*sys.argv[1:3])
