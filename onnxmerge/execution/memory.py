"""How much memory this process may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

UNKNOWN_BYTES = 8 << 30
"""What a machine is taken to have that does not tell."""


def physical_memory(root: Path = Path("/")) -> int:
    """Memory of the machine in bytes, or of the container where that is less.

    It is the whole and not what is free, since results must not depend on what else runs. root: where /proc and /sys are.
    """
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else UNKNOWN_BYTES
    return min([machine, *_container_limits(root)])


def _container_limits(root: Path) -> Iterator[int]:
    """Limits of the control groups (Linux) that this process is in, and of those around them.

    In a container the path of its own group may be that of the host, where nothing is: then the outermost one tells.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        top, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:  # version 1
            top, name = top / "memory", "memory.limit_in_bytes"
        if controllers and "memory" not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError):  # "max": no limit
                yield int((top / folder / name).read_text())
