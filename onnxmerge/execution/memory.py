"""How much memory there is."""

from __future__ import annotations

import os

UNKNOWN_BYTES = 8 << 30
"""What a machine is taken to have that does not tell."""


def physical_memory() -> int:
    """Memory of the machine in bytes: the whole and not what is free, since results must not depend on what else runs."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return UNKNOWN_BYTES
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
